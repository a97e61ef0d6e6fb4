# ruff: noqa: E402
# mypy: disable-error-code=import-untyped
"""A program that has pysqlite3 in the place of `sqlite3`.

    python -m tests.subprocesses.replaced_driver use|fork FILE

Programs that use Chroma put it there.
"""

import asyncio
import sys
from pathlib import Path

import pysqlite3
import pytest

sys.modules["sqlite3"] = pysqlite3

from async_history import IdConflict, StorageCorrupt, StorageMissing, open_history
from tests.subprocesses import forking


async def use(path: Path) -> None:
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
    with pysqlite3.connect(path) as connection:
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


async def fork(path: Path) -> None:
    """Fork while another thread runs a statement, in which a newer SQLite waits more often."""
    await forking.in_use(str(path))


if __name__ == "__main__":
    asyncio.run({"use": use, "fork": fork}[sys.argv[1]](Path(sys.argv[2])))
