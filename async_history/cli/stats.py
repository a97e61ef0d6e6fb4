"""`async-history stats`: the size of a history, and its warnings."""

import asyncio
import sqlite3
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any, Final, Literal

import typer

from async_history import HistoryManager, HistoryStats
from async_history._core.wording import counted
from async_history._opening import sqlite_file, without_secrets
from async_history.cli import stores
from async_history.cli.prometheus import as_prometheus
from async_history.cli.screen import Screen
from async_history.cli.terminal import echo_json, escape_controls
from async_history.cli.termination import run

_TIMEOUT_S: Final = 10.0
_RETRY_S: Final = 0.1
_STYLES: Final = {"critical": "bold red", "warning": "bold yellow"}

Form = Literal["text", "json", "prometheus"]
_Show = Callable[[HistoryStats, int], None]


def stats(url: str, form: Form, *, every_s: float | None) -> None:
    """Show the statistics of `HistoryManager.stats`, and the number of records.

    Args:
        every_s: the interval in seconds for showing them repeatedly; None shows them once.
    """
    engine = f"SQLite {sqlite3.sqlite_version}" if sqlite_file(url) is not None else None
    run(_ask(url, _shower(form, engine), every_s))


def _shower(form: Form, engine: str | None) -> _Show:
    """Return the function that shows statistics in a form."""
    if form == "json":
        return partial(_show_json, engine=engine)
    if form == "prometheus":
        return _show_prometheus
    return partial(_show, Screen(), engine=engine)


def _show_json(found: HistoryStats, records: int, *, engine: str | None) -> None:
    warnings = [
        {"code": warning.code, "severity": warning.severity, "text": str(warning)}
        for warning in found.warnings
    ]
    report: dict[str, Any] = {"records": records, "engine": engine, **asdict(found)}
    echo_json({**report, "warnings": warnings})


def _show_prometheus(found: HistoryStats, records: int) -> None:
    typer.echo(as_prometheus(found, records).encode(errors="replace"), nl=False)


def _show(screen: Screen, found: HistoryStats, records: int, *, engine: str | None) -> None:
    screen.line((escape_controls(without_secrets(found.store)), "bold"))
    sizes = f"{counted(records, 'record')}, {found.file_bytes:,} bytes"
    if found.wal_bytes:
        sizes += f", and {found.wal_bytes:,} in the write-ahead log"
    screen.line((sizes, ""), indent="  ")
    if engine is not None:
        screen.line((engine, ""), indent="  ")
    for warning in found.warnings:
        text = escape_controls(f": {warning}")
        screen.line((warning.severity, _STYLES[warning.severity]), (f" {warning.code}{text}", ""))
    if not found.warnings:
        screen.line(("no warnings", ""))


async def _ask(url: str, show: _Show, every_s: float | None) -> None:
    async with stores.open_to_read(url) as history:
        while True:
            show(await _measure(history), await history.count_history())
            if every_s is None:
                return
            await asyncio.sleep(every_s)


async def _measure(history: HistoryManager) -> HistoryStats:
    """Return the statistics, after waiting for a slow server: `stats` itself does not wait."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _TIMEOUT_S
    found = await history.stats()
    while loop.time() < deadline and any(w.code == "store-unreachable" for w in found.warnings):
        await asyncio.sleep(_RETRY_S)
        found = await history.stats()
    return found
