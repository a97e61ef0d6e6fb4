"""`async-history prune`, `erase` and `erasures`: show the effect, then ask."""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import typer

from async_history import (
    Erasure,
    ErasureReport,
    HistoryManager,
    InvalidInput,
    MigrationError,
    PruneReport,
)
from async_history._core.records.values import parse_time
from async_history._core.wording import counted
from async_history._opening import sqlite_file, without_secrets
from async_history.cli import stores
from async_history.cli.confirmation import require_an_answer
from async_history.cli.screen import Screen
from async_history.cli.terminal import echo_json, one_line, print_error, show_share
from async_history.cli.termination import run

R = TypeVar("R", PruneReport, ErasureReport)

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def prune(
    url: str, older_than: str, keep_last: int, *, is_dry_run: bool, is_sure: bool, as_json: bool
) -> int:
    """Remove old records, or show what that would do; return the exit status."""
    before = instant(older_than)

    async def run_prune(history: HistoryManager, *, dry_run: bool) -> PruneReport:
        async with show_share("the history") as note:
            return await history.prune(
                older_than=before, keep_last=keep_last, dry_run=dry_run, on_progress=note
            )

    return _confirm_and_run(url, run_prune, is_dry_run=is_dry_run, is_sure=is_sure, as_json=as_json)


def erase(
    url: str,
    whose: Mapping[str, Any],
    reason: str,
    *,
    is_dry_run: bool,
    is_sure: bool,
    as_json: bool,
    vacuum: bool,
) -> int:
    """Erase texts, or show what that would do; return the exit status.

    Args:
        whose: the arguments of `HistoryManager.erase` that select the texts.
    """

    async def run_erase(history: HistoryManager, *, dry_run: bool) -> ErasureReport:
        return await history.erase(**whose, reason=reason, dry_run=dry_run, vacuum=vacuum)

    return _confirm_and_run(url, run_erase, is_dry_run=is_dry_run, is_sure=is_sure, as_json=as_json)


def erasures(url: str, *, as_json: bool) -> None:
    """List the erasures of a store, oldest first."""

    async def ask() -> list[Erasure]:
        async with stores.open_to_read(url) as history:
            return await history.erasures()

    found = run(ask())
    screen = Screen()
    for erasure in found:
        if as_json:
            echo_json(asdict(erasure), _as_text)
        else:
            _print_erasure(screen, erasure)
    if not found:
        print_error(f"nothing has been erased in {url}")


def _print_erasure(screen: Screen, erasure: Erasure) -> None:
    begun = erasure.begun_at.isoformat(sep=" ", timespec="milliseconds")
    counts = f"  {counted(erasure.records, 'record')}, {counted(erasure.messages, 'message')}"
    state = "" if erasure.finished_at else "  not finished: interrupted, or under way"
    screen.line((begun, "dim"), (counts, "bold"), (state, "bold yellow"))
    for name, value in (
        ("reason", erasure.reason),
        ("memories", ", ".join(erasure.memory_ids)),
        ("actor's SHA-256", erasure.actor_sha256),
        ("id", erasure.id),
    ):
        if value:
            screen.line((f"{name}: ", "dim"), (one_line(value), ""), indent="  ")


def age_of(text: str) -> timedelta | None:
    """Return an age like `90d`; None for another text.

    Raises:
        OverflowError: it is longer than a timedelta can be.
    """
    age = re.fullmatch(r"(\d+)([smhdw])", text, re.ASCII)
    return timedelta(**{_UNITS[age[2]]: int(age[1])}) if age else None


def instant(text: str) -> datetime:
    """Return the instant of an age like `90d` or of ISO 8601 text (UTC if it has no offset).

    Raises:
        InvalidInput: it is neither.
    """
    try:
        if (age := age_of(text)) is not None:
            return datetime.now(UTC) - age
    except OverflowError:
        raise InvalidInput(f"{text} ago is before year 1") from None
    moment = parse_time(text) if "-" in text else None
    if moment is None:
        raise InvalidInput(
            f"{text!r} is neither an age like 90d (s, m, h, d, w) nor a time like "
            "2026-11-20T09:41:15Z"
        )
    return moment


def _confirm_and_run(
    url: str,
    work: Callable[..., Awaitable[R]],
    *,
    is_dry_run: bool,
    is_sure: bool,
    as_json: bool,
) -> int:
    """Run the work if `is_sure`; otherwise show what it would do, and ask."""
    require_an_answer("removed", is_dry_run=is_dry_run, is_sure=is_sure)
    if is_dry_run or not is_sure:
        _require_no_rewriting(url)
        report = run(_run(url, work, dry_run=True))
        if is_dry_run:
            return _show(url, report, as_json=as_json)
        print_error(f"{without_secrets(url)}: {report.outcome()}")
        if not typer.confirm("Go on?", err=True):
            print_error("nothing was removed")
            return 1
    return _show(url, run(_run(url, work, dry_run=False)), as_json=as_json)


async def _run(url: str, work: Callable[..., Awaitable[R]], *, dry_run: bool) -> R:
    async with stores.opened(url, create=False) as history:
        return await work(history, dry_run=dry_run)


def _require_no_rewriting(url: str) -> None:
    """Refuse a file that opening would rewrite: a dry run must not change records."""
    file = sqlite_file(url)
    if file is None or not file.exists():
        return
    from async_history._sqlite.schema.adopt import adopt

    if adopt(file, dry_run=True).rewritten:
        raise MigrationError(f"{url} has an old layout; run `async-history migrate` first")


def _show(url: str, report: PruneReport | ErasureReport, *, as_json: bool) -> int:
    """Show a report; return the exit status, 1 for an erasure that matched nothing."""
    status = int(isinstance(report, ErasureReport) and report.matches_nothing)
    if as_json:
        echo_json(asdict(report), _as_text)
        return status
    typer.echo(one_line(f"{without_secrets(url)}: {report.outcome()}"))
    if isinstance(report, ErasureReport):
        for sentence in report.remains:
            typer.echo(one_line(f"still to do: {sentence}"))
    return status


def _as_text(value: Any) -> str:
    return str(value.isoformat())
