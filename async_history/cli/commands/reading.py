"""The commands that show what is recorded: `log`, `query`, `memories`, `at`, `diff` and `tail`."""

from typing import Annotated

import typer

from async_history._core.reading.filters import Order
from async_history.cli import log as _log
from async_history.cli import owner_options as _owner_options
from async_history.cli import query as _query
from async_history.cli import stores
from async_history.cli import tail as _tail
from async_history.cli import timeline as _timeline
from async_history.cli.errors import one_line_errors
from async_history.cli.options import AsLines, Db
from async_history.cli.owner_options import Agent, App, Cause, Run, User


def log(
    memory_id: Annotated[str, typer.Argument(help="The memory.")],
    db: Db = None,
    as_json: AsLines = False,
) -> None:
    """Show a memory's history, oldest change first, with the changes in the text.

    Its owner comes first. If known, a change's cause and the changed metadata are below it.

    Each change has a version number, which `at`, `diff` and `restore` take.

    A file is read as it is: nothing is migrated or created. Without --db, and with no history.db
    here, mem0's own history is read (~/.mem0/history.db).

    Exit status 1 if there is no history of this memory.
    """
    with one_line_errors(only_reads=True):
        status = _log.log(stores.to_read(db), memory_id, as_json=as_json)
    raise typer.Exit(status)


def query(
    db: Db = None,
    memory: Annotated[
        list[str] | None, typer.Option(help="Of this memory; may be repeated.")
    ] = None,
    actor: Annotated[str | None, typer.Option(help="By this actor.")] = None,
    role: Annotated[str | None, typer.Option(help="By an actor in this role.")] = None,
    event: Annotated[str | None, typer.Option(help="ADD, UPDATE or DELETE.")] = None,
    user: User = None,
    agent: Agent = None,
    run: Run = None,
    app_id: App = None,
    cause: Cause = None,
    text: Annotated[str | None, typer.Option(help="Old or new text contains exactly this.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Not before (UTC if it has no offset).")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Before this.")] = None,
    newest: Annotated[bool, typer.Option("--newest", help="The newest first.")] = False,
    limit: Annotated[
        int | None,
        typer.Option(min=0, show_default=str(_query.LIMIT), help="The maximum number; 0 for all."),
    ] = None,
    count: Annotated[
        bool, typer.Option("--count", help="Show only the number of changes.")
    ] = False,
    as_json: AsLines = False,
) -> None:
    """Show the changes that match all options, in the order of recording.

    A file is found and read as by `log`.

    Exit status 1 if nothing matches; --count shows 0 then.
    """
    with one_line_errors(only_reads=True):
        url = stores.to_read(db)
        asked = _query.wanted(
            memories=memory,
            actor_id=actor,
            role=role,
            event=event,
            text=text,
            since=since,
            until=until,
            cause=_owner_options.cause(cause),
            **_owner_options.owner(user, agent, run, app_id),
        )
        if count:
            _query.count(url, asked, as_json=as_json)
            return
        order: Order = "newest" if newest else "oldest"
        status = _query.query(url, asked, order=order, limit=limit, as_json=as_json)
    raise typer.Exit(status)


def memories(
    db: Db = None,
    user: User = None,
    agent: Agent = None,
    run: Run = None,
    app_id: App = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The latest records, one JSON object a line.")
    ] = False,
) -> None:
    """Show the memories of an owner that are not deleted, the last changed first.

    Name at least one of --user, --agent, --run and --app. A file is found and read as by `log`.

    Exit status 1 if there is none.
    """
    with one_line_errors(only_reads=True):
        owner = _owner_options.owner(user, agent, run, app_id)
        status = _timeline.memories(stores.to_read(db), owner, as_json=as_json)
    raise typer.Exit(status)


When = Annotated[
    str,
    typer.Argument(
        metavar="WHEN",
        help="A time, such as 2026-11-20T09:41:15+01:00 (UTC if it has no offset), or a version "
        "number: 1 is the ADD.",
    ),
]


def at(
    when: When,
    memory_id: Annotated[
        str | None, typer.Argument(help="The memory; all memories if omitted.")
    ] = None,
    db: Db = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The records in force, one JSON object a line.")
    ] = False,
) -> None:
    """Show the text of a memory at a time, or of all memories that existed then.

    A file is found and read as by `log`.

    Exit status 1 if no memory existed then.
    """
    with one_line_errors(only_reads=True):
        status = _timeline.at(stores.to_read(db), when, memory_id, as_json=as_json)
    raise typer.Exit(status)


def diff(
    memory_id: Annotated[str, typer.Argument(help="The memory.")],
    start: Annotated[
        str, typer.Argument(metavar="START", help="A time or version number, as of `at`.")
    ],
    end: Annotated[str, typer.Argument(metavar="END", help="Another; it may be before START.")],
    db: Db = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object: both records, those between.")
    ] = False,
) -> None:
    """Show how a memory differs between two times.

    A file is found and read as by `log`.

    Exit status 1 if the memory did not exist at either.
    """
    with one_line_errors(only_reads=True):
        status = _timeline.diff(stores.to_read(db), memory_id, start, end, as_json=as_json)
    raise typer.Exit(status)


def tail(
    db: Db = None,
    last: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--last",
            min=0,
            show_default="10",
            help="Number of earlier changes to show first.",
        ),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(
            metavar="CURSOR", help="Continue after this cursor, which an earlier run printed."
        ),
    ] = None,
    memory: Annotated[str | None, typer.Option(help="Follow only this memory.")] = None,
    user: User = None,
    agent: Agent = None,
    run: Run = None,
    app_id: App = None,
    cause: Cause = None,
    as_json: AsLines = False,
) -> None:
    """Follow a history: show every change as it is committed, by any writer, until Ctrl-C.

    Ctrl-C ends it with status 130, and SIGTERM with 143. It then prints the --after option for the
    next run: no change is missed or shown twice.
    """
    with one_line_errors(only_reads=True):
        wanted = {
            "memory_id": memory,
            "cause": _owner_options.cause(cause),
            **_owner_options.owner(user, agent, run, app_id),
        }
        _tail.tail(stores.to_read(db), last=last, after=after, wanted=wanted, as_json=as_json)
