"""`async-history checkpoint`, `verify`, `prove` and `verify-proof`: the ledger from the shell."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from async_history import HistoryManager, InvalidInput
from async_history._core.wording import counted
from async_history.cli.retention import age_of
from async_history.cli.screen import Screen
from async_history.cli.stores import opened
from async_history.cli.terminal import echo_json, one_line, show_share
from async_history.cli.termination import run
from async_history.cli.text_files import read_text
from async_history.ledger import (
    Checkpoint,
    LedgerKey,
    LedgerReport,
    LedgerVerifier,
    RecordProof,
)
from async_history.ledger import verify_proof as verified

_MOST_SHOWN = 100
"""Most records without a leaf that are named."""


def make_key(name: str, file: Path) -> None:
    """Write a new private key into a new file, and print the public one."""
    key = LedgerKey.generate(name)
    with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as written:
        written.write(f"{key.export()}\n")
    typer.echo(str(key.verifier))


def checkpoint(url: str, key_file: Path, into: Path | None, every: str | None) -> None:
    """Print a checkpoint, or write it into a folder; with `every`, repeatedly."""
    key = LedgerKey.parse(read_text(key_file))
    every_s = None if every is None else _seconds(every)

    async def make() -> None:
        async with opened(url, create=False, ledger=True) as history:
            if every_s is None:
                _keep(await history.ledger.checkpoint(key), into)
                return
            async for one in history.ledger.checkpoints(key, every_s=every_s):
                _keep(one, into)

    run(make())


def _keep(made: Checkpoint, into: Path | None) -> None:
    if into is None:
        typer.echo(str(made), nl=False)
        return
    into.mkdir(parents=True, exist_ok=True)
    unfinished = into / f"{made.size:012}.unfinished"
    unfinished.write_text(str(made), encoding="utf-8")
    unfinished.replace(into / f"{made.size:012}.checkpoint")


def verify(url: str, files: Sequence[Path], verifier: str | None, *, as_json: bool) -> int:
    """Verify a history and show the result; return the exit status."""
    checkpoints = [_read(file) for file in files]
    if verifier is not None:
        key = LedgerVerifier.parse(verifier)
        for one in checkpoints:
            one.require_signed(key)

    async def ask() -> LedgerReport:
        async with opened(url, create=False) as history, show_share("the ledger") as note:
            return await history.ledger.verify(*checkpoints, on_progress=note)

    report = run(ask())
    if as_json:
        found: dict[str, Any] = {**asdict(report), "root": report.root.hex()}
        echo_json(found)
    else:
        _print(report, len(checkpoints))
    return 0 if report.is_intact else 1


def _print(report: LedgerReport, checkpoints: int) -> None:
    screen = Screen()
    screen.line((f"{counted(report.size, 'leaf', 'leaves')}, root {report.root.hex()}", "bold"))
    records, owners = counted(report.records, "record"), counted(report.owners, "owner")
    gone = f"{report.erased:,} erased, {report.pruned:,} pruned, {report.reset:,} reset"
    screen.line((f"as recorded: {records}, {owners}; {gone}", ""))
    for record_id in report.unattested[:_MOST_SHOWN]:
        screen.line(("no leaf ", "yellow"), (one_line(record_id), ""))
    if len(report.unattested) > _MOST_SHOWN:
        screen.line((f"{len(report.unattested):,} records have no leaf", "yellow"))
    if report.unattested_owners:
        owners = counted(report.unattested_owners, "owner has", "owners have")
        screen.line((f"{owners} no leaf", "yellow"))
    for fault in report.faults:
        screen.line((fault.kind, "bold red"), (f" {one_line(fault.text)}", ""))
    if not checkpoints:
        screen.line(("compared with no checkpoint that was kept elsewhere", "dim"))


async def _prove(
    history: HistoryManager, record_id: str | None, kept: Checkpoint, older: Checkpoint | None
) -> str:
    if older is not None:
        return str(await history.ledger.prove_growth(older, kept))
    return str(await history.ledger.prove(record_id or "", kept))


def prove(url: str, record_id: str | None, kept: Path | None, older: Path | None) -> None:
    """Print a proof of a record, or of growth."""
    if kept is None or (record_id is None) == (older is None):
        raise InvalidInput("give --checkpoint, and either a record or --grown-from")
    checkpoint, old = _read(kept), None if older is None else _read(older)

    async def ask() -> str:
        async with opened(url, create=False) as history:
            return await _prove(history, record_id, checkpoint, old)

    typer.echo(run(ask()))


def verify_proof(file: Path, verifier: str) -> None:
    """Show what a proof proves."""
    proof = verified(read_text(file), LedgerVerifier.parse(verifier))
    if not isinstance(proof, RecordProof):
        typer.echo(
            f"proven: the ledger of {counted(proof.new.size, 'leaf', 'leaves')} has all "
            f"{proof.old.size:,} of the older one, {proof.new.origin}"
        )
        return
    where = f"at place {proof.place:,} of {proof.checkpoint.size:,}, {proof.checkpoint.origin}"
    if proof.record is None:
        typer.echo(
            f"proven: a leaf is {where}; the proof has no record, because the record was erased, "
            "or because somebody left it out"
        )
        return
    typer.echo(f"proven: this record is {where}")
    echo_json(dict(proof.record))


def _read(file: Path) -> Checkpoint:
    return Checkpoint.parse(read_text(file))


def _seconds(text: str) -> float:
    try:
        age = age_of(text)
    except OverflowError:
        age = None
    if age is None:
        raise InvalidInput(f"--every takes an age like 10m (s, m, h, d, w), not {text!r}")
    return age.total_seconds()
