"""The commands that record: `demo` and `record`."""

from typing import Annotated

import typer

from async_history.cli import demo as _demo
from async_history.cli import record as _record
from async_history.cli import stores
from async_history.cli.errors import one_line_errors
from async_history.cli.options import Db


def demo(
    db: Db = None,
    agents: Annotated[int, typer.Option(min=1, help="Number of agents.")] = 1_000,
    memories: Annotated[int, typer.Option(min=1, help="Memories of each agent.")] = 50,
) -> None:
    """Let 1,000 agents record at once, and measure the speed.

    Each memory is added, updated and deleted. Each change is awaited until it is on disk. The demo
    creates a new file and refuses an existing one.
    """
    with one_line_errors():
        status = _demo.demo(stores.to_write(db), agents=agents, memories=memories)
    raise typer.Exit(status)


def record(
    file: Annotated[str, typer.Argument(metavar="FILE", help="JSON lines, - for stdin.")] = "-",
    db: Db = None,
) -> None:
    """Record changes given as JSON lines, many at once.

    A line is an object with a record's fields: memory_id and event (ADD, UPDATE or DELETE), and as
    needed old_memory, new_memory, actor_id, role, created_at, updated_at, is_deleted, id; owner
    (with user_id, agent_id, run_id or app_id), context (the metadata) and cause (short texts).
    Changes of one memory keep the order of the lines. A line with an id can safely be repeated: it
    is recorded once.

    Exit status 1 if a line was refused (its number is shown, the others are recorded) or recording
    ended early.
    """
    with one_line_errors():
        status = _record.record(stores.to_write(db), file)
    raise typer.Exit(status)
