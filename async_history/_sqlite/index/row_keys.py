"""The keys of a row's entries in the levels."""

import json
import sqlite3
from collections.abc import Mapping, Sequence, Set
from typing import Final, NamedTuple

from async_history._sqlite.index.levels import value_key
from async_history._sqlite.index.owners import cause_keys, key_of

_KEYS_OF: Final = f"""
SELECT history.rowid, {key_of("history")}, CAST(owned.owner AS BLOB), CAST(detail.cause AS BLOB)
FROM main.history AS history
LEFT JOIN main.async_history_details AS detail ON detail.id = history.id
LEFT JOIN main.async_history_owners AS owned ON owned.number = detail.owner
WHERE history.rowid IN (SELECT value FROM json_each(?))
"""
_DETAILS_OF: Final = """
SELECT history.rowid, CAST(owned.owner AS BLOB), CAST(detail.cause AS BLOB)
FROM main.history AS history
CROSS JOIN main.async_history_details AS detail ON detail.id = history.id
LEFT JOIN main.async_history_owners AS owned ON owned.number = detail.owner
WHERE history.rowid IN (SELECT value FROM json_each(?))
"""


class RowKeys(NamedTuple):
    """The keys of a row's entries: of its memory, its owner's scopes, and its causes.

    Two of them may be equal. Then one entry is for both, and stays while one of them is needed.
    """

    position: int
    memory: int
    scopes: Mapping[str, int]
    causes: Set[int]

    def all(self) -> Set[int]:
        """Return every key of the row."""
        return {self.memory, *self.scopes.values(), *self.causes}

    def except_causes(self) -> Set[int]:
        """Return the keys that a row without causes has."""
        return {self.memory, *self.scopes.values()}

    def except_scope(self, scope: str) -> Set[int]:
        """Return the keys that the row has if its owner loses a scope."""
        others = (key for name, key in self.scopes.items() if name != scope)
        return {self.memory, *others, *self.causes}


def keys_of_rows(connection: sqlite3.Connection, places: Sequence[int]) -> list[RowKeys]:
    """Return the keys of rows, given by position. A damaged owner or cause has none.

    Entries of a value from before it was damaged stay; readers check what they find.
    """
    encoding = _encoding(connection)
    rows = connection.execute(_KEYS_OF, (json.dumps(places),)).fetchall()
    return [
        RowKeys(
            place,
            memory,
            _scope_keys(owner, encoding),
            frozenset(cause_keys(_texts(cause, encoding))),
        )
        for place, memory, owner, cause in rows
    ]


def keys_of_details(connection: sqlite3.Connection, places: Sequence[int]) -> list[tuple[int, int]]:
    """Return the keys of rows except those of their memories, each with the row's position."""
    encoding = _encoding(connection)
    of_owners: dict[bytes | None, Sequence[int]] = {}
    entries: list[tuple[int, int]] = []
    for place, owner, cause in connection.execute(_DETAILS_OF, (json.dumps(places),)).fetchall():
        scopes = of_owners.get(owner)
        if scopes is None:
            scopes = of_owners[owner] = list(_scope_keys(owner, encoding).values())
        entries += [(key, place) for key in scopes]
        if cause is not None:
            entries += [(key, place) for key in cause_keys(_texts(cause, encoding))]
    return entries


def _encoding(connection: sqlite3.Connection) -> str:
    ((encoding,),) = connection.execute("PRAGMA encoding").fetchall()
    return str(encoding)


def _scope_keys(owner: bytes | None, encoding: str) -> dict[str, int]:
    return {scope: value_key(scope, value) for scope, value in _texts(owner, encoding).items()}


def _texts(stored: bytes | None, encoding: str) -> dict[str, str]:
    """Return the texts in a JSON object; none if the value is not one."""
    if stored is None:
        return {}
    try:
        parsed = json.loads(stored.decode(encoding, "replace"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(parsed, dict):
        return {}
    # A lone surrogate, which JSON can escape, has no bytes.
    return {
        name: value.encode(errors="replace").decode()
        for name, value in parsed.items()
        if isinstance(value, str)
    }
