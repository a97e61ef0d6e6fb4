"""Erased names: storing them, and the SQL that finds them."""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from async_history._core.writing.erased_names import (
    MEMORY,
    Name,
    from_microseconds,
    microseconds,
    name_digest,
)
from async_history._sqlite.index.levels import memory_key

HAS_ERASED: Final = "EXISTS (SELECT 1 FROM main.async_history_erased)"
"""SQL condition: any name was erased. SQLite evaluates it once per statement."""
LAST_NOTED: Final = "coalesce((SELECT max(noted) FROM main.async_history_erased), 0)"
"""SQL value: a number that changes when a name is erased; 0 if none was."""
AS_NOTED: Final = f"""(
    {LAST_NOTED} = ? AND coalesce((SELECT max(at) FROM main.async_history_erased), -1) < ?
)"""
"""SQL condition: the last erasure of names is the known one, and before the written calls began."""
HAS_ERASED_MEMORY: Final = "(SELECT max(memory) FROM main.async_history_erased) IS NOT NULL"
"""SQL condition: a memory was erased with its owner."""
NONE_ERASED_SINCE: Final = f"(NOT {HAS_ERASED} OR (NOT {HAS_ERASED_MEMORY} AND {AS_NOTED}))"
"""SQL condition: no memory was erased since the calls of the written records began."""
IS_ERASED: Final = "EXISTS (SELECT 1 FROM main.async_history_erased WHERE memory = new.memory)"
"""SQL condition of a trigger: a memory with the same key as the new record's was erased."""
_FIND: Final = """
SELECT digest, at FROM main.async_history_erased
WHERE digest IN (SELECT value FROM json_each(?))
"""
_NOTE: Final = """
INSERT INTO main.async_history_erased (digest, at, noted, memory) VALUES (?, ?, ?, ?)
ON CONFLICT (digest) DO UPDATE SET at = max(at, excluded.at), noted = excluded.noted
"""


def erased_names(connection: sqlite3.Connection, names: Sequence[Name]) -> Mapping[Name, datetime]:
    """Return when names were erased, without those that were not."""
    digests = {name_digest(name).hex(): name for name in names}
    found = connection.execute(_FIND, (json.dumps(list(digests)),)).fetchall()
    return {digests[digest]: from_microseconds(at) for digest, at in found}


def note_erased(connection: sqlite3.Connection, names: Sequence[Name], at: datetime) -> None:
    """Note that names were erased."""
    instant = microseconds(at)
    ((last,),) = connection.execute(f"SELECT {LAST_NOTED}").fetchall()
    connection.executemany(
        _NOTE,
        [
            (
                name_digest(name).hex(),
                instant,
                last + 1,
                memory_key(name[1]) if name[0] == MEMORY else None,
            )
            for name in names
        ],
    )
