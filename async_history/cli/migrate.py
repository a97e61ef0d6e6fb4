"""`async-history migrate` and `distribute`: prepare a store's tables before it is used."""

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from anyio import to_thread

from async_history import InvalidInput, MigrationError, StorageMissing
from async_history._core.json_line import json_line
from async_history._opening import file_options, postgres_schema, sqlite_file, without_secrets
from async_history.cli import stores
from async_history.cli.terminal import one_line, show_share
from async_history.cli.termination import run

if TYPE_CHECKING:
    from async_history._sqlite.schema.adopt import AdoptionReport


def migrate(url: str, *, is_dry_run: bool, as_json: bool) -> None:
    """Upgrade a history's tables, or show what that would do."""
    file = sqlite_file(url)
    if file is not None:
        report = run(_adopt(file, file_options(url), is_dry_run=is_dry_run))
        _print_outcome(report.outcome(), asdict(report), as_json=as_json)
        return
    where = without_secrets(url)
    outcome = f"{where} is up to date"
    if is_dry_run:
        try:
            run(_open_and_close(url, migrate=False))
        except (MigrationError, StorageMissing) as missing:
            outcome = f"{where}: {missing}"
    else:
        run(_open_and_close(url, migrate=True))
    _print_outcome(
        outcome, {"store": where, "done": not is_dry_run, "outcome": outcome}, as_json=as_json
    )


async def _adopt(file: Path, options: Mapping[str, Any], *, is_dry_run: bool) -> "AdoptionReport":
    from async_history._sqlite.schema.adopt import adopt

    loop = asyncio.get_running_loop()
    async with show_share("the file, step by step") as note:

        def on_progress(_: str, done: int, total: int) -> None:
            loop.call_soon_threadsafe(note, done, total)

        return await to_thread.run_sync(
            partial(adopt, file, dry_run=is_dry_run, on_progress=on_progress, **options)
        )


def _print_outcome(outcome: str, report: Mapping[str, Any], *, as_json: bool) -> None:
    typer.echo(json_line(report) if as_json else one_line(outcome))


async def _open_and_close(url: str, *, migrate: bool) -> None:
    async with stores.opened(url, migrate=migrate):
        pass


def distribute(url: str) -> int:
    """Distribute a PostgreSQL history over a Citus cluster; return the exit status."""
    from async_history._postgres.citus import distribute as distribute_tables  # with asyncpg

    server = postgres_schema(url)
    if server is None:
        raise InvalidInput("only a history in PostgreSQL can be distributed; name it with --db")
    distributed = run(distribute_tables(*server))
    for table in distributed:
        typer.echo(f"{table} is distributed now")
    if not distributed:
        typer.echo("all tables were distributed already")
    return 0
