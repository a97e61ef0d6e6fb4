"""Blocks of rowids in a SQLite file, and how far what is noted of them reaches."""

from dataclasses import dataclass
from typing import Final

from async_history._sqlite.index.validity import (
    CHUNKS_STAMP,
    INDEX_IS_VALID,
    LOWEST_ROWID,
    SPANS_STAMP,
)


@dataclass(frozen=True, slots=True)
class Blocks:
    """A table with a row for each full block of 2 ** `bits` rowids, and its stamp in one block."""

    table: str
    bits: int
    stamp: int

    @property
    def size(self) -> int:
        """How many rowids a block has."""
        return 1 << self.bits

    @property
    def through(self) -> str:
        """SQL of the last rowid of the last block noted: where the index is not of this table, that
        is before all rows."""
        return f"""(
            SELECT CASE WHEN {INDEX_IS_VALID}
                THEN ((max(block) + 1) << {self.bits}) - 1 ELSE {LOWEST_ROWID} END
            FROM main.{self.table}
        )"""

    @property
    def next(self) -> str:
        """SQL of the block behind the last one noted."""
        return f"""(
            SELECT coalesce(max(block) + 1, (SELECT min(rowid) >> {self.bits} FROM history))
            FROM {self.table} WHERE block > {self.stamp}
        )"""

    @property
    def newest(self) -> str:
        """SQL of the block behind the last one of which all rows are in the memory index."""
        return f"(SELECT (indexed_through + 1) >> {self.bits} FROM async_history_state)"

    @property
    def has_unindexed(self) -> str:
        """SQL condition: a block is full that is not noted."""
        return f"{self.next} < {self.newest}"

    @property
    def unindexed(self) -> str:
        """SQL condition of the rows in full blocks that are not noted."""
        return f"rowid >= {self.next} << {self.bits} AND rowid < {self.newest} << {self.bits}"

    def of(self, larger: "Blocks") -> str:
        """Return the SQL of the larger block that a `block` of these is in."""
        return f"block >> {larger.bits - self.bits}"


SPANS: Final = Blocks("async_history_spans", 9, SPANS_STAMP)
"""For times. A block is about a batch, and what is scanned where it is not full: 0.2 ms."""
CHUNKS: Final = Blocks("async_history_chunks", 13, CHUNKS_STAMP)
"""For actors: larger, as each is a place to look, and noting it takes some milliseconds."""
