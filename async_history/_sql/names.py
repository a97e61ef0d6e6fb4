"""Names in indexed columns: of bounded length, and compared byte by byte.

The keys of an index have a few hundred bytes at most, but a name may have any length. The indexed
column holds the beginning and a digest of a long name; the column `long_names` holds all of it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

from async_history._core.records.owners import SCOPES
from async_history.errors import StorageCorrupt

NAME_BYTES: Final = 255
"""The longest name that is stored unchanged, in bytes of UTF-8."""
_BEGINNING: Final = 160
_MARK: Final = "\x1f"
"""The mark between beginning and digest. A name that contains it is stored as a long one."""

NAMES: Final = ("id", "memory_id", "event", "actor_id", "role", *SCOPES)
"""The columns of a record that hold names."""


def key_of(name: str) -> str:
    """Return a name as it is stored in its column."""
    size = len(name) if name.isascii() else len(name.encode())
    if size <= NAME_BYTES and _MARK not in name:
        return name
    whole = name.encode()
    beginning = whole[:_BEGINNING].decode(errors="ignore")
    return f"{beginning}{_MARK}{sha256(whole).hexdigest()}"


def all_are_keys(names: Sequence[str]) -> bool:
    """Return whether all names are stored unchanged."""
    joined = "".join(names)
    if joined.isascii() and _MARK not in joined:
        return max(map(len, names), default=0) <= NAME_BYTES
    return all(key_of(name) is name for name in names)


def keys_of(names: Iterable[str]) -> list[str]:
    """Return names as they are stored in their columns, without duplicates."""
    return list(dict.fromkeys(map(key_of, names)))


def is_cut(key: str) -> bool:
    """Return whether a column's text stands for a longer name."""
    return _MARK in key


def long_names(names: Mapping[str, str | None]) -> str | None:
    """Return the names, by column, that are not stored unchanged; None if all are."""
    cut = {
        column: name
        for column, name in names.items()
        if name is not None and key_of(name) is not name
    }
    return json.dumps(cut, ensure_ascii=False) if cut else None


def whole_names(row: Sequence[Any], columns: Sequence[str], stored: str) -> list[Any]:
    """Return a row with the whole names from `long_names`.

    A column's text that does not stand for the name there is returned as it is.

    Raises:
        StorageCorrupt: `long_names` is not a JSON object.
    """
    try:
        cut = json.loads(stored)
    except (ValueError, RecursionError):
        cut = None
    if not isinstance(cut, dict):
        raise StorageCorrupt(
            f"long_names of the row with {columns[0]} {row[0]!r} is damaged: it is not a JSON "
            "object; restore the row from a backup"
        )
    return [
        _whole_name(value, cut.get(column)) if isinstance(value, str) and is_cut(value) else value
        for column, value in zip(columns, row, strict=True)
    ]


def _whole_name(key: str, name: object) -> str:
    return name if isinstance(name, str) and key_of(name) == key else key
