"""`write URL NAME COUNT` records so many, in order. `read URL CURSOR COUNT` follows so many.

The reader prints the texts that it gets, one a line. CURSOR `-` is the beginning.
"""

import asyncio
import sys
from contextlib import AbstractAsyncContextManager, aclosing

from async_history import HistoryManager, HistoryOptions, StorageUnreachable, open_history
from tests.support.patience import LONG_S


async def opened(url: str) -> AbstractAsyncContextManager[HistoryManager]:
    """Open a history, even while its server restarts. It survives later restarts too."""
    options: HistoryOptions = {}
    if "://" in url and not url.startswith("sqlite"):
        options["retry_timeout_s"] = LONG_S
    while True:
        try:
            return aclosing(await open_history(url, **options))
        except StorageUnreachable:
            await asyncio.sleep(0.1)


async def write(url: str, name: str, count: int) -> None:
    async with await opened(url) as history:
        for number in range(0, count, 2):
            batch = [
                {"memory_id": name, "new_memory": f"{name} {n}", "event": "UPDATE"}
                for n in range(number, number + 2)
            ]
            await history.batch_add_history(batch)


async def read(url: str, cursor: str, count: int) -> None:
    async with await opened(url) as history:
        async for record in history.follow(after=None if cursor == "-" else cursor):
            sys.stdout.write(f"{record.new_memory}\n")
            count -= 1
            if not count:
                return


if __name__ == "__main__":
    role, url, what, count = sys.argv[1:]
    asyncio.run({"write": write, "read": read}[role](url, what, int(count)))
