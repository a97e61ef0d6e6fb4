"""`async-history tail`: changes as they are committed, for a person or as JSON lines."""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from async_history import HistoryManager, HistoryRecord, InvalidInput
from async_history.cli import stores
from async_history.cli.log import print_change, print_json
from async_history.cli.screen import Screen
from async_history.cli.terminal import print_error
from async_history.cli.termination import run

_LAST = 10
"""Records shown first by default, as the lines of tail(1)."""


Wanted = Mapping[str, Any]
"""Arguments of both `follow` and `query_history`: which changes to show."""


def tail(url: str, *, last: int | None, after: str | None, wanted: Wanted, as_json: bool) -> None:
    """Show changes as they are committed. It ends with an error or a KeyboardInterrupt."""
    if after is not None and last is not None:
        raise InvalidInput("--last and --after exclude each other: give one")
    show = print_json if as_json else partial(print_change, Screen())
    run(_tail(url, _LAST if last is None else last, after, wanted, show))


async def _tail(
    url: str,
    last: int,
    after: str | None,
    wanted: Wanted,
    show: Callable[[HistoryRecord], None],
) -> None:
    async with stores.open_to_read(url) as history:
        shown: set[str] = set()
        if after is None:
            # Take the cursor first: a record committed in between comes twice, and is shown once.
            after = await history.end_cursor()
            for record in await _last(history, wanted, last):
                show(record)
                shown.add(record.id)
        follower = history.follow(after=after, **wanted)
        try:
            async for record in follower:
                if record.id not in shown:
                    show(record)
        except asyncio.CancelledError:
            if follower.cursor is not None:
                print_error(f"to continue from here: --after {follower.cursor}")
            raise


async def _last(history: HistoryManager, wanted: Wanted, count: int) -> list[HistoryRecord]:
    """Return the last `count` records, oldest first."""
    newest = history.query_history(**wanted, order="newest", limit=count)
    return [record async for record in newest][::-1]
