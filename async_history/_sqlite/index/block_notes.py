"""When the changes in a SQLite file happened, and where an actor's are: noted block by block.

An index on the actor would be written at as many places as there are actors, and one on the time
would not give records in their order. So what a block of rowids holds is noted when it is full:
sorted, in one go, at the end of a table. An actor's records are sought in each block in turn, which
gives them in order; a time's in the blocks that it can be in.
"""

import sqlite3
from typing import Final

from async_history._sqlite import times
from async_history._sqlite.index import undated
from async_history._sqlite.index.blocks import CHUNKS, SPANS
from async_history._sqlite.index.validity import stamped

_NOTE_SPANS: Final = f"""
INSERT OR REPLACE INTO async_history_spans (block, earliest, latest)
SELECT rowid >> {SPANS.bits},
       CASE WHEN count(*) = count(instant) THEN min(instant) ELSE '' END,
       CASE WHEN count(*) = count(instant) THEN max(instant) ELSE '' END
FROM (SELECT rowid, {times.own_instant("history")} AS instant FROM history WHERE {SPANS.unindexed})
GROUP BY 1
"""
"""Notes '' where a record names no time: `DATE_RECORDS` and `_NOTE_DATED_SPANS` come next."""
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
"""Of a block whose records have no time at all, no time is in the span: from '~' to '!'."""
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

_STAMP: Final = f"UPDATE async_history_state SET {stamped('block_stamp')}"
_NOTE: Final = (
    _NOTE_SPANS,
    undated.DATE_RECORDS,
    _NOTE_DATED_SPANS,
    _NOTE_ACTORS,
    _NOTE_CHUNKS,
    _STAMP,
)
"""Statements that note all full blocks, one after the other."""

NOTE_BLOCKS: Final = f"""
DROP TRIGGER IF EXISTS temp.async_history_note_blocks;
CREATE TEMP TRIGGER async_history_note_blocks
AFTER UPDATE OF indexed_through ON main.async_history_state
WHEN {SPANS.has_unindexed}
BEGIN{"".join(f"{statement};" for statement in _NOTE)}
END;
"""
"""Run once on a connection that writes: the statement that fills a block notes it."""


def note_blocks(connection: sqlite3.Connection) -> None:
    """Note all full blocks, inside the caller's write transaction."""
    for statement in _NOTE:
        connection.execute(statement)
