"""The commands of the ledger: `ledger-key`, `checkpoint`, `verify`, `prove` and `verify-proof`."""

from pathlib import Path
from typing import Annotated

import typer

from async_history.cli import ledger as _ledger
from async_history.cli import stores
from async_history.cli.errors import one_line_errors
from async_history.cli.options import AsReport, Db

Signed = Annotated[
    Path, typer.Option("--key", metavar="FILE", help="The private key, as `ledger-key` made it.")
]
Verifier = Annotated[
    str | None,
    typer.Option("--verifier", metavar="KEY", help="The public key that must have signed them."),
]


def ledger_key(
    name: Annotated[str, typer.Argument(help="The ledger's name, such as example.org/history.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The new file of the key.")],
) -> None:
    """Make a key that signs a ledger's checkpoints, and show its public part.

    Keep the file where those who can write the store cannot read it.
    """
    with one_line_errors():
        _ledger.make_key(name, file)


def checkpoint(
    key: Signed,
    db: Db = None,
    into: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write a file here, instead of to stdout."),
    ] = None,
    every: Annotated[
        str | None,
        typer.Option(metavar="AGE", help="Repeat at this interval, such as 10m (s, m, h, d, w)."),
    ] = None,
) -> None:
    """Sign the size and root of a history's ledger: a few lines to keep elsewhere.

    A history without a ledger gets one, which has all later records.
    """
    with one_line_errors():
        _ledger.checkpoint(stores.to_write(db), key, into, every)


def verify(
    db: Db = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A checkpoint that you kept; may be repeated."),
    ] = None,
    verifier: Verifier = None,
    as_json: AsReport = False,
) -> None:
    """Compare a whole history with its ledger, and with checkpoints that you kept.

    Exit status 1 if anything was changed.
    """
    with one_line_errors():
        status = _ledger.verify(stores.to_write(db), checkpoint or (), verifier, as_json=as_json)
    raise typer.Exit(status)


def prove(
    record: Annotated[
        str | None, typer.Argument(metavar="RECORD", help="The id of the record.")
    ] = None,
    db: Db = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The checkpoint whose tree it is in."),
    ] = None,
    grown_from: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Prove instead that the checkpoint's ledger has all of this older one.",
        ),
    ] = None,
) -> None:
    """Print a proof that a record is in a checkpoint's ledger, for `verify-proof`.

    For an erased record it proves that it existed. With --grown-from it proves that nothing before
    an older checkpoint was changed.
    """
    with one_line_errors():
        _ledger.prove(stores.to_write(db), record, checkpoint, grown_from)


def verify_proof(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The output of `prove`.")],
    verifier: Annotated[
        str, typer.Option("--verifier", metavar="KEY", help="The ledger's public key.")
    ],
) -> None:
    """Check a proof, without a history: exit status 1 if it does not hold."""
    with one_line_errors():
        _ledger.verify_proof(file, verifier)
