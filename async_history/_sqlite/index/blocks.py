"""The tables with a row per block of rowids, and SQL for which blocks they cover."""

from dataclasses import dataclass
from typing import Final

from async_history._sqlite.index.validity import (
    CHUNKS_STAMP,
    INDEX_IS_VALID,
    LOWEST_ROWID,
    SPANS_STAMP,
    stamped,
)


@dataclass(frozen=True, slots=True)
class Blocks:
    """A table with a row for each full block of 2 ** `bits` rowids, and its stamp at block
    `stamp`."""

    table: str
    bits: int
    stamp: int

    @property
    def size(self) -> int:
        """The number of rowids in a block."""
        return 1 << self.bits

    @property
    def through(self) -> str:
        """SQL value: the last rowid of the last recorded block; before all rows if the index is not
        valid."""
        return f"""(
            SELECT CASE WHEN {INDEX_IS_VALID}
                THEN ((max(block) + 1) << {self.bits}) - 1 ELSE {LOWEST_ROWID} END
            FROM main.{self.table}
        )"""

    @property
    def next(self) -> str:
        """SQL value: the block after the last recorded one."""
        return f"""(
            SELECT coalesce(max(block) + 1, (SELECT min(rowid) >> {self.bits} FROM history))
            FROM {self.table} WHERE block > {self.stamp}
        )"""

    @property
    def newest(self) -> str:
        """SQL value: the block after the last one whose rows are all in the memory index."""
        return f"(SELECT (indexed_through + 1) >> {self.bits} FROM async_history_state)"

    @property
    def has_unindexed(self) -> str:
        """SQL condition: a full block is not recorded yet."""
        return f"{self.next} < {self.newest}"

    @property
    def unindexed(self) -> str:
        """SQL condition: a row is in a full block that is not recorded yet."""
        return f"rowid >= {self.next} << {self.bits} AND rowid < {self.newest} << {self.bits}"

    def of(self, larger: "Blocks") -> str:
        """Return SQL for the larger block that contains a `block` of this table."""
        return f"block >> {larger.bits - self.bits}"


SPANS: Final = Blocks("async_history_spans", 9, SPANS_STAMP)
"""Blocks for times. One is about a batch; scanning the rows of one that is not full takes
0.2 ms."""
CHUNKS: Final = Blocks("async_history_chunks", 13, CHUNKS_STAMP)
"""Blocks for actors. They are larger because a search visits each one. Recording one takes some
milliseconds."""
STAMP_BLOCKS: Final = f"UPDATE async_history_state SET {stamped('block_stamp')}"
"""Statement to run after a change of these tables, or of those of actors and of undated records."""
