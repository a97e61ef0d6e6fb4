"""The commands for typer: their options and help texts.

Exit statuses: 0 done; 1 not done, or only partly; 2 bad usage; 130 interrupted by Ctrl-C; 141 the
reader of a pipe closed it, and may not know what the command changed (0 for a command that only
reads); 143 ended by SIGTERM, in the same way as by Ctrl-C. `run` has the status of its command; 127
if that was not found, 126 if it cannot be executed.
"""

from typing import Annotated

import typer

from async_history import InvalidInput, __version__
from async_history.cli import check as _check
from async_history.cli import check_mem0 as _check_mem0
from async_history.cli import copy as _copying
from async_history.cli import grants as _grants
from async_history.cli import migrate as _migrate
from async_history.cli import owner_options as _owner_options
from async_history.cli import stats as _stats
from async_history.cli import stores
from async_history.cli.commands import (
    encrypting,
    proving,
    reading,
    recording,
    retention,
    running,
    serving,
    taking_back,
)
from async_history.cli.errors import one_line_errors, send_log_to_stderr
from async_history.cli.options import AsReport, Db
from async_history.cli.owner_options import Agent, App, Run, User
from async_history.cli.usage_errors import MaskedUsageErrors

app = typer.Typer(
    cls=MaskedUsageErrors,
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Keep and read the history of memories: who changed what, when, and what it said before.",
)


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, help="Show the version.")
    ] = False,
    keys_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            envvar=stores.KEYS_FILE_VARIABLE,
            help="The master keys of an encrypted history; default: those in ASYNC_HISTORY_KEYS.",
        ),
    ] = None,
) -> None:
    """Take the options that stand before the command."""
    send_log_to_stderr()
    stores.use_keys_file(keys_file)
    if version:
        typer.echo(f"async-history {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


for command in (
    recording.demo,
    recording.record,
    reading.log,
    reading.query,
    reading.memories,
    reading.at,
    reading.diff,
    taking_back.restore,
    taking_back.rollback,
    taking_back.undo,
    reading.tail,
    retention.prune,
    retention.erase,
    retention.erasures,
    encrypting.encrypt,
    encrypting.decrypt,
    encrypting.rekey,
    retention.operations,
    serving.serve,
    proving.ledger_key,
    proving.checkpoint,
    proving.verify,
    proving.prove,
    proving.verify_proof,
):
    app.command()(command)
app.command(context_settings={"allow_interspersed_args": False})(running.run)


@app.command()
def migrate(
    db: Db = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be done.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Upgrade a history's tables.

    Opening a history does the same. Run this first if the program that uses the history lacks the
    right to create tables (PostgreSQL), or to choose when an old file is adopted.
    """
    with one_line_errors():
        _migrate.migrate(stores.to_write(db), is_dry_run=dry_run, as_json=as_json)


@app.command()
def check(
    db: Db = None,
    repair: Annotated[bool, typer.Option("--repair", help="Rebuild a file's index first.")] = False,
    mem0: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Compare with the vector store of this mem0 configuration (JSON), and with its "
            "history if --db names no other.",
        ),
    ] = None,
    user: User = None,
    agent: Agent = None,
    run: Run = None,
    app_id: App = None,
    repair_history: Annotated[
        bool, typer.Option("--repair-history", help="Record the state of the vector store.")
    ] = False,
    repair_vector: Annotated[
        bool,
        typer.Option("--repair-vector", help="Change the vector store to the history's state."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be repaired.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before a repair.")] = False,
    as_json: AsReport = False,
) -> None:
    """Read a whole history and show its problems: exit status 1 if there are any.

    A file is not changed, except with --repair. The index is derived from the records: rebuilding
    it loses nothing.

    With --mem0, each memory's text, metadata, owner and deletion in the vector store are compared
    with the history, for all memories or for an owner's.
    """
    with one_line_errors():
        owner = _owner_options.owner(user, agent, run, app_id)
        if mem0 is not None:
            if repair:
                raise InvalidInput("with --mem0 give --repair-history or --repair-vector")
            status = _check_mem0.check_mem0(
                mem0,
                db,
                owner,
                repairs_history=repair_history,
                repairs_vector=repair_vector,
                is_dry_run=dry_run,
                is_sure=yes,
                as_json=as_json,
            )
        elif repair_history or repair_vector or any(owner.values()):
            raise InvalidInput(
                "an owner, --repair-history and --repair-vector are for a comparison with a vector "
                "store: name mem0's configuration by --mem0"
            )
        else:
            url = stores.to_write(db) if repair else stores.to_read(db)
            status = _check.check(url, repair=repair, as_json=as_json)
    raise typer.Exit(status)


@app.command()
def stats(
    db: Db = None,
    watch: Annotated[
        float | None,
        typer.Option(min=0.1, metavar="SECONDS", help="Show it repeatedly, at this interval."),
    ] = None,
    prometheus: Annotated[
        bool,
        typer.Option("--prometheus", help="As text for Prometheus's node exporter (textfile)."),
    ] = False,
    as_json: AsReport = False,
) -> None:
    """Show a history's size and its warnings.

    Each warning has a severity and a code. Critical warnings can mean lost or hidden records. A
    file is found and read as by `log`. The queue and the latencies of a writing program are not
    visible here: the program reports them through `async_history.otel`.
    """
    with one_line_errors(only_reads=True):
        if prometheus and (as_json or watch is not None):
            raise InvalidInput("--prometheus goes with neither --json nor --watch")
        form: _stats.Form = "prometheus" if prometheus else "json" if as_json else "text"
        _stats.stats(stores.to_read(db), form, every_s=watch)


@app.command()
def distribute(db: Db = None) -> None:
    """Distribute a PostgreSQL history over a Citus cluster.

    Histories are distributed by memory, message buffers by session scope. Writers wait while
    existing rows are moved. It is safe to run this again.
    """
    with one_line_errors():
        status = _migrate.distribute(stores.to_write(db))
    raise typer.Exit(status)


@app.command()
def grants(
    role: Annotated[str, typer.Argument(help="An existing role.")],
    level: Annotated[
        str,
        typer.Argument(
            metavar="LEVEL",
            help="reader; writer: records, restores, rolls back and undoes too; operator: also "
            "prunes, erases and resets.",
        ),
    ],
    db: Db = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="SCOPE",
            help="Show a reader one owner's records only, such as those with the user_id that the "
            "setting async_history.user_id names.",
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Grant them instead of printing them.")
    ] = False,
) -> None:
    """Print the minimum rights that a role needs on a PostgreSQL history, as SQL.

    The role's existing rights on the tables are revoked first. --only turns on row-level security
    for the records and their owners.
    """
    with one_line_errors(only_reads=not yes):
        _grants.grants(stores.to_write(db), role, level, only, is_sure=yes)


@app.command()
def copy(
    source: Annotated[
        str, typer.Argument(help="A history, or JSON lines: a .jsonl file, - for stdin.")
    ],
    target: Annotated[str, typer.Argument(help="The same; it is created if missing.")],
    as_json: AsReport = False,
) -> None:
    """Copy a history to another place, and compare each record with the copy.

    After an interruption, the same command continues. A file is read as it is: nothing is migrated.
    A PostgreSQL URL with `?table=memory_history` (and `&schema=`, default public) reads the table
    of mem0-ts on Supabase, `?table=history` that of mem0-history-db-patch.
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
