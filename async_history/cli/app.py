"""The commands as typer sees them: their options, their help, and their errors' last line.

Lives here: what can be typed, and exit statuses. Not here: what a command does (demo, record, log,
migrate).

Exit statuses: 0 done; 1 not done, or not all of it; 2 not understood; 130 interrupted by Ctrl-C.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from async_history import HistoryError, InvalidInput, __version__
from async_history.cli import demo as _demo
from async_history.cli import log as _log
from async_history.cli import migrate as _migrate
from async_history.cli import record as _record
from async_history.cli import stores
from async_history.cli.terminal import complain

app = typer.Typer(
    add_completion=False,
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


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    _send_log_to_stderr()
    if version:
        typer.echo(f"async-history {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@app.command()
def demo(
    db: Db = None,
    agents: Annotated[int, typer.Option(min=1, help="How many record at once.")] = 1_000,
    memories: Annotated[int, typer.Option(min=1, help="How many each of them keeps.")] = 50,
) -> None:
    """Let 1,000 agents record at once, and see how fast it was.

    Each memory is added, updated and deleted; each change is awaited until it is on disk. The
    demo makes a file of its own and refuses one that exists.
    """
    with _one_line_errors():
        status = _demo.demo(stores.to_write(db), agents=agents, memories=memories)
    raise typer.Exit(status)


@app.command()
def record(
    file: Annotated[str, typer.Argument(metavar="FILE", help="JSON lines, - for stdin.")] = "-",
    db: Db = None,
) -> None:
    """Record changes given as JSON lines, many at once.

    A line is an object with a record's fields: memory_id and event (ADD, UPDATE or DELETE), and
    as needed old_memory, new_memory, actor_id, role, created_at, updated_at, is_deleted, id.
    Changes of one memory keep the order of the lines. With an id, a line can be given again
    safely: it is recorded once.

    Exit status 1 if a line was refused (it is named, the others are recorded) or recording ended
    early.
    """
    with _one_line_errors():
        status = _record.record(stores.to_write(db), file)
    raise typer.Exit(status)


@app.command()
def log(
    memory_id: Annotated[str, typer.Argument(help="Whose history.")],
    db: Db = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, as `record` takes them.")
    ] = False,
) -> None:
    """Show a memory's history, oldest change first, with what each changed.

    A file is read as it is: nothing is migrated or created. Without --db, and with no history.db
    here, mem0's own history is read (~/.mem0/history.db).

    Exit status 1 if there is no history of this memory.
    """
    with _one_line_errors():
        status = _log.log(stores.to_read(db), memory_id, as_json=as_json)
    raise typer.Exit(status)


@app.command()
def migrate(
    db: Db = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what would be done to a file.")
    ] = False,
) -> None:
    """Bring a history's tables up to date.

    Opening a history does the same. Run this ahead where the program that uses it lacks the
    right to make tables (PostgreSQL), or to adopt an old file at a time of your choosing.
    """
    with _one_line_errors():
        status = _migrate.migrate(stores.to_write(db), is_dry_run=dry_run)
    raise typer.Exit(status)


@app.command()
def distribute(db: Db = None) -> None:
    """Spread a PostgreSQL history over a Citus cluster.

    Histories are distributed by memory, message buffers by session scope. Writers wait while the
    rows that are there are moved. Safe to run again.
    """
    with _one_line_errors():
        status = _migrate.distribute(stores.to_write(db))
    raise typer.Exit(status)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn what can go wrong into one line on stderr and an exit status."""
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        complain("interrupted")
        raise typer.Exit(130) from None
    except InvalidInput as error:
        complain(str(error))
        raise typer.Exit(2) from None
    except BrokenPipeError:
        raise  # typer ends the program quietly, with status 1
    except OSError as error:
        complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        raise typer.Exit(1) from None
    except HistoryError as error:
        complain(str(error))
        raise typer.Exit(1) from None


class _OneLine(logging.Formatter):
    """A log entry as one line: its message, and its error without the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        return record.getMessage() + (f": {error}" if error else "")


class _Stderr(logging.Handler):
    """Says each message once: what fails a batch is logged for each of its callers."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() not in self._said:
            self._said.add(record.getMessage())
            complain(self.format(record))


def _send_log_to_stderr() -> None:
    logger = logging.getLogger("async_history")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler = _Stderr()
    handler.setFormatter(_OneLine())
    logger.handlers = [handler]
