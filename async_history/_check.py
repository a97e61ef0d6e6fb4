"""Checking a whole history: every record, and every way to find it."""

from functools import partial

from async_history._core.check import CheckReport
from async_history._opening import postgres_schema, sqlite_file
from async_history.errors import InvalidInput


async def check_history(
    url: str, *, repair: bool = False, lock_timeout_s: float = 30.0
) -> CheckReport:
    """Read a whole history and hold its index against it. Nothing is changed without `repair`.

    Args:
        repair: build a file's index anew first. Nothing is lost by that: it is derived.

    Raises:
        StorageError: there is no history there, or it can't be read.
        MigrationError: its layout is not known, or two records of one id differ.
    """
    file = sqlite_file(url)
    if file is not None:
        from async_history._sqlite.check import check_file
        from async_history._sqlite.errors import absolute
        from async_history._sqlite.worker_thread import run_in_thread

        return await run_in_thread(partial(check_file, absolute(file), repair, lock_timeout_s))
    server = postgres_schema(url)
    if server is None:
        raise InvalidInput(f"url must name a file or a PostgreSQL history to check, not {url!r}")
    if repair:
        raise InvalidInput("repair is for files: REINDEX repairs an index of PostgreSQL")
    from async_history._postgres.check import check_schema

    return await check_schema(*server)
