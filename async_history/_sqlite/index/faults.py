"""The check of the index of a SQLite file, entry by entry."""

import sqlite3
from collections.abc import Iterator
from typing import Final

from async_history._core.wording import counted
from async_history._sqlite import times
from async_history._sqlite.index.blocks import CHUNKS, SPANS
from async_history._sqlite.index.levels import LEVELS
from async_history._sqlite.index.owners import (
    CAUSES_OF_DETAIL,
    HAS_OWNERS,
    SCOPES_OF_OWNED,
    is_unindexed,
    json_of,
    key_of,
    owner_number,
)
from async_history._sqlite.index.undated import LOST_DATES


def _has_entry(key: str) -> str:
    return " OR ".join(
        f"EXISTS (SELECT 1 FROM main.{level} WHERE memory = {key} AND position = history.rowid)"
        for level in reversed(LEVELS)
    )


def _unreadable(table: str, column: str, name: str, is_readable: str) -> str:
    """Return a SELECT of the number of values that readers can't read, and the `name` of one.

    `is_readable` is the SQL function that tells for a text that is JSON for SQLite.
    """
    return f"""
    SELECT count(*), min({name}) FROM main.{table} WHERE {column} IS NOT NULL AND NOT CASE
        WHEN {json_of(column)} IS NULL THEN 0 ELSE {is_readable}(CAST({column} AS BLOB)) END
    """


_DETAILS: Final = "async_history_details"
_OWNERS: Final = "async_history_owners"
_NO_CONTEXT: Final = _unreadable(_DETAILS, "context", "id", "async_history_is_object")
_NO_CAUSE: Final = _unreadable(_DETAILS, "cause", "id", "async_history_is_object")
_NO_OWNER: Final = _unreadable(_OWNERS, "owner", "memory_id", "async_history_is_owner")
_IS_INDEXED: Final = f"NOT {is_unindexed('history')}"
_NOT_FOUND: Final = f"""
SELECT count(*), min(id) FROM main.history
WHERE {_IS_INDEXED} AND NOT ({_has_entry(key_of("history"))})
"""
_WRONG_OWNERS: Final = f"""
SELECT count(*), min(history.id) FROM main.history AS history
WHERE {HAS_OWNERS} AND {_IS_INDEXED} AND history.id IS NOT NULL
    AND {owner_number(key_of("history"), "history.memory_id")} IS NOT (
        SELECT owned.number FROM main.async_history_details AS detail
        CROSS JOIN main.async_history_owners AS owned ON owned.number = detail.owner
        WHERE detail.id = history.id AND owned.memory_id = history.memory_id
    )
"""
_WRONG_SCOPES: Final = f"""
SELECT count(DISTINCT history.id), min(history.id) FROM main.history AS history
CROSS JOIN main.async_history_details AS detail ON detail.id = history.id
CROSS JOIN main.async_history_owners AS owned ON owned.number = detail.owner
CROSS JOIN {SCOPES_OF_OWNED.table}
WHERE {_IS_INDEXED} AND owned.memory_id = history.memory_id AND {SCOPES_OF_OWNED.condition}
    AND NOT ({_has_entry(SCOPES_OF_OWNED.key)})
"""
_WRONG_CAUSES: Final = f"""
SELECT count(DISTINCT history.id), min(history.id) FROM main.history AS history
CROSS JOIN main.async_history_details AS detail ON detail.id = history.id
CROSS JOIN {CAUSES_OF_DETAIL.table}
WHERE {_IS_INDEXED} AND {CAUSES_OF_DETAIL.condition}
    AND NOT ({_has_entry(CAUSES_OF_DETAIL.key)})
"""
_WRONG_ACTORS: Final = f"""
SELECT count(*), min(id) FROM main.history
WHERE actor_id IS NOT NULL AND rowid <= {CHUNKS.through} AND NOT EXISTS (
    SELECT 1 FROM main.async_history_actors AS actors
    WHERE block = history.rowid >> {CHUNKS.bits} AND actors.actor_id = history.actor_id
        AND position = history.rowid
)
"""
_IS_THERE: Final = "SELECT 1 FROM main.sqlite_master WHERE type = 'table' AND name = ?"
_OUTSIDE: Final = """
SELECT count(*), min(id) FROM main.history LEFT JOIN main.{table} AS noted
    ON noted.block = history.rowid >> {bits}
WHERE history.rowid <= {through} AND (noted.block IS NULL OR {is_plain}
    AND ({time} < noted.earliest OR {time} > noted.latest))
"""
_WITHOUT_DATE: Final = f"""
SELECT count(*), min(id) FROM main.history
WHERE rowid <= {SPANS.through} AND rowid IN ({LOST_DATES})
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


def unreadable_objects(connection: sqlite3.Connection) -> Iterator[str]:
    """Yield a sentence for each column with values that are not JSON objects, as they should be."""
    for table, query, *words in (
        (_DETAILS, _NO_CONTEXT, "record has a context", "records have contexts"),
        (_DETAILS, _NO_CAUSE, "record has a cause", "records have causes"),
        (_OWNERS, _NO_OWNER, "memory has an owner", "memories have owners"),
    ):
        if connection.execute(_IS_THERE, (table,)).fetchone() is None:
            continue
        count, example = connection.execute(query).fetchone()
        if count:
            yield (
                f"{counted(count, *words)} that can't be read, such as {example}: restore it in "
                f"{table} from a backup."
            )


def wrong_entries(connection: sqlite3.Connection) -> Iterator[tuple[str, int, str]]:
    """Yield what records can't be found by in a current index, their number, and the id of one."""
    for statements, what in (
        ((_NOT_FOUND,), "memory"),
        ((_WRONG_OWNERS, _WRONG_SCOPES), "owner"),
        ((_WRONG_CAUSES,), "cause"),
        ((_WRONG_ACTORS,), "actor"),
        ((*_WRONG_TIMES, _WITHOUT_DATE), "time"),
    ):
        for statement in statements:
            count, example = connection.execute(statement).fetchone()
            if count:
                yield what, count, example
                break
