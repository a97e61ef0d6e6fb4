"""`async-history at`, `diff` and `restore`: a memory at a time, its changes, and restoring it."""

import sys
from collections.abc import Mapping
from typing import Any

import typer

from async_history import HistoryRecord, InvalidInput, MemoryDiff
from async_history._core.reading.restoration import (
    Restoration,
    append_restoration,
    restoration_of,
)
from async_history._core.reading.timeline import Moment
from async_history._core.records.recording import operation
from async_history._core.records.rows import fields_of
from async_history._core.records.values import parse_time
from async_history._core.wording import counted
from async_history._opening import without_secrets
from async_history.cli import stores
from async_history.cli.confirmation import confirm
from async_history.cli.difference import difference, metadata_changes
from async_history.cli.log import headline, print_difference
from async_history.cli.screen import Screen
from async_history.cli.terminal import (
    echo_json,
    escape_controls,
    one_line,
    print_error,
    show_progress,
)
from async_history.cli.termination import run

_INDENT = "    "


def at(url: str, when: str, memory_id: str | None, *, as_json: bool) -> int:
    """Show the text of one memory or all at a moment; return the exit status."""
    shown = _Shown(as_json=as_json)
    run(_show_at(url, _moment(when), memory_id, shown))
    if not shown.count:
        what = "no memory" if memory_id is None else memory_id
        print_error(f"{what} was {'' if memory_id is None else 'not '}there at {when} in {url}")
        return 1
    return 0


async def _show_at(url: str, when: Moment, memory_id: str | None, shown: "_Shown") -> None:
    async with stores.open_to_read(url) as history:
        if memory_id is not None:
            record = await history.memory_at(memory_id, when)
            if record is not None:
                shown.show(record)
            return
        if isinstance(when, int):
            raise InvalidInput("a version number is one memory's: name the memory too, or a time")
        async with show_progress(
            None, lambda: shown.count, "memories", is_wanted=not sys.stdout.isatty()
        ):
            async for record in history.memories_at(when):
                shown.show(record)


class _Shown:
    """Shows the current records one after the other, and counts them."""

    def __init__(self, *, as_json: bool) -> None:
        self.count = 0
        self._screen = None if as_json else Screen()

    def show(self, record: HistoryRecord) -> None:
        self.count += 1
        if self._screen is None:
            echo_json(fields_of(record))
            return
        if self.count > 1:
            self._screen.line()
        self._screen.line((one_line(record.memory_id), "bold"))
        self._screen.line(*headline(record))
        _print_text(self._screen, record.new_memory)


def memories(url: str, owner: Mapping[str, str | None], *, as_json: bool) -> int:
    """Show an owner's memories, with their latest text; return the exit status."""
    shown = _Shown(as_json=as_json)

    async def show_all() -> None:
        async with stores.open_to_read(url) as history:
            async for record in history.memories(**owner):
                shown.show(record)

    run(show_all())
    if not shown.count:
        print_error(f"this owner has no memory in {url}")
        return 1
    return 0


def diff(url: str, memory_id: str, start: str, end: str, *, as_json: bool) -> int:
    """Show how a memory differs between two moments; return the exit status."""

    async def ask() -> MemoryDiff:
        async with stores.open_to_read(url) as history:
            return await history.diff(memory_id, _moment(start), _moment(end))

    found = run(ask())
    was_there = found.before is not None or found.after is not None
    if as_json:
        echo_json(
            {
                "memory_id": memory_id,
                "old_memory": found.old_memory,
                "new_memory": found.new_memory,
                "before": found.before and fields_of(found.before),
                "after": found.after and fields_of(found.after),
                "between": [fields_of(record) for record in found.between],
            }
        )
    elif was_there:
        _print_diff(Screen(), found, f"{start} → {end} in {without_secrets(url)}")
    if not was_there:
        print_error(f"{memory_id} was there neither at {start} nor at {end} in {url}")
    return 0 if was_there else 1


def _print_diff(screen: Screen, found: MemoryDiff, moments: str) -> None:
    screen.line(
        (one_line(found.memory_id), "bold"),
        (one_line(f"  {counted(len(found.between), 'change')}, {moments}"), "dim"),
    )
    for sign, record in (("-", found.before), ("+", found.after)):
        line = [("not there", "dim")] if record is None else headline(record)
        screen.line(*line, indent=f"{sign} ")
    _print_change(screen, found.old_memory, found.new_memory)


def restore(
    url: str,
    memory_id: str,
    to: str,
    *,
    actor_id: str | None,
    role: str | None,
    is_sure: bool,
    is_dry_run: bool,
    as_json: bool,
) -> int:
    """Restore a memory's text at a moment, or show the change; return the exit status."""
    moment = _moment(to)

    async def look() -> Restoration:
        async with stores.open_to_read(url) as history:
            with operation():
                records = await history.get_history(memory_id)
            return restoration_of(memory_id, records, moment)

    async def record_it() -> HistoryRecord:
        # Writes only what was shown: a change since then is a conflict.
        async with stores.opened(url, create=False) as history:
            return await append_restoration(history, plan, actor_id, role)

    plan = run(look())
    name = one_line(memory_id)
    if not plan.is_needed:
        typer.echo(f"{name} says that already: nothing to restore", err=as_json)
        if as_json:
            echo_json(fields_of(plan.latest))
        return 0
    if not as_json:
        _print_plan(Screen(), plan)
    if is_dry_run:
        if as_json:
            new = plan.record(actor_id, role)
            echo_json({**new, "context": _plain(plan.wanted.context)})
        typer.echo("nothing was recorded: this was a dry run", err=as_json)
        return 0
    if not is_sure and not confirm(f"Restore {name}?"):
        print_error("nothing was recorded")
        return 1
    record = run(record_it())
    if as_json:
        echo_json(fields_of(record))
    else:
        typer.echo(f"restored {name} in {without_secrets(url)}")
    return 0


def _print_plan(screen: Screen, plan: Restoration) -> None:
    for sign, record in (("-", plan.latest), ("+", plan.wanted)):
        screen.line(*headline(record), indent=f"{sign} ")
    _print_change(screen, plan.latest.new_memory, plan.wanted.new_memory)
    print_difference(screen, metadata_changes(plan.latest.context, plan.wanted.context))


def _moment(text: str) -> Moment:
    """Parse a time or a version number.

    Raises:
        InvalidInput: it is neither a time nor a number.
    """
    if text.isdecimal():
        return int(text)
    moment = parse_time(text)
    if moment is None:
        raise InvalidInput(
            f"{text!r} is neither a time such as 2026-11-20T09:41:15+00:00 nor a version number"
        )
    return moment


def _print_change(screen: Screen, before: str | None, after: str | None) -> None:
    if before == after:
        screen.line(("text unchanged", "dim"), indent=_INDENT)
    else:
        print_difference(screen, difference(before, after))


def _print_text(screen: Screen, text: str | None) -> None:
    if text is None:
        screen.line(("no text", "dim"), indent=_INDENT)
        return
    for line in text.split("\n"):
        screen.line((escape_controls(line), ""), indent=_INDENT)


def _plain(context: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if context is None else dict(context)
