"""A program that writes a record and keeps the history open until its standard input closes.

python -m tests.subprocesses.holding_open PATH
"""

import asyncio
import sys

from async_history import open_history


async def main(path: str) -> None:
    async with open_history(path) as history:
        await history.add_history("m", None, "other", "ADD")
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


asyncio.run(main(sys.argv[1]))
