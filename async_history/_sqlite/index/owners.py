"""The owners, contexts and causes of records: the SQL that finds them.

They are in two tables, `async_history_owners` and `async_history_details`. These are data: a new
index keeps them. The levels (see `levels`) have entries for them:

- For a memory's owner: the memory's key, and a position below all rows by the owner's number. The
  owners after `owned_through` wait, as rows do, until the tail is indexed.
- For the records of each scope of an owner, and of each cause in `INDEXED_CAUSES`: the `value_key`,
  and the record's position.

A record's details name its owner by number, so that no key is needed to read it. Rows that other
programs wrote have no details until they are indexed: their owner is found by the memory's key.

Readers check what they find: two keys may be equal, and a record may have changed its memory.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from async_history._core.records.json_object import JsonObject
from async_history._core.records.owners import SCOPES, Owner, owner_text
from async_history._core.records.recording import INDEXED_CAUSES
from async_history._sqlite.index.levels import LEVELS, value_key, value_keys
from async_history._sqlite.index.validity import INDEX_IS_VALID, INDEXED_THROUGH, LOWEST_ROW

_OWNERS_KEPT: Final = 16_384
CAUSE: Final = "cause "
"""The kind of a cause's value is this and the cause's key; the kind of a scope is its name."""

SEPARATOR: Final = "\x1f"
"""The separator of a row's values outside its columns. JSON escapes it."""
HAS_OWNERS: Final = "EXISTS (SELECT 1 FROM main.async_history_owners)"
HAS_DETAILS: Final = f"({HAS_OWNERS} OR EXISTS (SELECT 1 FROM main.async_history_details))"
"""SQL conditions: any memory has an owner; any record has values outside its columns. SQLite
evaluates each once per statement."""


def json_of(text: str) -> str:
    """Return SQL for a stored JSON object or list; NULL for a value that is not JSON.

    SQLite's functions fail on such a value, and with them the whole statement.
    """
    return f"CASE WHEN typeof({text}) = 'text' AND json_valid({text}) THEN {text} END"


class IndexedValues(NamedTuple):
    """SQL for the values of a stored object that have entries: a table, the condition on it, and
    the key of a value, which may not be UTF-8."""

    table: str
    condition: str
    key: str


def _values_of(text: str, names: Iterable[str], kind: str) -> IndexedValues:
    listed = ", ".join(f"'{name}'" for name in names)
    return IndexedValues(
        f"json_each({json_of(text)}) AS said",
        f"said.key IN ({listed}) AND said.type = 'text'",
        f"async_history_key({kind}said.key, CAST(said.value AS BLOB))",
    )


_OWNER: Final = "owned.owner"
SCOPES_OF_OWNED: Final = _values_of(_OWNER, SCOPES, "")
CAUSES_OF_DETAIL: Final = _values_of("detail.cause", INDEXED_CAUSES, f"'{CAUSE}' || ")


LAST_OWNER: Final = "(SELECT coalesce(max(number), 0) FROM main.async_history_owners)"
"""SQL value: the highest number of an owner."""


class StoredOwner(NamedTuple):
    """A memory's owner, and its number."""

    owner: Owner
    number: int


class OwnerEntry(NamedTuple):
    """An owner as text, and the keys of its scopes."""

    text: str | None
    keys: tuple[int, ...]


@lru_cache(_OWNERS_KEPT)
def owner_entry(owner: Owner | None) -> OwnerEntry:
    """Return the values to write for an owner."""
    scopes = {} if owner is None else owner.as_dict()
    return OwnerEntry(owner_text(owner), tuple(value_key(*scope) for scope in scopes.items()))


def cause_keys(cause: Mapping[str, str]) -> list[int]:
    """Return the index's keys of a cause."""
    content = cause.content() if type(cause) is JsonObject else cause
    keys = []
    for name, text in content.items():
        key = _CAUSE_KEYS.get(name)
        if key is not None:
            keys.append(key(text))
    return keys


_CAUSE_KEYS: Final = {name: value_keys(f"{CAUSE}{name}") for name in INDEXED_CAUSES}


def cause_key(name: str, value: str) -> int:
    """Return the index's key of the records with a cause."""
    return value_key(f"{CAUSE}{name}", value)


def key_of(row: str) -> str:
    """Return SQL for the key of the memory of a row or an owner."""
    return f"async_history_key(CAST({row}.memory_id AS BLOB))"


def owner_number(key: str, memory_id: str, *, through_tail: bool = True) -> str:
    """Return an SQL value: the number of a memory's owner; NULL if it has none.

    Args:
        key, memory_id: SQL for the key and id of the memory.
        through_tail: whether to also search the owners without an entry.
    """
    entries = [
        f"SELECT {LOWEST_ROW} - position AS number FROM main.{level}"
        f" WHERE memory = {key} AND position < {LOWEST_ROW}"
        for level in LEVELS
    ]
    if through_tail:
        entries.append(
            "SELECT number FROM main.async_history_owners"
            " WHERE number > (SELECT owned_through FROM main.async_history_state)"
        )
    return f"""(
        SELECT owned.number FROM ({" UNION ALL ".join(entries)}) AS entry
        CROSS JOIN main.async_history_owners AS owned ON owned.number = entry.number
        WHERE owned.memory_id = {memory_id} LIMIT 1
    )"""


def is_unindexed(row: str) -> str:
    """Return an SQL condition: the row has no entries yet, so its owner is found by its memory."""
    return f"""(
        {row}.rowid > {INDEXED_THROUGH}
        OR {row}.rowid IN (SELECT position FROM main.async_history_strays)
    )"""


def has_memorys_owner(row: str) -> str:
    """Return an SQL condition on a row and `owned`, the owner that its details name, if it exists:
    readers find an owner for the row, or its memory has none.

    It is a CASE because SQLite evaluates both sides of an OR.
    """
    return f"""CASE
        WHEN owned.memory_id IS {row}.memory_id OR NOT {HAS_OWNERS} OR {is_unindexed(row)} THEN 1
        ELSE (
            SELECT {owner_number("keyed.memory", f"{row}.memory_id")} IS NULL
            FROM (SELECT {key_of(row)} AS memory LIMIT -1) AS keyed -- computes the key once
        )
    END"""


def _unindexed_owner(row: str, value: str) -> str:
    """Return SQL for a value of the owner of a row that was not indexed; NULL for other rows."""
    return f"""
        CASE WHEN {is_unindexed(row)}
        THEN CASE WHEN {INDEX_IS_VALID} AND NOT EXISTS (
            SELECT 1 FROM main.async_history_bereft AS reduced
            WHERE reduced.memory_id = {row}.memory_id
        ) THEN (
            SELECT {value} FROM main.async_history_owners AS owned
            WHERE owned.number = {owner_number(key_of(row), f"{row}.memory_id")}
        ) ELSE async_history_outdated() END END
    """


HAS_OWN_TRIGGER: Final = """EXISTS (
    SELECT 1 FROM main.sqlite_master WHERE type = 'trigger'
        AND name = 'async_history_owner_bereft' AND lower(tbl_name) = 'history'
)"""
_BELONGS: Final = f"""(
    {HAS_OWN_TRIGGER} OR EXISTS (
        SELECT 1 FROM async_history_details AS other JOIN history AS of_other
            ON of_other.id = other.id AND of_other.memory_id = owned.memory_id
        WHERE other.owner = owned.number
    )
)"""
"""SQL condition on `owned`: `history` is the table for which the owner was given, not a new one of
another program. (The triggers on a table are dropped with it.)"""


def _scanned_owner(row: str, value: str) -> str:
    """Return SQL for a value of the owner of a row, without an index."""
    return f"""(
        SELECT {value} FROM async_history_owners AS owned
        WHERE owned.memory_id = {row}.memory_id AND {_BELONGS} LIMIT 1
    )"""


def of_details(columns: str, row: str) -> str:
    """Return SQL for columns of `detail` and `owned`: a row's details, and its owner."""
    return f"""(
        SELECT {columns} FROM (SELECT 1)
        LEFT JOIN async_history_details AS detail ON detail.id = {row}.id
        LEFT JOIN async_history_owners AS owned
            ON owned.number = detail.owner AND owned.memory_id = {row}.memory_id
    )"""


class Details(NamedTuple):
    """SQL for a row's values outside its columns; `is_indexed`: whether the file has an index."""

    is_indexed: bool

    def _any_owner(self, row: str, value: str) -> str:
        find = _unindexed_owner if self.is_indexed else _scanned_owner
        return find(row, value)

    def owner(self, row: str, value: str = _OWNER) -> str:
        """Return SQL for the owner of a row as JSON; NULL if it has none.

        Args:
            row: the row of `history`.
            value: what to return instead: SQL on `owned`, the owner.
        """
        owner = f"coalesce({of_details(value, row)}, {self._any_owner(row, value)})"
        return f"CASE WHEN {HAS_OWNERS} THEN {owner} END" if self.is_indexed else owner

    def scope(self, row: str, name: str) -> str:
        """Return SQL for a scope of a row's owner; NULL if it has none, or a damaged owner."""
        return self.owner(row, f"json_extract({json_of(_OWNER)}, '$.{name}')")

    def says(self, row: str, key: str, value: str) -> str:
        """Return an SQL condition: a row's cause has this value under this key."""
        return f"""EXISTS (
            SELECT 1 FROM async_history_details AS detail
            CROSS JOIN json_each({json_of("detail.cause")}) AS said
            WHERE detail.id = {row}.id AND said.key = {key} AND said.value = {value}
        )"""

    def context(self, row: str) -> str:
        """Return SQL for the context of a row as JSON; NULL if it has none."""
        return f"(SELECT context FROM async_history_details WHERE id = {row}.id)"

    def cause(self, row: str) -> str:
        """Return SQL for the cause of a row as JSON; NULL if it has none."""
        return f"(SELECT cause FROM async_history_details WHERE id = {row}.id)"

    def besides(self, row: str, time_before: str) -> str:
        """Return SQL for the values that `rows.record_from_row` takes after a row's columns.

        If no record has details, it is only `time_before`, so that they cost nothing.
        """
        owner = f"coalesce({_OWNER}, {self._any_owner(row, _OWNER)})"
        values = (f"coalesce({time_before}, '-')", owner, "detail.context", "detail.cause")
        details = of_details(
            f" || char({ord(SEPARATOR)}) || ".join(f"coalesce({value}, '')" for value in values),
            row,
        )
        has_details = (
            HAS_DETAILS
            if self.is_indexed
            else "(EXISTS (SELECT 1 FROM async_history_owners)"
            " OR EXISTS (SELECT 1 FROM async_history_details))"
        )
        return f"CASE WHEN {has_details} THEN {details} ELSE {time_before} END"
