"""`write URL NAME COUNT`: record so many, in order. `read URL CURSOR COUNT`: follow so many.

The reader prints the texts it was given, one a line; CURSOR `-` is the beginning.
"""

import asyncio
import sys

from async_history import HistoryManager, open_history
from tests.support.patience import LONG_S


def opened(url: str) -> HistoryManager:
    """Return a manager, which outlasts a server's restart on a busy machine."""
    is_of_server = "://" in url and not url.startswith("sqlite")
    return open_history(url, retry_timeout_s=LONG_S) if is_of_server else open_history(url)


async def write(url: str, name: str, count: int) -> None:
    async with opened(url) as history:
        for number in range(0, count, 2):
            batch = [
                {"memory_id": name, "new_memory": f"{name} {n}", "event": "UPDATE"}
                for n in range(number, number + 2)
            ]
            await history.batch_add_history(batch)


async def read(url: str, cursor: str, count: int) -> None:
    async with opened(url) as history:
        async for record in history.follow(after=None if cursor == "-" else cursor):
            sys.stdout.write(f"{record.new_memory}\n")
            count -= 1
            if not count:
                return


if __name__ == "__main__":
    role, url, what, count = sys.argv[1:]
    asyncio.run({"write": write, "read": read}[role](url, what, int(count)))
