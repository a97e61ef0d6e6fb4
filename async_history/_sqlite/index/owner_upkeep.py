"""Indexing of owners and details, giving owners to existing memories, and removal."""

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from async_history._core.records.owners import Owner, owner_from_text, owner_text, without_scope
from async_history._sqlite.index.levels import (
    LEVELS,
    SEVERAL_KEYS,
    memory_key,
    ordered_positions,
    positions,
    remove_entries,
    value_key,
)
from async_history._sqlite.index.owners import (
    CAUSES_OF_DETAIL,
    HAS_DETAILS,
    HAS_OWN_TRIGGER,
    HAS_OWNERS,
    LAST_OWNER,
    SCOPES_OF_OWNED,
    StoredOwner,
    key_of,
    of_details,
    owner_entry,
    owner_number,
)
from async_history._sqlite.index.row_keys import keys_of_rows
from async_history._sqlite.index.validity import LOWEST_ROW, stamped


def _index_owners(level: str) -> str:
    return f"""
        INSERT OR REPLACE INTO {level} (memory, position)
        SELECT {key_of("owned")}, {LOWEST_ROW} - number
        FROM main.async_history_owners AS owned
        WHERE number > (SELECT owned_through FROM main.async_history_state) ORDER BY 1, 2
    """


def index_details(level: str, rows: str) -> Iterator[str]:
    """Yield the statements that index owners and details, to be run in order.

    Args:
        level: the level that gets the entries.
        rows: SQL condition on the rows of `history` that are indexed.
    """
    add = f"INSERT OR REPLACE INTO {level} (memory, position)"
    yield _index_owners(level)
    yield f"""
        INSERT INTO async_history_details (id, owner)
        SELECT id, number FROM (
            SELECT history.id AS id,
                   {owner_number(key_of("history"), "history.memory_id")} AS number
            FROM main.history AS history
            WHERE {HAS_OWNERS} AND {rows} AND history.id IS NOT NULL
                AND {of_details("owned.number", "history")} IS NULL
        )
        WHERE number IS NOT NULL
        ON CONFLICT (id) DO UPDATE SET owner = excluded.owner
    """
    yield f"""
        {add} SELECT {SCOPES_OF_OWNED.key}, history.rowid
        FROM main.history AS history
        CROSS JOIN main.async_history_details AS detail ON detail.id = history.id
        CROSS JOIN main.async_history_owners AS owned ON owned.number = detail.owner
        CROSS JOIN {SCOPES_OF_OWNED.table}
        WHERE {HAS_OWNERS} AND {rows} AND owned.memory_id = history.memory_id
            AND {SCOPES_OF_OWNED.condition} ORDER BY 1, 2
    """
    yield f"""
        {add} SELECT {CAUSES_OF_DETAIL.key}, history.rowid
        FROM main.history AS history
        CROSS JOIN main.async_history_details AS detail ON detail.id = history.id
        CROSS JOIN {CAUSES_OF_DETAIL.table}
        WHERE {HAS_DETAILS} AND {rows} AND {CAUSES_OF_DETAIL.condition} ORDER BY 1, 2
    """


_GIVEN: Final = """(
    SELECT json_extract(value, '$[0]') AS number, json_extract(value, '$[1]') AS memory_id,
           json_extract(value, '$[2]') AS owner, json_extract(value, '$[3]') AS keys
    FROM json_each(:given)
) AS given"""
_EARLIER: Final = f"""
    history.memory_id IN (SELECT value FROM json_each(:memory_ids))
    AND history.rowid IN ({
    positions(SEVERAL_KEYS, "memory_id IN (SELECT value FROM json_each(:memory_ids))")
})"""
_ADD_OWNERS: Final = (
    f"""
    INSERT INTO async_history_owners (number, memory_id, owner)
    SELECT number, memory_id, owner FROM {_GIVEN} ORDER BY number
    """,
    _index_owners(LEVELS[0]),
    f"""
    INSERT INTO async_history_details (id, owner)
    SELECT history.id, given.number FROM main.history AS history
    JOIN {_GIVEN} ON given.memory_id = history.memory_id
    WHERE {_EARLIER} AND history.id IS NOT NULL
    ON CONFLICT (id) DO UPDATE SET owner = excluded.owner
    """,
    f"""
    INSERT OR REPLACE INTO async_history_settled (memory, position)
    SELECT scope.value, history.rowid FROM main.history AS history
    JOIN {_GIVEN} ON given.memory_id = history.memory_id
    CROSS JOIN json_each(given.keys) AS scope
    WHERE {_EARLIER} ORDER BY 1, 2
    """,
    f"""
    UPDATE async_history_state SET
        owned_through = (SELECT max(number) FROM async_history_owners),
        {stamped("recent_stamp", "lower_stamp")}
    """,
)


def add_owners(
    connection: sqlite3.Connection, owners: Mapping[str, Owner]
) -> dict[str, StoredOwner]:
    """Give owners to memories that have none, and index their earlier records, if any."""
    ((last,),) = connection.execute(f"SELECT {LAST_OWNER}").fetchall()
    stored = {
        memory_id: StoredOwner(owner, number)
        for number, (memory_id, owner) in enumerate(owners.items(), last + 1)
    }
    given = [(one.number, memory_id, *owner_entry(one.owner)) for memory_id, one in stored.items()]
    parameters = {
        "given": json.dumps(given, ensure_ascii=False),
        "memory_ids": json.dumps(list(owners), ensure_ascii=False),
        "memories": json.dumps([memory_key(memory_id) for memory_id in owners]),
    }
    for statement in _ADD_OWNERS:
        connection.execute(statement, parameters if ":" in statement else ())
    return stored


_OWNERS: Final = f"""
SELECT owned.memory_id, owned.owner, owned.number FROM (
    SELECT json_extract(value, '$[0]') AS memory, json_extract(value, '$[1]') AS memory_id
    FROM json_each(?)
) AS given
CROSS JOIN main.async_history_owners AS owned
    ON owned.number = {owner_number("given.memory", "given.memory_id")}
"""


def owners_of(connection: sqlite3.Connection, memory_ids: Sequence[str]) -> dict[str, StoredOwner]:
    """Return the owners of memories, where they have one. The index must be ready."""
    given = json.dumps([(memory_key(memory_id), memory_id) for memory_id in memory_ids])
    return {
        memory_id: StoredOwner(owner, number)
        for memory_id, text, number in connection.execute(_OWNERS, (given,)).fetchall()
        if (owner := owner_from_text(text)) is not None
    }


_ROWS: Final = f"""
SELECT history.rowid, history.memory_id, history.id FROM main.history AS history WHERE {_EARLIER}
"""
_SET_OWNER: Final = "UPDATE async_history_owners SET owner = ? WHERE number = ?"
_REMOVE_FROM_DETAILS: Final = (
    """
    UPDATE async_history_details SET owner = NULL
    WHERE id IN (SELECT value FROM json_each(?))
    """,
    """
    DELETE FROM async_history_details
    WHERE id IN (SELECT value FROM json_each(?)) AND coalesce(context, cause) IS NULL
    """,
)


def disown(connection: sqlite3.Connection, scope: str, memory_ids: Sequence[str]) -> None:
    """Remove a scope from the owners of memories. All rows must be indexed."""
    owners = {
        memory_id: stored
        for memory_id, stored in owners_of(connection, memory_ids).items()
        if getattr(stored.owner, scope) is not None
    }
    left = {memory_id: without_scope(owner, scope) for memory_id, (owner, _) in owners.items()}
    asked = {
        "memory_ids": json.dumps(list(owners), ensure_ascii=False),
        "memories": json.dumps([memory_key(memory_id) for memory_id in owners]),
    }
    rows = connection.execute(_ROWS, asked).fetchall()
    keys = keys_of_rows(connection, [place for place, _, _ in rows])
    kept = {row.position: row.except_scope(scope) for row in keys}
    entries = [
        (key, place)
        for place, memory_id, _ in rows
        if (key := value_key(scope, getattr(owners[memory_id][0], scope))) not in kept[place]
    ]
    gone = [number for memory_id, (_, number) in owners.items() if left[memory_id] is None]
    entries += [
        (memory_key(memory_id), LOWEST_ROW - number)
        for memory_id, (_, number) in owners.items()
        if left[memory_id] is None
    ]
    remove_entries(connection, entries)
    connection.executemany(
        _SET_OWNER,
        [
            (owner_text(left[memory_id]), number)
            for memory_id, (_, number) in owners.items()
            if left[memory_id] is not None
        ],
    )
    bare = json.dumps([record_id for _, memory_id, record_id in rows if left[memory_id] is None])
    for statement in _REMOVE_FROM_DETAILS:
        connection.execute(statement, (bare,))
    connection.execute(_REMOVE_OWNERS, (json.dumps(gone),))
    connection.execute(_NOTE_OWNERS)


_ANY_LOST_RECORDS: Final = "SELECT EXISTS (SELECT 1 FROM main.async_history_bereft)"
"""Whether memories have lost records since the last look: the table contains them."""
_NEWEST: Final = " UNION ALL ".join(
    f"""
    SELECT max(position) AS position FROM main.{level}
    WHERE memory = reduced.memory AND position <= reduced.through"""
    for level in LEVELS
)
_NEWEST_FIRST: Final = ordered_positions(
    "DESC", "reduced.through + 1", key="reduced.memory", memory_id="reduced.memory_id"
)
_IS_LOST: Final = f"""NOT EXISTS (
    SELECT 1 FROM ({_NEWEST} UNION ALL SELECT position FROM {_NEWEST_FIRST}) AS entry
    CROSS JOIN main.history AS left_over ON left_over.rowid = entry.position
    WHERE left_over.memory_id = reduced.memory_id
)"""
"""SQL condition on `reduced`: at some time its memory had no records, and so lost its owner.

It reads down to the newest record that is left, because other programs leave entries of what they
remove, mostly of old records. First it reads the newest entry of each level, which usually ends it.
"""
_GONE: Final = f"""
SELECT owned.number, reduced.memory FROM (
    SELECT memory_id, through, {key_of("lost")} AS memory
    FROM main.async_history_bereft AS lost LIMIT -1 -- computes the key once
) AS reduced
CROSS JOIN main.async_history_owners AS owned
    ON owned.number = {owner_number("reduced.memory", "reduced.memory_id")}
WHERE {_IS_LOST}
"""
_REMOVE_OWNERS: Final = """
DELETE FROM async_history_owners WHERE number IN (SELECT value FROM json_each(?))
"""
_NOTE_OWNERS: Final = f"""
UPDATE async_history_state SET owned_through = min(owned_through, {LAST_OWNER})
"""


def remove_lost_owners(connection: sqlite3.Connection) -> None:
    """Remove the owners of memories whose last record was removed."""
    ((any_lost_records,),) = connection.execute(_ANY_LOST_RECORDS).fetchall()
    if not any_lost_records:
        return
    gone = connection.execute(_GONE).fetchall()
    connection.execute(_REMOVE_OWNERS, (json.dumps([number for number, _ in gone]),))
    remove_entries(connection, [(key, LOWEST_ROW - number) for number, key in gone])
    connection.execute(_NOTE_OWNERS)
    connection.execute("DELETE FROM async_history_bereft")


def _remove_causes(connection: sqlite3.Connection, places: Sequence[int]) -> None:
    """Remove the entries of records by their causes."""
    rows = keys_of_rows(connection, places)
    remove_entries(
        connection,
        [(key, row.position) for row in rows for key in row.causes - row.except_causes()],
    )


_ERASE: Final = (
    """
    DELETE FROM async_history_details WHERE owner IS NULL
        AND id IN (SELECT id FROM history WHERE rowid IN (SELECT value FROM json_each(?)))
    """,
    """
    UPDATE async_history_details SET context = NULL, cause = NULL
    WHERE id IN (SELECT id FROM history WHERE rowid IN (SELECT value FROM json_each(?)))
    """,
)


def erase_details(connection: sqlite3.Connection, places: Sequence[int]) -> None:
    """Remove the contexts and causes of records, and their entries by cause."""
    _remove_causes(connection, places)
    for statement in _ERASE:
        connection.execute(statement, (json.dumps(places),))


_SET_DETAILS: Final = """
UPDATE async_history_details SET context = ?, cause = ?
WHERE id = (SELECT id FROM history WHERE rowid = ?)
"""
_ADD_ENTRIES: Final = (
    """
    INSERT OR REPLACE INTO async_history_settled (memory, position)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?)
    ORDER BY 1, 2
    """,
    f"UPDATE async_history_state SET {stamped('recent_stamp', 'lower_stamp')}",
)


def replace_details(
    connection: sqlite3.Connection, details: Mapping[int, tuple[str | None, str | None]]
) -> None:
    """Replace the contexts and causes of records, given by position, and the entries of causes."""
    if not details:
        return
    places = list(details)
    _remove_causes(connection, places)
    connection.executemany(_SET_DETAILS, [(*new, place) for place, new in details.items()])
    rows = keys_of_rows(connection, places)
    entries = [(key, row.position) for row in rows for key in row.causes]
    add, note = _ADD_ENTRIES
    connection.execute(add, (json.dumps(entries),))
    connection.execute(note)


_HAS_TABLES: Final = """
SELECT count(*) = 2 FROM main.sqlite_master
WHERE type = 'table' AND name IN ('async_history_owners', 'async_history_details')
"""
_ORPHANS: Final = (
    """
    DELETE FROM async_history_details
    WHERE NOT EXISTS (SELECT 1 FROM history WHERE history.id = async_history_details.id)
    """,
    """
    DELETE FROM async_history_owners WHERE memory_id NOT IN (
        SELECT memory_id FROM history WHERE memory_id IS NOT NULL
    )
    """,
    """
    DELETE FROM async_history_owners
    WHERE number NOT IN (SELECT min(number) FROM async_history_owners GROUP BY memory_id)
    """,
)
_OWNERS_WITHOUT_DETAILS: Final = """
DELETE FROM async_history_owners WHERE (number, memory_id) NOT IN (
    SELECT detail.owner, history.memory_id FROM async_history_details AS detail
    JOIN history ON history.id = detail.id
    WHERE detail.owner IS NOT NULL AND history.memory_id IS NOT NULL
)
"""
_HAS_TRIGGER: Final = f"SELECT {HAS_OWN_TRIGGER}"


def is_same_history(connection: sqlite3.Connection) -> bool:
    """Return whether `history` is still the table for which the owners were given."""
    ((has_trigger,),) = connection.execute(_HAS_TRIGGER).fetchall()
    return bool(has_trigger)


def remove_orphans(connection: sqlite3.Connection, *, is_same_history: bool) -> None:
    """Remove the details of missing records, and the owners of other memories.

    If `history` is another table than the one for which the owners were given, only owners of
    records in it are kept.
    """
    for statement in _ORPHANS if is_same_history else (*_ORPHANS, _OWNERS_WITHOUT_DETAILS):
        connection.execute(statement)


def create_missing_views(connection: sqlite3.Connection) -> None:
    """Create empty temporary views on a reading connection for tables that an older file lacks."""
    ((has_tables,),) = connection.execute(_HAS_TABLES).fetchall()
    if not has_tables:
        connection.execute(
            "CREATE TEMP VIEW async_history_owners AS SELECT NULL AS number, NULL AS memory_id,"
            " NULL AS owner WHERE false"
        )
        connection.execute(
            "CREATE TEMP VIEW async_history_details AS SELECT NULL AS id, NULL AS owner,"
            " NULL AS context, NULL AS cause WHERE false"
        )
