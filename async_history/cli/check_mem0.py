"""`async-history check --mem0`: compares mem0's vector store with the history, and repairs."""

import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from async_history import InvalidInput
from async_history.cli.confirmation import confirm, require_an_answer
from async_history.cli.terminal import echo_json, one_line, print_error
from async_history.cli.termination import run
from async_history.cli.text_files import read_text

if TYPE_CHECKING:
    from async_history.mem0 import MemoryCheck, Repair


def check_mem0(
    file: str,
    url: str | None,
    owner: Mapping[str, str | None],
    *,
    repairs_history: bool,
    repairs_vector: bool,
    is_dry_run: bool,
    is_sure: bool,
    as_json: bool,
) -> int:
    """Compare, repair if requested, and show the differences; return the exit status.

    Args:
        file: mem0's configuration.
        url: the history, if it is not the configuration's.
        owner: the owner of the memories.
    """
    if repairs_history and repairs_vector:
        raise InvalidInput("give --repair-history or --repair-vector, not both")
    repair: Repair | None = "history" if repairs_history else "vector" if repairs_vector else None
    config = _configuration(file)
    if repair is None or is_dry_run or not is_sure:
        require_an_answer("repaired", is_dry_run=repair is None or is_dry_run, is_sure=is_sure)
        report = run(_check(config, url, owner, repair, dry_run=True))
        if repair is None or is_dry_run:
            return _show(report, as_json=as_json)
        _print(report, err=True)
        if not report.repaired:
            return int(bool(report.problems))
        if not confirm("Go on?"):
            print_error("nothing was repaired")
            return 1
    return _show(run(_check(config, url, owner, repair, dry_run=False)), as_json=as_json)


def _configuration(file: str) -> dict[str, Any]:
    text = read_text(file)
    try:
        config = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"{file} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise InvalidInput(f"{file} must hold mem0's configuration: one JSON object")
    return config


async def _check(
    config: dict[str, Any],
    url: str | None,
    owner: Mapping[str, str | None],
    repair: "Repair | None",
    *,
    dry_run: bool,
) -> "MemoryCheck":
    try:
        from async_history.mem0 import AsyncMemory
    except ImportError as error:
        raise InvalidInput(
            f"--mem0 needs mem0: pip install async-history[mem0] ({error})"
        ) from error
    made = AsyncMemory.from_config(config, history=url, create=False)
    memory = await made if inspect.isawaitable(made) else made  # from mem0 1.0.0 to 1.0.9
    async with memory:
        return await memory.check(**owner, repair=repair, dry_run=dry_run)


def _show(report: "MemoryCheck", *, as_json: bool) -> int:
    if as_json:
        echo_json({**asdict(report), "problems": report.problems, "notes": report.notes})
    else:
        _print(report, err=False)
    return int(bool(report.problems))


def _print(report: "MemoryCheck", *, err: bool) -> None:
    done = "repaired" if report.done else "would be repaired"
    for one in report.differences:
        what = ", ".join(one.differences)
        repaired = f"; {done}" if one.repaired else ""
        reason = "" if one.reason is None else f"; {one.reason}"
        typer.echo(one_line(f"{one.memory_id}: {what}{repaired}{reason}"), err=err)
    typer.echo(one_line(f"{report.history.store}: {report.outcome()}"), err=err)
