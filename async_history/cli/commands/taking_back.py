"""The commands that bring an earlier state back: `restore`."""

from typing import Annotated

import typer

from async_history.cli import stores
from async_history.cli import timeline as _timeline
from async_history.cli.errors import one_line_errors
from async_history.cli.options import Db


def restore(
    memory_id: Annotated[str, typer.Argument(help="The memory.")],
    to: Annotated[
        str, typer.Option("--to", metavar="WHEN", help="A time or version number, as of `at`.")
    ],
    db: Db = None,
    actor: Annotated[str | None, typer.Option(help="Who restores.")] = None,
    role: Annotated[str | None, typer.Option(help="The role of the actor.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask first.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would change.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="The record that restores, as a JSON object.")
    ] = False,
) -> None:
    """Restore the text of a memory at a time.

    Records one more change; earlier records stay. Only the history is changed: to restore mem0's
    vector store too, call `AsyncMemory.restore` in a program.

    Exit status 1 if nothing was restored: the answer was no, or the memory changed meanwhile.
    """
    with one_line_errors():
        status = _timeline.restore(
            stores.to_write(db),
            memory_id,
            to,
            actor_id=actor,
            role=role,
            is_sure=yes,
            is_dry_run=dry_run,
            as_json=as_json,
        )
    raise typer.Exit(status)
