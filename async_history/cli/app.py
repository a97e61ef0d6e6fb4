"""The commands for typer: their options and help texts.

Exit statuses: 0 done; 1 not done, or only in part; 2 bad usage; 130 interrupted by Ctrl-C; 141 the
reader of a pipe closed it, and may not know what the command changed (0 for a command that only
reads); 143 ended by SIGTERM, in the same way as by Ctrl-C.
"""

from typing import Annotated

import typer

from async_history import __version__
from async_history._core.query import Order
from async_history.cli import asked as _asked
from async_history.cli import check as _check
from async_history.cli import copy as _copying
from async_history.cli import demo as _demo
from async_history.cli import log as _log
from async_history.cli import migrate as _migrate
from async_history.cli import query as _query
from async_history.cli import record as _record
from async_history.cli import retention as _retention
from async_history.cli import stats as _stats
from async_history.cli import stores
from async_history.cli import tail as _tail
from async_history.cli import timeline as _timeline
from async_history.cli.asked import Agent, App, Cause, Run, User
from async_history.cli.errors import one_line_errors, send_log_to_stderr

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Keep and read the history of memories: who changed what, when, and what it said before.",
)

Db = Annotated[
    str | None,
    typer.Option(
        "--db",
        metavar="URL",
        envvar=stores.URL_VARIABLE,
        show_default="history.db here",
        help="The history: a file, sqlite:///file.db, postgresql://host/database …",
    ),
]
AsLines = Annotated[
    bool, typer.Option("--json", help="One JSON object a line, as `record` takes them.")
]
AsReport = Annotated[bool, typer.Option("--json", help="The report as one JSON object.")]


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    send_log_to_stderr()
    if version:
        typer.echo(f"async-history {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@app.command()
def demo(
    db: Db = None,
    agents: Annotated[int, typer.Option(min=1, help="Number of agents.")] = 1_000,
    memories: Annotated[int, typer.Option(min=1, help="Memories of each agent.")] = 50,
) -> None:
    """Let 1,000 agents record at once, and measure how fast it was.

    Each memory is added, updated and deleted; each change is awaited until it is on disk. The
    demo creates a new file and refuses one that exists.
    """
    with one_line_errors():
        status = _demo.demo(stores.to_write(db), agents=agents, memories=memories)
    raise typer.Exit(status)


@app.command()
def record(
    file: Annotated[str, typer.Argument(metavar="FILE", help="JSON lines, - for stdin.")] = "-",
    db: Db = None,
) -> None:
    """Record changes given as JSON lines, many at once.

    A line is an object with a record's fields: memory_id and event (ADD, UPDATE or DELETE), and
    as needed old_memory, new_memory, actor_id, role, created_at, updated_at, is_deleted, id; owner
    (with user_id, agent_id, run_id or app_id), context (the metadata) and cause (short texts).
    Changes of one memory keep the order of the lines. With an id, a line can be given again
    safely: it is recorded once.

    Exit status 1 if a line was refused (its number is shown, the others are recorded) or recording
    ended early.
    """
    with one_line_errors():
        status = _record.record(stores.to_write(db), file)
    raise typer.Exit(status)


@app.command()
def log(
    memory_id: Annotated[str, typer.Argument(help="The memory.")],
    db: Db = None,
    as_json: AsLines = False,
) -> None:
    """Show a memory's history, oldest change first, with what each changed.

    Its owner comes first. Where it is known, why a change was made is below it, and which of the
    memory's metadata it changed.

    Each change is headed by its version number, which `at`, `diff` and `restore` take.

    A file is read as it is: nothing is migrated or created. Without --db, and with no history.db
    here, mem0's own history is read (~/.mem0/history.db).

    Exit status 1 if there is no history of this memory.
    """
    with one_line_errors(only_reads=True):
        status = _log.log(stores.to_read(db), memory_id, as_json=as_json)
    raise typer.Exit(status)


@app.command()
def query(
    db: Db = None,
    memory: Annotated[
        list[str] | None, typer.Option(help="Of this memory; give it again for several.")
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
        str | None, typer.Option(metavar="TIME", help="Not before (UTC where it names no offset).")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Before this.")] = None,
    newest: Annotated[bool, typer.Option("--newest", help="The newest first.")] = False,
    limit: Annotated[
        int | None,
        typer.Option(min=0, show_default=str(_query.LIMIT), help="At most so many; 0 for all."),
    ] = None,
    count: Annotated[bool, typer.Option("--count", help="Only show how many there are.")] = False,
    as_json: AsLines = False,
) -> None:
    """Show the changes that match everything given, in the order in which they were recorded.

    A file is read as it is, and found, as by `log`.

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
            cause=_asked.cause(cause),
            **_asked.owner(user, agent, run, app_id),
        )
        if count:
            _query.count(url, asked, as_json=as_json)
            return
        order: Order = "newest" if newest else "oldest"
        status = _query.query(url, asked, order=order, limit=limit, as_json=as_json)
    raise typer.Exit(status)


@app.command()
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

    Name at least one of --user, --agent, --run and --app. A file is read as it is, and found, as
    by `log`.

    Exit status 1 if there is none.
    """
    with one_line_errors(only_reads=True):
        owner = _asked.owner(user, agent, run, app_id)
        status = _timeline.memories(stores.to_read(db), owner, as_json=as_json)
    raise typer.Exit(status)


When = Annotated[
    str,
    typer.Argument(
        metavar="WHEN",
        help="A time, as 2026-11-20T09:41:15+01:00 (UTC where it names no offset), or a version "
        "number: 1 is the ADD.",
    ),
]


@app.command()
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

    A file is read as it is, and found, as by `log`.

    Exit status 1 if no memory existed then.
    """
    with one_line_errors(only_reads=True):
        status = _timeline.at(stores.to_read(db), when, memory_id, as_json=as_json)
    raise typer.Exit(status)


@app.command()
def diff(
    memory_id: Annotated[str, typer.Argument(help="The memory.")],
    start: Annotated[
        str, typer.Argument(metavar="START", help="A time or version number, as of `at`.")
    ],
    end: Annotated[str, typer.Argument(metavar="END", help="Another; it may be the earlier one.")],
    db: Db = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object: both records, those between.")
    ] = False,
) -> None:
    """Show how a memory differs between two times.

    A file is read as it is, and found, as by `log`.

    Exit status 1 if the memory did not exist at either.
    """
    with one_line_errors(only_reads=True):
        status = _timeline.diff(stores.to_read(db), memory_id, start, end, as_json=as_json)
    raise typer.Exit(status)


@app.command()
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


@app.command()
def tail(
    db: Db = None,
    last: Annotated[
        int | None,
        typer.Option("-n", "--last", min=0, show_default="10", help="Show the last so many first."),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(metavar="CURSOR", help="Begin there instead: what an earlier run ended with."),
    ] = None,
    memory: Annotated[str | None, typer.Option(help="Follow one memory alone.")] = None,
    user: User = None,
    agent: Agent = None,
    run: Run = None,
    app_id: App = None,
    cause: Cause = None,
    as_json: AsLines = False,
) -> None:
    """Follow a history: show every change as it is committed, by any writer, until Ctrl-C.

    Ctrl-C ends it with status 130, and SIGTERM with 143. It then prints the --after with which
    another run continues: nothing is missed, and nothing is shown twice.
    """
    with one_line_errors(only_reads=True):
        wanted = {
            "memory_id": memory,
            "cause": _asked.cause(cause),
            **_asked.owner(user, agent, run, app_id),
        }
        _tail.tail(stores.to_read(db), last=last, after=after, wanted=wanted, as_json=as_json)


@app.command()
def migrate(
    db: Db = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be done.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Bring a history's tables up to date.

    Opening a history does the same. Run this ahead where the program that uses it lacks the
    right to make tables (PostgreSQL), or to adopt an old file at a time of your choosing.
    """
    with one_line_errors():
        _migrate.migrate(stores.to_write(db), is_dry_run=dry_run, as_json=as_json)


@app.command()
def check(
    db: Db = None,
    repair: Annotated[bool, typer.Option(help="Rebuild a file's index first.")] = False,
    as_json: AsReport = False,
) -> None:
    """Read a whole history and show what is wrong with it: exit status 1 if anything is.

    A file is not changed, except with --repair. The index is derived from the records: rebuilding
    it loses nothing.
    """
    with one_line_errors():
        url = stores.to_write(db) if repair else stores.to_read(db)
        status = _check.check(url, repair=repair, as_json=as_json)
    raise typer.Exit(status)


@app.command()
def stats(db: Db = None, as_json: AsReport = False) -> None:
    """Show how large a history is, and what an operator should know about it.

    Each warning has a severity and a code: critical is what can lose or hide records. A file is
    read as it is, and found, as by `log`.
    """
    with one_line_errors(only_reads=True):
        _stats.stats(stores.to_read(db), as_json=as_json)


@app.command()
def distribute(db: Db = None) -> None:
    """Spread a PostgreSQL history over a Citus cluster.

    Histories are distributed by memory, message buffers by session scope. Writers wait while the
    rows that are there are moved. Safe to run again.
    """
    with one_line_errors():
        status = _migrate.distribute(stores.to_write(db))
    raise typer.Exit(status)


DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@app.command()
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


@app.command()
def erase(
    reason: Annotated[str, typer.Option(help="Kept with the erasure. Name no person in it.")],
    db: Db = None,
    memory: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="The memory whose texts are erased.")
    ] = None,
    actor: Annotated[
        str | None, typer.Option(metavar="ID", help="Or the actor whose texts are erased.")
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
    """Make texts unreadable for good, and keep the fact of each change.

    Shows what it could not reach, such as copies and backups. --memory and --scope may be given
    several times.
    """
    with one_line_errors():
        status = _retention.erase(
            stores.to_write(db),
            memory or (),
            actor,
            scope or (),
            reason,
            is_dry_run=dry_run,
            is_sure=yes,
            as_json=as_json,
            vacuum=vacuum,
        )
    raise typer.Exit(status)


@app.command()
def erasures(
    db: Db = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """List the erasures: when, why, of which memories, and how many texts.

    A file is read as it is, and found, as by `log`.
    """
    with one_line_errors(only_reads=True):
        _retention.erasures(stores.to_read(db), as_json=as_json)


@app.command()
def copy(
    source: Annotated[
        str, typer.Argument(help="A history, or JSON lines: a .jsonl file, - for stdin.")
    ],
    target: Annotated[str, typer.Argument(help="The same; it is created if missing.")],
    as_json: AsReport = False,
) -> None:
    """Copy a history to another place, and compare each record with the copy.

    After an interruption, the same command continues where it ended. A file is read as it is:
    nothing is migrated. A PostgreSQL URL with `?table=memory_history` (and `&schema=`, else public)
    reads the table of mem0-ts on Supabase, `?table=history` that of mem0-history-db-patch.
    """
    with one_line_errors():
        status = _copying.copy(source, target, as_json=as_json)
    raise typer.Exit(status)


@app.command()
def backup(
    path: Annotated[str, typer.Argument(help="The new file.")],
    db: Db = None,
    as_json: AsReport = False,
) -> None:
    """Copy a history's file as it is now, while others write to it."""
    with one_line_errors():
        status = _copying.backup(stores.to_read(db), path, as_json=as_json)
    raise typer.Exit(status)
