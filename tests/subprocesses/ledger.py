"""One of several processes that write one ledger.

    python -m tests.subprocesses.ledger URL NAME

Prints "ready" when it has written, and goes on until its standard input is closed.
"""

import asyncio
import itertools
import sys
from datetime import timedelta

from async_history import open_history
from tests.subprocesses.same_file import is_told_to_finish, ready


async def write(url: str, name: str) -> None:
    async with open_history(url, ledger=True) as history:
        for turn in itertools.count():
            await asyncio.gather(
                *(
                    history.add_history(
                        f"{name} {turn} {n}", None, "likes tea", "ADD", owner={"user_id": name}
                    )
                    for n in range(20)
                )
            )
            if turn % 4 == 0:
                await history.erase(memory_ids=[f"{name} {turn} 0"], reason="asked", vacuum=False)
                await history.prune(older_than=timedelta(seconds=1), keep_last=0)
            if turn == 0:
                ready()
            if is_told_to_finish():
                return


if __name__ == "__main__":
    asyncio.run(write(*sys.argv[1:]))
