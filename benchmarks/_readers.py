"""All the ways to read a history at the same time, in this process or in a separate one.

    python -m benchmarks._readers URL SCHEMA FOLDER

reads until its stdin ends.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from async_history import HistoryManager, HistoryOptions, open_history
from async_history.sqlite import SQLiteHistoryManager

_READS: bytes = b"reads\n"


@asynccontextmanager
async def reading(history: HistoryManager, folder: Path) -> AsyncIterator[None]:
    """During the body, query all records, back up, and follow commits."""

    async def walk() -> None:
        async for _ in history.query_history():
            pass

    async def back_up() -> None:
        if isinstance(history, SQLiteHistoryManager):
            await history.backup(folder / "backup.db")
            (folder / "backup.db").unlink()

    async def follow(after: str | None) -> None:
        async for _ in history.follow(after=after):
            pass

    following = asyncio.create_task(follow(await history.end_cursor()))
    once = [asyncio.create_task(walk()), asyncio.create_task(back_up())]
    try:
        yield
        await asyncio.gather(*once)
    finally:
        for task in (*once, following):
            task.cancel()
        for done in await asyncio.gather(*once, following, return_exceptions=True):
            if isinstance(done, Exception):
                raise done


@asynccontextmanager
async def reading_elsewhere(url: str, schema: str, folder: Path) -> AsyncIterator[None]:
    """During the body, do the same in another process."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks._readers", url, schema, str(folder)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if await process.stdout.readline() != _READS:
            raise RuntimeError("the process that was to read did not begin")
        yield
    finally:
        process.stdin.close()
        if await process.wait():
            raise RuntimeError("the process that read failed")


async def main(url: str, schema: str, folder: str) -> None:
    """Read until stdin ends."""
    options: HistoryOptions = {"schema": schema} if schema else {}
    async with open_history(url, **options) as history, reading(history, Path(folder)):
        sys.stdout.buffer.write(_READS)
        sys.stdout.buffer.flush()
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
