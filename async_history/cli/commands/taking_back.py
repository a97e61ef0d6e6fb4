"""The commands that restore an earlier state: `restore`, `rollback` and `undo`."""

from typing import Annotated

import typer

from async_history.cli import owner_options as _owner_options
from async_history.cli import rollback as _rollback
from async_history.cli import stores
from async_history.cli import timeline as _timeline
from async_history.cli.errors import one_line_errors
from async_history.cli.options import AsReport, Db
from async_history.cli.owner_options import Agent, App, Run, User

Actor = Annotated[str | None, typer.Option("--actor", help="The actor of the change.")]
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

    It records one more change and keeps earlier records. Only the history is changed: to restore
    mem0's vector store too, call `AsyncMemory.restore` in a program.

    Exit status 1 if nothing was restored: you answered no, or the memory has changed since.
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
            help="For example 2026-11-20T09:41:15+01:00 (UTC if it has no offset).",
        ),
    ],
    db: Db = None,
    user: User = None,
    agent: Agent = None,
    run: Run = None,
    app_id: App = None,
    memory: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Or this memory; may be repeated."),
    ] = None,
    actor: Actor = None,
    role: Role = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: AsReport = False,
) -> None:
    """Take an owner's memories back to their state at a time.

    It shows the plan first. A memory that existed then is restored, also if it was deleted since;
    one that did not exist is deleted. If the earlier text is not known, the memory is a conflict
    and is not changed. Each memory gets one more change; earlier records are kept. `undo --cause
    rollback=ID` takes back a rollback.

    Only the history is changed: to change mem0's vector store too, call `AsyncMemory.rollback` in a
    program. After an interruption, the same command continues.

    Exit status 1 if conflicts remain, if the memory does not exist, or if you answered no.
    """
    with one_line_errors():
        status = _rollback.rollback(
            stores.to_write(db),
            to,
            _owner_options.owner(user, agent, run, app_id),
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
        str | None, typer.Option("--run", metavar="ID", help="The changes of this run (run_id).")
    ] = None,
    cause: Annotated[
        list[str] | None,
        typer.Option(
            "--cause",
            metavar="KEY=TEXT",
            help="Or the changes with this cause; may be repeated for several keys.",
        ),
    ] = None,
    actor: Actor = None,
    role: Role = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: AsReport = False,
) -> None:
    """Take back the changes of a run or of a cause.

    It shows the plan first. Each memory gets its previous state back, or is deleted if it did not
    exist. A memory that others changed afterwards is a conflict and is not changed. Each memory
    gets one more change; earlier records are kept.

    Only the history is changed: to change mem0's vector store too, call `AsyncMemory.undo` in a
    program. After an interruption, the same command continues.

    Exit status 1 if conflicts remain, if the change does not exist, or if you answered no.
    """
    with one_line_errors():
        status = _rollback.undo(
            stores.to_write(db),
            run,
            _owner_options.cause(cause),
            {"actor_id": actor, "role": role},
            is_dry_run=dry_run,
            is_sure=yes,
            as_json=as_json,
        )
    raise typer.Exit(status)
