"""`async-history rollback` and `undo`: show the plan, ask, and take the memories back."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from datetime import datetime
from functools import partial
from typing import Any, Final

import typer

from async_history import (
    HistoryError,
    HistoryManager,
    InvalidInput,
    RollbackAction,
    RollbackReport,
    RollbackStep,
)
from async_history._core.records.values import parse_time
from async_history._core.wording import counted
from async_history._opening import without_secrets
from async_history.cli import stores
from async_history.cli.confirmation import require_an_answer
from async_history.cli.screen import Screen
from async_history.cli.terminal import echo_json, one_line, print_error, show_share
from async_history.cli.termination import early_end, run

TakeBack = Callable[..., Awaitable[RollbackReport]]
"""`rollback` or `undo` of a manager with its arguments, except `dry_run` and `on_progress`."""

_STYLES: Final = {
    RollbackAction.RESTORE: "green",
    RollbackAction.DELETE: "red",
    RollbackAction.NOTHING: "dim",
    RollbackAction.CONFLICT: "bold yellow",
}


def rollback(
    url: str,
    to: str,
    owner: Mapping[str, Any],
    memory_ids: Sequence[str] | None,
    who: Mapping[str, Any],
    *,
    is_dry_run: bool,
    is_sure: bool,
    as_json: bool,
) -> int:
    """Take memories back to an instant, or show the plan; return the exit status.

    Args:
        to: the instant, as ISO 8601 text. An age would be another instant in the next call.
        owner, memory_ids: the owner of the memories, or the memories.
        who: `actor_id` and `role` of the new records.
    """
    call = partial(HistoryManager.rollback, to=_instant(to), memory_ids=memory_ids, **owner, **who)
    return _take_back(url, call, is_dry_run=is_dry_run, is_sure=is_sure, as_json=as_json)


def undo(
    url: str,
    run_id: str | None,
    cause: Mapping[str, str] | None,
    who: Mapping[str, Any],
    *,
    is_dry_run: bool,
    is_sure: bool,
    as_json: bool,
) -> int:
    """Take back the changes of a run or a cause, or show the plan; return the exit status."""
    call = partial(HistoryManager.undo, run_id=run_id, cause=cause, **who)
    return _take_back(url, call, is_dry_run=is_dry_run, is_sure=is_sure, as_json=as_json)


def _instant(text: str) -> datetime:
    moment = parse_time(text) if "-" in text else None
    if moment is None:
        raise InvalidInput(f"{text!r} is not a time such as 2026-11-20T09:41:15+00:00")
    return moment


def _take_back(url: str, call: TakeBack, *, is_dry_run: bool, is_sure: bool, as_json: bool) -> int:
    """Carry out if `is_sure`; otherwise show the plan, and ask."""
    require_an_answer("taken back", is_dry_run=is_dry_run, is_sure=is_sure)
    if is_dry_run or not is_sure:
        plan = run(_Work().report(stores.open_to_read(url), call, dry_run=True))
        changes = plan.restored + plan.deleted
        if is_dry_run or not changes:
            return _show(url, plan, as_json=as_json)
        if as_json:
            print_error(f"{without_secrets(url)}: {plan.outcome()}")
        else:
            _print_report(url, plan)
        if not typer.confirm(f"Change {counted(changes, 'memory', 'memories')}?", err=True):
            print_error("nothing was taken back")
            return 1
    work = _Work()
    try:
        report = run(work.report(stores.opened(url, create=False), call, dry_run=False))
    except KeyboardInterrupt:
        word, status = early_end()
        print_error(f"{word}: {work.progress()}")
        return status
    except InvalidInput:
        raise
    except HistoryError:
        if work.has_begun:
            print_error(work.progress())
        raise
    return _show(url, report, as_json=as_json)


class _Work:
    """One call and its progress."""

    def __init__(self) -> None:
        self.has_begun = False
        self._done = self._total = 0

    async def report(
        self,
        opening: AbstractAsyncContextManager[HistoryManager],
        call: TakeBack,
        *,
        dry_run: bool,
    ) -> RollbackReport:
        async with opening as history, show_share("the memories") as share:

            def note(done: int, total: int) -> None:
                self._done, self._total = done, total
                share(done, total)

            self.has_begun = True
            return await call(history, dry_run=dry_run, on_progress=note)

    def progress(self) -> str:
        """Return the progress of a call that ended early, as one sentence for people."""
        what = "what was done stays"
        if self._total:
            what = f"at least {self._done:,} of {self._total:,} memories are done, and stay so"
        return f"{what}; the same command continues where this one ended"


def _show(url: str, report: RollbackReport, *, as_json: bool) -> int:
    """Show a report; return the exit status: 1 if conflicts remain or no memory was found."""
    if as_json:
        shown: dict[str, Any] = {
            "restored": report.restored,
            "deleted": report.deleted,
            "unchanged": report.unchanged,
            "conflicts": len(report.conflicts),
        }
        echo_json({**shown, **asdict(report)})
    else:
        _print_report(url, report)
    if not report.steps:
        print_error(f"no memory of it in {without_secrets(url)}")
    return int(bool(report.conflicts) or not report.steps)


def _print_report(url: str, report: RollbackReport) -> None:
    screen = Screen()
    for step in report.steps:
        _print_step(screen, step)
    screen.line((one_line(f"{without_secrets(url)}: {report.outcome()}"), ""))


def _print_step(screen: Screen, step: RollbackStep) -> None:
    reason = "" if step.reason is None else f"  {one_line(step.reason)}"
    screen.line(
        (f"{step.action:8}", _STYLES[step.action]),
        (f"  {one_line(step.memory_id)}", "bold"),
        (reason, ""),
    )
