"""`async-history query`: the changes that match, for a person or as JSON lines."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final

import typer

from async_history import InvalidInput
from async_history._core.reading.filters import Order
from async_history._core.records.values import parse_time
from async_history.cli import stores
from async_history.cli.log import print_change, print_json
from async_history.cli.retention import instant
from async_history.cli.screen import Screen
from async_history.cli.terminal import print_error
from async_history.cli.termination import run

LIMIT: Final = 100
"""Changes shown by default: a few screens."""

Wanted = Mapping[str, Any]
"""Arguments of `query_history` and `count_history`."""


def wanted(
    *,
    memories: Sequence[str] | None,
    since: str | None,
    until: str | None,
    **others: Any,
) -> Wanted:
    """Return the filter of the options.

    Raises:
        InvalidInput: a time is not valid.
    """
    if others.get("event") is not None:
        others["event"] = str(others["event"]).upper()
    return {
        **others,
        "memory_id": memories or None,
        "since": _time("--since", since),
        "until": _time("--until", until),
    }


def _time(option: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return parse_time(text) or instant(text)
    except InvalidInput as error:
        raise InvalidInput(f"{option}: {error}") from None


def query(url: str, asked: Wanted, *, order: Order, limit: int | None, as_json: bool) -> int:
    """Show the changes that match on stdout; return the exit status.

    Args:
        limit: the largest number of changes to show, 0 for all. None means `LIMIT`, with a line on
            stderr if there are more.
    """
    show = print_json if as_json else partial(print_change, Screen())
    wanted = LIMIT + 1 if limit is None else limit or None

    async def show_all() -> int:
        shown = 0
        async with stores.open_to_read(url) as history:
            async for record in history.query_history(**asked, order=order, limit=wanted):
                if limit is None and shown == LIMIT:
                    print_error(f"there are more than these {LIMIT:,}; --limit 0 shows all")
                    break
                show(record)
                shown += 1
        return shown

    if run(show_all()):
        return 0
    print_error(f"nothing in {url} matches")
    return 1


def count(url: str, asked: Wanted, *, as_json: bool) -> None:
    """Show how many changes match."""

    async def ask() -> int:
        async with stores.open_to_read(url) as history:
            return await history.count_history(**asked)

    found = run(ask())
    typer.echo(json.dumps({"count": found}) if as_json else str(found))
