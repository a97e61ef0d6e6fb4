"""A program whose `sqlite3` has only what pysqlite3 has, as where it is put in its place.

    python -m tests.subprocesses.replaced_driver FILE

Programs that use Chroma do that: `sys.modules["sqlite3"] = pysqlite3`.
"""

import asyncio
import sqlite3
import sys
from pathlib import Path

import pytest

_MISSING_NAMES = ("LIMIT_", "READONLY_", "IOERR_", "CONSTRAINT_", "CANTOPEN_", "BUSY_", "LOCKED_")
_MISSING_METHODS = ("blobopen", "deserialize", "getlimit", "iterdump", "serialize", "setlimit")


class _Connection(sqlite3.Connection):
    def __getattribute__(self, name: str) -> object:
        if name in _MISSING_METHODS:
            raise AttributeError(name)
        return super().__getattribute__(name)


def _set_primary_code(error: sqlite3.Error, code: int) -> None:
    error.__dict__["sqlite_errorcode"] = code & 0xFF


def _primary_code(error: sqlite3.Error) -> int:
    try:
        code: int = error.__dict__["sqlite_errorcode"]
    except KeyError:
        raise AttributeError("sqlite_errorcode") from None
    return code


def replace_driver() -> None:
    code = property(_primary_code, _set_primary_code)
    sqlite3.Error.sqlite_errorcode = code  # type: ignore[assignment]
    for name in dir(sqlite3):
        if name.removeprefix("SQLITE_").startswith(_MISSING_NAMES):
            delattr(sqlite3, name)
    sqlite3.Connection = _Connection  # type: ignore[misc]


async def use(path: Path) -> None:
    from async_history import IdConflict, StorageCorrupt, StorageMissing, open_history

    async with open_history(path) as history:
        await asyncio.gather(
            *(history.add_history(f"m{n}", None, "text", "ADD", id=str(n)) for n in range(300)),
            *(
                history.add_history(f"o{n}", None, "text", "ADD", owner={"user_id": str(n % 3)})
                for n in range(300)
            ),
        )
        with pytest.raises(IdConflict):
            await history.add_history("m0", None, "other", "ADD", id="0")
        await history.update_history("m1", "new")
        await history.save_messages([{"role": "user", "content": "hello"}], "user_id=1")
        assert (await history.erase(user_id="1", reason="asked")).records == 100
        await history.backup(path.with_name("copy.db"))
        assert not (await history.check()).problems
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE history SET new_memory = CAST(x'ff' AS TEXT) WHERE id = '2'")
    connection.close()
    async with open_history(path) as history:
        with pytest.raises(StorageCorrupt):
            await history.get_history("m2")
        path.rename(path.with_name("moved.db"))
        with pytest.raises(StorageMissing):
            await history.add_history("m", None, "text", "ADD")
        path.with_name("moved.db").rename(path)
        await history.add_history("m", None, "text", "ADD")


if __name__ == "__main__":
    replace_driver()
    asyncio.run(use(Path(sys.argv[1])))
