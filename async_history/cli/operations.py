"""`async-history operations`: the log of operations, for a person or as JSON lines."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from functools import partial

from async_history import HistoryManager, StoreOperation
from async_history._core.operations.operations import OperationState
from async_history._core.wording import counted
from async_history.cli import stores
from async_history.cli.screen import Screen
from async_history.cli.terminal import echo_json, one_line, print_error
from async_history.cli.termination import run

_POLL_INTERVAL_S = 0.5
_PAGE = 100
"""Operations read at once."""
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
    """Show logged operations, then others when they begin and when they end.

    It ends with an error or a KeyboardInterrupt.
    """
    run(_follow(url, _print_json if as_json else partial(_print_operation, Screen())))


async def _follow(url: str, show: Callable[[StoreOperation], None]) -> None:
    async with stores.open_to_read(url) as history:
        followed = FollowedOperations(history)
        while True:
            for one in await followed.changed():
                show(one)
            await asyncio.sleep(_POLL_INTERVAL_S)


class FollowedOperations:
    """The operations of a history as they begin and end."""

    def __init__(self, history: HistoryManager) -> None:
        self._history = history
        self._states: dict[str, OperationState] = {}

    async def changed(self) -> list[StoreOperation]:
        """Return the operations that began or ended since the last call; at first, all.

        It reads the end of the log, and earlier operations that had not ended.
        """
        found = await self._history.operations(limit=_PAGE)
        while found and not any(one.id in self._states for one in found):
            before = await self._history.operations(before=found[0].id, limit=_PAGE)
            if not before:
                break
            found = [*before, *found]
        read = {one.id for one in found}
        open_still = [
            operation_id
            for operation_id, state in self._states.items()
            if state == "unfinished" and operation_id not in read
        ]
        for operation_id in open_still:
            found += await self._history.store.operations.read(up_to=operation_id, limit=1)
        changed = [one for one in found if self._states.get(one.id) != one.state]
        self._states.update((one.id, one.state) for one in changed)
        return changed


def _print_json(one: StoreOperation) -> None:
    fields = {**asdict(one), "state": one.state}
    echo_json(fields, datetime.isoformat)


def _print_operation(screen: Screen, one: StoreOperation) -> None:
    begun = one.begun_at.isoformat(sep=" ", timespec="milliseconds")
    state = one.state if one.error is None else f"{one.state}: {one.error}"
    counts = f"  {counted(one.records, 'record')}, {counted(one.messages, 'message')}"
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
            screen.line((f"{name}: ", "dim"), (one_line(value), ""), indent="  ")
