"""When the changes in a SQLite file happened, and where an actor's are: noted block by block.

An index on the actor would be written at as many places as there are actors, and one on the time
would not give records in their order. So what a block of rowids holds is noted when it is full:
sorted, in one go, at the end of a table. An actor's records are sought in each block in turn, which
gives them in order; a time's in the blocks that it can be in.

Lives here: the statements. Not here: the tables (migrations/sqlite), who runs them, the queries.
"""

import sqlite3
from dataclasses import dataclass
from typing import Final

from async_history import _sqlite_times as times
from async_history.index_state import (
    CHUNKS_STAMP,
    IS_OURS,
    LOWEST_ROWID,
    SPANS_STAMP,
    stamped,
)


@dataclass(frozen=True, slots=True)
class Blocks:
    """A table with a row for each full block of 2 ** `bits` rowids, and its stamp in one block."""

    table: str
    bits: int
    stamp: int

    @property
    def through(self) -> str:
        """SQL of the last rowid of the last block noted: where the index is not of this table, that
        is before all rows."""
        return f"""(
            SELECT CASE WHEN {IS_OURS}
                THEN ((max(block) + 1) << {self.bits}) - 1 ELSE {LOWEST_ROWID} END
            FROM main.{self.table}
        )"""  # noqa: S608 - constants

    @property
    def next(self) -> str:
        """SQL of the block behind the last one noted."""
        return f"""(
            SELECT coalesce(max(block) + 1, (SELECT min(rowid) >> {self.bits} FROM history))
            FROM {self.table} WHERE block > {self.stamp}
        )"""  # noqa: S608 - constants

    @property
    def newest(self) -> str:
        """SQL of the block behind the last one of which all rows are in the memory index."""
        return f"(SELECT (indexed_through + 1) >> {self.bits} FROM async_history_state)"  # noqa: S608 - a number

    @property
    def are_behind(self) -> str:
        """SQL condition: a block is full that is not noted."""
        return f"{self.next} < {self.newest}"

    @property
    def unnoted(self) -> str:
        """SQL condition of the rows in full blocks that are not noted."""
        return f"rowid >= {self.next} << {self.bits} AND rowid < {self.newest} << {self.bits}"

    def of(self, larger: "Blocks") -> str:
        """Return the SQL of the larger block that a `block` of these is in."""
        return f"block >> {larger.bits - self.bits}"


SPANS: Final = Blocks("async_history_spans", 9, SPANS_STAMP)
"""For times. A block is about a batch, and what is scanned where it is not full: 0.2 ms."""
CHUNKS: Final = Blocks("async_history_chunks", 13, CHUNKS_STAMP)
"""For actors: larger, as each is a place to look, and noting it takes some milliseconds."""

_NOTE_SPANS: Final = f"""
INSERT OR REPLACE INTO async_history_spans (block, earliest, latest)
SELECT rowid >> {SPANS.bits},
       min(CASE WHEN {times.is_plain("history")} THEN {times.own_time("history")} ELSE '' END),
       max(CASE WHEN {times.is_plain("history")} THEN {times.own_time("history")} ELSE '~' END)
FROM history WHERE {SPANS.unnoted} GROUP BY 1
"""  # noqa: S608 - constants of ours
_NOTE_ACTORS: Final = f"""
INSERT OR IGNORE INTO async_history_actors (block, actor_id, position)
SELECT rowid >> {CHUNKS.bits}, actor_id, rowid FROM history
WHERE {CHUNKS.unnoted} AND actor_id IS NOT NULL ORDER BY 1, 2, 3
"""  # noqa: S608 - constants of ours
_NOTE_CHUNKS: Final = f"""
INSERT OR REPLACE INTO async_history_chunks (block, earliest, latest)
SELECT {SPANS.of(CHUNKS)}, min(earliest), max(latest) FROM async_history_spans
WHERE {SPANS.of(CHUNKS)} >= {CHUNKS.next} AND {SPANS.of(CHUNKS)} < {CHUNKS.newest} GROUP BY 1
"""  # noqa: S608 - constants of ours

_STAMP: Final = f"UPDATE async_history_state SET {stamped('block_stamp')}"  # noqa: S608 - constants

NOTE_BLOCKS: Final = f"""
DROP TRIGGER IF EXISTS temp.async_history_note_blocks;
CREATE TEMP TRIGGER async_history_note_blocks
AFTER UPDATE OF indexed_through ON main.async_history_state
WHEN {SPANS.are_behind}
BEGIN{_NOTE_SPANS};{_NOTE_ACTORS};{_NOTE_CHUNKS};{_STAMP};
END;
"""
"""Run once on a connection that writes: the statement that fills a block notes it."""


def catch_up(connection: sqlite3.Connection) -> None:
    """Note all full blocks, inside the caller's write transaction."""
    for statement in (_NOTE_SPANS, _NOTE_ACTORS, _NOTE_CHUNKS, _STAMP):
        connection.execute(statement)
