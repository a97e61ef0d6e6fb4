"""A program that has a history open, with a record of its own, until it is told to end.

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
