"""`async-history check`: reads a whole history and shows its problems."""

from dataclasses import asdict

import typer

from async_history import CheckReport, KeyMissing, StorageMissing, check_history
from async_history._core.json_line import json_line
from async_history.cli import stores
from async_history.cli.terminal import one_line
from async_history.cli.termination import run


def check(url: str, *, repair: bool, as_json: bool) -> int:
    """Check a history, after rebuilding its index with `repair`; return the exit status."""
    report = run(_check(url, repair=repair))
    typer.echo(json_line(asdict(report)) if as_json else one_line(report.outcome()))
    return 1 if report.problems else 0


async def _check(url: str, *, repair: bool) -> CheckReport:
    try:
        return await check_history(url, repair=repair)
    except KeyMissing as error:
        ring = stores.keys()
        if error.name or ring is None:
            raise
    except StorageMissing as error:
        raise stores.missing(url) from error
    return await check_history(url, repair=repair, keys=ring)
