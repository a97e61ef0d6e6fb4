"""The command `run`: runs another command with mem0's classes replaced."""

from typing import Annotated

import typer

from async_history._startup import become
from async_history.cli.terminal import print_error

_NOT_EXECUTABLE, _NOT_FOUND = 126, 127  # as `env`, `nice` and `timeout` say it


def run(
    command: Annotated[
        list[str], typer.Argument(metavar="CMD", help="The command and its arguments.")
    ],
) -> None:
    """Run a program that uses mem0, with this library's classes in place of mem0's.

    Every Python process that CMD starts, such as the workers of gunicorn and uvicorn, gets this
    library's `Memory` and `AsyncMemory` from mem0. `history_db_path`, and the HISTORY_DB_PATH of
    mem0's server, take any URL. async-history must be installed for that Python. Python's options
    -E, -I and -S disable this.

    Example: async-history run -- gunicorn app:app
    """
    try:
        become(command)
    except OSError as error:
        print_error(f"{command[0]}: {error.strerror}")
        status = _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
        raise typer.Exit(status) from None
