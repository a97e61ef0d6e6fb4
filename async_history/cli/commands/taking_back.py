"""The commands that bring an earlier state back: `restore`, `rollback` and `undo`."""

from typing import Annotated

import typer

from async_history.cli import asked as _asked
from async_history.cli import rollback as _rollback
from async_history.cli import stores
from async_history.cli import timeline as _timeline
from async_history.cli.asked import Agent, App, Run, User
from async_history.cli.errors import one_line_errors
from async_history.cli.options import AsReport, Db

Actor = Annotated[str | None, typer.Option("--actor", help="Who does this.")]
Role = Annotated[str | None, typer.Option("--role", help="The role of the actor.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask first.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")]


def restore(
    memory_id: Annotated[str, typer.Argument(help="The memory.")],
    to: Annotated[
        str, typer.Option("--to", metavar="WHEN", help="A time or version number, as of `at`.")
    ],
    db: Db = None,
    actor: Actor = None,
    role: Role = None,
    yes: Yes = False,
    dry_run: DryRun = False,
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


def rollback(
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="TIME",
            help="As 2026-11-20T09:41:15+01:00 (UTC where it names no offset).",
        ),
    ],
    db: Db = None,
    user: User = None,
    agent: Agent = None,
    run: Run = None,
    app_id: App = None,
    memory: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Or this memory; give it again for several."),
    ] = None,
    actor: Actor = None,
    role: Role = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: AsReport = False,
) -> None:
    """Take an owner's memories back to what they were at a time.

    Shows the plan first: what existed then is restored, also if it was deleted since; what did not
    exist is deleted; where the text of then is not known, there is a conflict, and the memory stays
    as it is. Each memory gets one more change; earlier records stay. `undo --cause rollback=ID`
    takes a rollback back.

    Only the history is changed: to take mem0's vector store back too, call `AsyncMemory.rollback`
    in a program. If it is interrupted, the same command goes on.

    Exit status 1 if conflicts are left, if there is no such memory, or if the answer was no.
    """
    with one_line_errors():
        status = _rollback.rollback(
            stores.to_write(db),
            to,
            _asked.owner(user, agent, run, app_id),
            memory,
            {"actor_id": actor, "role": role},
            is_dry_run=dry_run,
            is_sure=yes,
            as_json=as_json,
        )
    raise typer.Exit(status)


def undo(
    db: Db = None,
    run: Annotated[
        str | None, typer.Option("--run", metavar="ID", help="What this run did (run_id).")
    ] = None,
    cause: Annotated[
        list[str] | None,
        typer.Option(
            "--cause",
            metavar="KEY=TEXT",
            help="Or what has this cause; give it again for several keys.",
        ),
    ] = None,
    actor: Actor = None,
    role: Role = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: AsReport = False,
) -> None:
    """Take back what a run did, or what has a cause.

    Shows the plan first: each memory gets back what it was before, or is deleted if it did not
    exist. A memory that others changed afterwards is a conflict, and stays as it is. Each memory
    gets one more change; earlier records stay.

    Only the history is changed: to take mem0's vector store back too, call `AsyncMemory.undo` in a
    program. If it is interrupted, the same command goes on.

    Exit status 1 if conflicts are left, if there is no such change, or if the answer was no.
    """
    with one_line_errors():
        status = _rollback.undo(
            stores.to_write(db),
            run,
            _asked.cause(cause),
            {"actor_id": actor, "role": role},
            is_dry_run=dry_run,
            is_sure=yes,
            as_json=as_json,
        )
    raise typer.Exit(status)
