# mypy: disable-error-code=import-untyped
"""Whether the connections of a user's pool read and write values as asyncpg does by itself."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import asyncpg

from async_history.errors import InvalidInput

_VALUES: Final[Mapping[str, Any]] = {
    "bool": True,
    "int4": 7,
    "int8": 7,
    "text": "tea",
    "timestamptz": datetime(2026, 1, 1, tzinfo=UTC),
    "bytea": b"tea",
}
"""A value of each type that statements give to the server, or get from it."""
USED: Final = tuple(name for name in _VALUES if name != "int8")
"""The types that must have asyncpg's own codecs. Programs often read int8 as text, for JSON. So
numbers of this type are converted with `int`."""
USED_WITH_KEYS_OR_LEDGER: Final = tuple(_VALUES)
"""The same in a history with keys or a ledger, whose numbers are not converted."""


async def require_own_codecs(connection: Any, types: Sequence[str]) -> None:
    """Check that a connection has no codecs of the user's for some types.

    Raises:
        InvalidInput: it has some.
    """
    changed = [name for name in types if not await _is_given_back(connection, name, _VALUES[name])]
    if changed:
        raise InvalidInput(
            f"the pool has codecs of its own (set_type_codec) for {', '.join(changed)}, so a "
            "history's values would be read wrong: give it a pool without them, or a URL"
        )


async def _is_given_back(connection: Any, name: str, value: object) -> bool:
    try:
        read = await connection.fetchval(f"SELECT $1::pg_catalog.{name}", value)
    except asyncpg.DataError:  # an encoder does not take such a value
        return False
    return type(read) is type(value) and read == value
