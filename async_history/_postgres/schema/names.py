"""Names of schemas and tables in statements."""

from functools import cache
from typing import Final

from async_history._core.records.values import check_name
from async_history.errors import InvalidInput

_LONGEST_NAME_BYTES: Final = 63
"""PostgreSQL silently truncates longer names."""


def quoted(name: str, kind: str = "schema") -> str:
    """Return the name of a schema, or of an object of another kind, quoted for SQL.

    Raises:
        InvalidInput: it is not a valid name.
    """
    check_name(kind, name)
    if len(name.encode()) > _LONGEST_NAME_BYTES:
        raise InvalidInput(f"{kind} must have at most {_LONGEST_NAME_BYTES} bytes, not {name!r}")
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


@cache
def in_schema(statement: str, schema: str) -> str:
    """Return a statement with `{schema}` replaced by a quoted name."""
    return statement.format(schema=schema)
