"""Checks the index of a SQLite file, entry by entry."""

import sqlite3
from collections.abc import Iterator
from typing import Final

from async_history._sqlite import times
from async_history._sqlite.index.blocks import CHUNKS, SPANS
from async_history._sqlite.index.levels import LEVELS
from async_history._sqlite.index.validity import INDEXED_THROUGH

_KEY: Final = "async_history_key(CAST(history.memory_id AS BLOB))"
_HAS_ENTRY: Final = " OR ".join(
    f"EXISTS (SELECT 1 FROM main.{level} WHERE memory = {_KEY} AND position = history.rowid)"
    for level in reversed(LEVELS)
)
_NOT_FOUND: Final = f"""
SELECT count(*), min(id) FROM main.history WHERE rowid <= {INDEXED_THROUGH}
    AND rowid NOT IN (SELECT position FROM main.async_history_strays) AND NOT ({_HAS_ENTRY})
"""
_WRONG_ACTORS: Final = f"""
SELECT count(*), min(id) FROM main.history
WHERE actor_id IS NOT NULL AND rowid <= {CHUNKS.through} AND NOT EXISTS (
    SELECT 1 FROM main.async_history_actors AS actors
    WHERE block = history.rowid >> {CHUNKS.bits} AND actors.actor_id = history.actor_id
        AND position = history.rowid
)
"""
_OUTSIDE: Final = """
SELECT count(*), min(id) FROM main.history LEFT JOIN main.{table} AS noted
    ON noted.block = history.rowid >> {bits}
WHERE history.rowid <= {through} AND (noted.block IS NULL OR {is_plain}
    AND ({time} < noted.earliest OR {time} > noted.latest))
"""
_WRONG_TIMES: Final = tuple(
    _OUTSIDE.format(
        table=blocks.table,
        bits=blocks.bits,
        through=blocks.through,
        is_plain=times.is_plain("history"),
        time=times.own_time("history"),
    )
    for blocks in (SPANS, CHUNKS)
)


def wrong_entries(connection: sqlite3.Connection) -> Iterator[tuple[str, int, str]]:
    """Yield each kind of fault in a current index: its text, the number of records, and one's
    id."""
    for statements, what in (
        ((_NOT_FOUND,), "are not found by their memory"),
        ((_WRONG_ACTORS,), "are not found by their actor"),
        (_WRONG_TIMES, "are not found by their time"),
    ):
        for statement in statements:
            count, example = connection.execute(statement).fetchone()
            if count:
                yield what, count, example
                break
