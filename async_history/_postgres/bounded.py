# mypy: disable-error-code=import-untyped
"""Work on a connection with a time limit, whose errors say whether anything was written."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final

import asyncpg

from async_history._core.writer import OutcomeUnknown, TryAgain
from async_history._postgres.errors import (
    DriverError,
    is_connection_lost,
    may_work_later,
    storage_error,
)

_WAIT_FOR_STANDBY: Final = "SyncRepWaitForLSN"


@contextlib.contextmanager
def bounded(
    connection: Any, where: str, timeout_s: float | None, on_hang: Callable[[], None]
) -> Iterator[None]:
    """Limit the body's time, by closing the connection, and turn its errors into typed ones.

    It never asks the server to cancel, because the body may commit: a server that is asked to
    cancel while it waits for a synchronous standby commits, and acknowledges, without it.

    Args:
        where: the server, for messages.
        on_hang: called when the time limit is reached.

    Raises:
        OutcomeUnknown: the connection was lost, or the commit did not wait for its standby.
        TryAgain: nothing was written, and a retry may work.
        StorageError: nothing was written.
    """
    was_cut_off = False

    def cut_off() -> None:
        nonlocal was_cut_off
        was_cut_off = True
        on_hang()
        _terminate(connection)

    timer = None
    if timeout_s is not None:
        timer = asyncio.get_running_loop().call_later(timeout_s, cut_off)
    try:
        with _detect_unreplicated_commit(connection):
            yield
    except DriverError as error:
        raise meaning_of(error, where, connection) from error
    except asyncio.CancelledError:
        _terminate(connection)
        raise
    except AttributeError as error:  # asyncpg raises it if closed between two messages
        if was_cut_off:
            raise OutcomeUnknown(f"{where} did not answer within {timeout_s} s") from error
        raise
    finally:
        if timer is not None:
            timer.cancel()


def meaning_of(error: BaseException, where: str, connection: Any) -> Exception:
    """Return what to raise for a driver's error; close the connection if it is unusable."""
    typed = storage_error(error, where)
    if is_connection_lost(error):
        _terminate(connection)
        return OutcomeUnknown(str(typed))
    if not may_work_later(error):
        return typed
    if not isinstance(error, asyncpg.LockNotAvailableError | asyncpg.QueryCanceledError):
        _terminate(connection)  # its server may no longer be the primary
    return TryAgain(typed)


@contextlib.contextmanager
def _detect_unreplicated_commit(connection: Any) -> Iterator[None]:
    """Detect a commit whose wait for a synchronous standby was cancelled.

    The server acknowledges it as any other, with a warning: "committed locally, but might not have
    been replicated". The text depends on the server's language; the C function's name does not.

    Raises:
        OutcomeUnknown: the server sent such a warning.
    """
    warnings: list[str] = []

    def listen(_: Any, message: Any) -> None:
        if message.server_source_function == _WAIT_FOR_STANDBY:
            warnings.append(str(message))

    connection.add_log_listener(listen)
    try:
        yield
    finally:
        with contextlib.suppress(asyncpg.InterfaceError):  # the pool has it back already
            connection.remove_log_listener(listen)
    if warnings:
        raise OutcomeUnknown(warnings[0])


def _terminate(connection: Any) -> None:
    with contextlib.suppress(asyncpg.InterfaceError):  # the pool has it back already
        connection.terminate()
