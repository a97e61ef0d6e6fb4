"""`async-history migrate` and `distribute`: what is done to a store's tables, ahead of its use."""

import asyncio

import typer

from async_history import InvalidInput, open_history
from async_history.migrations import adopt
from async_history.migrations.citus import distribute as distribute_tables
from async_history.opening import postgres_schema, sqlite_file, without_secrets


def migrate(url: str, *, is_dry_run: bool) -> int:
    """Bring a history's tables up to date, or tell what that would do; return the exit status."""
    file = sqlite_file(url)
    if is_dry_run:
        if file is None:
            raise InvalidInput(
                "--dry-run looks into files; a server's history says what it needs "
                "when it is opened"
            )
        typer.echo(adopt(file, dry_run=True).outcome())
        return 0
    asyncio.run(_open_and_close(url, create=file is None))
    typer.echo(f"{without_secrets(url)} is up to date")
    return 0


async def _open_and_close(url: str, *, create: bool) -> None:
    async with open_history(url, create=create):
        pass


def distribute(url: str) -> int:
    """Spread a PostgreSQL history over a Citus cluster; return the exit status."""
    server = postgres_schema(url)
    if server is None:
        raise InvalidInput("only a history in PostgreSQL can be distributed; name it with --db")
    distributed = asyncio.run(distribute_tables(*server))
    for table in distributed:
        typer.echo(f"{table} is distributed now")
    if not distributed:
        typer.echo("all tables were distributed already")
    return 0
