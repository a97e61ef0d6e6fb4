"""`async-history grants`: a role's rights on the tables of a PostgreSQL history, as SQL."""

import typer

from async_history import InvalidInput
from async_history._opening import postgres_schema
from async_history.cli.termination import run


def grants(url: str, role: str, level: str, only: str | None, *, is_sure: bool) -> None:
    """Print the statements that give a role its rights; also run them with `is_sure`."""
    from async_history._postgres.grants import Grants, checked_level, grant  # with asyncpg

    server = postgres_schema(url)
    if server is None:
        raise InvalidInput("only a history in PostgreSQL has roles; name it with --db")
    wanted = Grants(role=role, level=checked_level(level), only=only)
    for sql in run(grant(*server, wanted, is_dry_run=not is_sure)):
        typer.echo(sql)
