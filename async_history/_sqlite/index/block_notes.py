"""The times and the actors in each block of rows: recorded when the block is full.

An ordinary index on the actor would write to as many pages as there are actors, and one on the time
would not return records in their order. So the contents of a block of rowids are recorded when it
is full: sorted, in one statement, at the end of a table. A search for an actor reads the blocks one
after the other, which keeps the order. A search for a time reads the blocks that can contain it.
"""

import sqlite3
from typing import Final

from async_history._sqlite import times
from async_history._sqlite.index import undated
from async_history._sqlite.index.blocks import CHUNKS, SPANS, STAMP_BLOCKS

_NOTE_SPANS: Final = f"""
INSERT OR REPLACE INTO async_history_spans (block, earliest, latest)
SELECT rowid >> {SPANS.bits},
       CASE WHEN count(*) = count(instant) THEN min(instant) ELSE '' END,
       CASE WHEN count(*) = count(instant) THEN max(instant) ELSE '' END
FROM (SELECT rowid, {times.own_instant("history")} AS instant FROM history WHERE {SPANS.unindexed})
GROUP BY 1
"""
"""Records '' if a record has no time: `DATE_RECORDS` and `_NOTE_DATED_SPANS` run next."""
_NOTE_DATED_SPANS: Final = f"""
UPDATE async_history_spans SET (earliest, latest) = (
    SELECT coalesce(min(instant), '~'), coalesce(max(instant), '!') FROM (
        SELECT {times.occurred_at("history", undated.noted_time("history"))} AS instant
        FROM history
        WHERE rowid BETWEEN block << {SPANS.bits} AND (block << {SPANS.bits}) + {SPANS.size - 1}
    )
)
WHERE {undated.IS_BEGUN}
"""
"""A block whose records have no time gets an empty span: from '~' to '!'."""
_NOTE_ACTORS: Final = f"""
INSERT OR IGNORE INTO async_history_actors (block, actor_id, position)
SELECT rowid >> {CHUNKS.bits}, actor_id, rowid FROM history
WHERE {CHUNKS.unindexed} AND actor_id IS NOT NULL ORDER BY 1, 2, 3
"""
_NOTE_CHUNKS: Final = f"""
INSERT OR REPLACE INTO async_history_chunks (block, earliest, latest)
SELECT {SPANS.of(CHUNKS)}, min(earliest), max(latest) FROM async_history_spans
WHERE {SPANS.of(CHUNKS)} >= {CHUNKS.next} AND {SPANS.of(CHUNKS)} < {CHUNKS.newest} GROUP BY 1
"""

_NOTE: Final = (
    _NOTE_SPANS,
    undated.DATE_RECORDS,
    _NOTE_DATED_SPANS,
    _NOTE_ACTORS,
    _NOTE_CHUNKS,
    STAMP_BLOCKS,
)
"""Statements that record all full blocks, to be run in this order."""

NOTE_BLOCKS: Final = f"""
DROP TRIGGER IF EXISTS temp.async_history_note_blocks;
CREATE TEMP TRIGGER async_history_note_blocks
AFTER UPDATE OF indexed_through ON main.async_history_state
WHEN {SPANS.has_unindexed}
BEGIN{"".join(f"{statement};" for statement in _NOTE)}
END;
"""
"""Run once on a writing connection: creates a trigger that records each block when it is full."""


def note_blocks(connection: sqlite3.Connection) -> None:
    """Record all full blocks, inside the caller's write transaction."""
    for statement in _NOTE:
        connection.execute(statement)
