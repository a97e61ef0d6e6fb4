"""The commands `prune`, `erase`, `erasures` and `operations`."""

from typing import Annotated

import typer

from async_history.cli import operations as _operations
from async_history.cli import owner_options as _owner_options
from async_history.cli import retention as _retention
from async_history.cli import stores
from async_history.cli.errors import one_line_errors
from async_history.cli.options import AsReport, Db

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def prune(
    older_than: Annotated[
        str,
        typer.Option(metavar="AGE|TIME", help="90d (s, m, h, d, w), or 2026-11-20T09:41:15Z."),
    ],
    db: Db = None,
    keep_last: Annotated[
        int, typer.Option(min=0, help="Records to keep of each memory that is not deleted.")
    ] = 1,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsReport = False,
) -> None:
    """Remove old records, except the last ones of each memory.

    With --keep-last 1 or more, the latest state of each memory is kept. A deleted memory is removed
    completely when all of its records are old. It may be interrupted and run again. This frees
    space: to make texts unreadable for good, use `erase`.
    """
    with one_line_errors():
        status = _retention.prune(
            stores.to_write(db),
            older_than,
            keep_last,
            is_dry_run=dry_run,
            is_sure=yes,
            as_json=as_json,
        )
    raise typer.Exit(status)


def erase(
    reason: Annotated[str, typer.Option(help="Logged with the erasure. Do not name a person.")],
    db: Db = None,
    memory: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="The memory whose texts are erased.")
    ] = None,
    record: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Or the record whose texts are erased, by its id."),
    ] = None,
    actor: Annotated[
        str | None, typer.Option(metavar="ID", help="Or the actor whose texts are erased.")
    ] = None,
    user: Annotated[
        str | None, typer.Option(metavar="ID", help="Or the user to forget (user_id).")
    ] = None,
    agent: Annotated[
        str | None, typer.Option(metavar="ID", help="Or the agent to forget (agent_id).")
    ] = None,
    run: Annotated[
        str | None, typer.Option(metavar="ID", help="Or the run to forget (run_id).")
    ] = None,
    app_id: Annotated[
        str | None,
        typer.Option("--app", metavar="ID", help="Or the application to forget (app_id)."),
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(metavar="SCOPE", help="The session scope whose buffered messages are erased."),
    ] = None,
    vacuum: Annotated[
        bool, typer.Option(help="Also overwrite a file's free space; writers wait.")
    ] = True,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsReport = False,
) -> None:
    """Erase texts for good, and keep the fact of each change.

    An owner is forgotten: the texts, metadata and causes of all of the owner's memories, the
    buffered messages of the owner's session scopes, and the owner's id.

    It shows what it could not reach, such as copies and backups. --memory, --record and --scope may
    be repeated.

    Only the history is changed: to forget an owner in mem0's vector store too, call
    `AsyncMemory.forget` in a program.
    """
    with one_line_errors():
        status = _retention.erase(
            stores.to_write(db),
            {
                "memory_ids": memory or (),
                "record_ids": record or (),
                "actor_id": actor,
                "session_scopes": scope or (),
                **_owner_options.owner(user, agent, run, app_id),
            },
            reason,
            is_dry_run=dry_run,
            is_sure=yes,
            as_json=as_json,
            vacuum=vacuum,
        )
    raise typer.Exit(status)


def erasures(
    db: Db = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """List the erasures: when, why, which memories, and how many texts.

    A file is found and read as by `log`.
    """
    with one_line_errors(only_reads=True):
        _retention.erasures(stores.to_read(db), as_json=as_json)


def operations(
    db: Db = None,
    follow: Annotated[
        bool,
        typer.Option("--follow", help="Also show operations that begin or end from now on."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """List the operations on a history: resets, prunings, erasures, rollbacks, copies, …

    For each: who, when, the arguments, the number of records, and the outcome. A file is found and
    read as by `log`.
    """
    with one_line_errors(only_reads=True):
        show = _operations.follow if follow else _operations.operations
        show(stores.to_read(db), as_json=as_json)
