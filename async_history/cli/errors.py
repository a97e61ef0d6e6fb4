"""Errors as one line on stderr, and the exit status."""

import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import typer

from async_history import HistoryError, InvalidInput
from async_history.cli.terminal import print_error
from async_history.cli.termination import early_end

BROKEN_PIPE: Final = 141
"""The exit status that a shell shows for a program ended by SIGPIPE: 128 and its number."""


@contextmanager
def one_line_errors(*, only_reads: bool = False) -> Iterator[None]:
    """Turn expected errors into one line on stderr and an exit status.

    Args:
        only_reads: if the reader of a pipe closes it (`| head`), the status is 0.
    """
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, "stdout is closed", "stdout")
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        word, status = early_end()
        print_error(word)
        raise typer.Exit(status) from None
    except InvalidInput as error:
        print_error(str(error))
        raise typer.Exit(2) from None
    except BrokenPipeError:
        # The reader has closed the pipe. Discard the rest of the buffer, or flushing fails again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0 if only_reads else BROKEN_PIPE) from None
    except OSError as error:
        print_error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        raise typer.Exit(1) from None
    except HistoryError as error:
        print_error(str(error))
        raise typer.Exit(1) from None


class _OneLine(logging.Formatter):
    """A log entry as one line: its message, and its error without the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        return record.getMessage() + (f": {error}" if error else "")


class _Stderr(logging.Handler):
    """Prints each message once: the error of a batch is logged for each of its callers."""

    def __init__(self) -> None:
        super().__init__()
        self._printed: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() not in self._printed:
            self._printed.add(record.getMessage())
            print_error(self.format(record))


def send_log_to_stderr() -> None:
    """Print the library's log on stderr, one line for each entry."""
    logger = logging.getLogger("async_history")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler = _Stderr()
    handler.setFormatter(_OneLine())
    logger.handlers = [handler]
