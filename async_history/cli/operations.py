"""`async-history operations`: what was done to a store itself, for a person or as JSON lines."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from functools import partial

import typer

from async_history import StoreOperation
from async_history.cli import stores
from async_history.cli.screen import Screen
from async_history.cli.terminal import escape_controls, print_error
from async_history.cli.termination import run

_POLL_INTERVAL_S = 0.5
_STYLES = {"finished": "dim", "failed": "bold red", "unfinished": "bold yellow"}


def operations(url: str, *, as_json: bool) -> None:
    """List the operations of a store, oldest first."""
    show = _print_json if as_json else partial(_print_operation, Screen())

    async def ask() -> list[StoreOperation]:
        async with stores.open_to_read(url) as history:
            return await history.operations()

    found = run(ask())
    for one in found:
        show(one)
    if not found:
        print_error(f"no operation is logged in {url}")


def follow(url: str, *, as_json: bool) -> None:
    """Show operations as they begin, and again as they end, after those that are logged.

    It ends by an error or a KeyboardInterrupt.
    """
    run(_follow(url, _print_json if as_json else partial(_print_operation, Screen())))


async def _follow(url: str, show: Callable[[StoreOperation], None]) -> None:
    shown: dict[str, str] = {}
    async with stores.open_to_read(url) as history:
        while True:
            for one in await history.operations():
                if shown.get(one.id) != one.state:
                    show(one)
                    shown[one.id] = one.state
            await asyncio.sleep(_POLL_INTERVAL_S)


def _print_json(one: StoreOperation) -> None:
    fields = {**asdict(one), "state": one.state}
    typer.echo(json.dumps(fields, default=datetime.isoformat, ensure_ascii=False).encode())


def _print_operation(screen: Screen, one: StoreOperation) -> None:
    begun = one.begun_at.isoformat(sep=" ", timespec="milliseconds")
    state = one.state if one.error is None else f"{one.state}: {one.error}"
    counts = f"  {one.records:,} records, {one.messages:,} messages"
    screen.line(
        (begun, "dim"), (f"  {one.kind}", "bold"), (counts, ""), (f"  {state}", _STYLES[one.state])
    )
    process = None if one.process_id is None else f"{one.process_id} on {one.host}"
    for name, value in (
        ("actor", one.actor_id),
        ("process", process),
        ("database role", one.database_role),
        ("arguments", json.dumps(one.arguments, ensure_ascii=False) if one.arguments else None),
        ("id", one.id),
    ):
        if value:
            screen.line((f"{name}: ", "dim"), (escape_controls(value), ""), indent="  ")
