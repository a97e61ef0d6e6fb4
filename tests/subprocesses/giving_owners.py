"""Gives memories an owner, in a separate process, as fast as it can.

    python -m tests.subprocesses.giving_owners URL USER COUNT

Prints "ready" once its history is open, and begins when its standard input is closed. Prints, as
JSON, the memories `m0`, `m1`, … to which it gave that owner.
"""

import asyncio
import json
import sys

from async_history import OwnerConflict, open_history


async def main(url: str, user_id: str, count: int) -> None:
    async with open_history(url) as history:
        print("ready", flush=True)  # noqa: T201 - the test waits for this line
        await asyncio.to_thread(sys.stdin.read)

        async def give(name: str) -> bool:
            try:
                await history.add_history(name, None, "x", "UPDATE", owner={"user_id": user_id})
            except OwnerConflict:
                return False
            return True

        names = [f"m{number}" for number in range(count)]
        given = await asyncio.gather(*map(give, names))
        print(json.dumps([name for name, is_given in zip(names, given, strict=True) if is_given]))  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
