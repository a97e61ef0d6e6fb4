# mypy: disable-error-code=import-untyped
"""Work on a connection with a time limit, whose errors say whether anything was written."""

import asyncio
import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

import asyncpg

from async_history._core.concurrency.deadline import Deadline
from async_history._core.writing.commit_function import OutcomeUnknown, TryAgain
from async_history._postgres.errors import (
    DriverError,
    is_connection_lost,
    may_work_later,
    storage_error,
)

_WAIT_FOR_STANDBY: Final = "SyncRepWaitForLSN"


class CutOff(OutcomeUnknown):
    """Raised if work took longer than its time limit."""


class WorkLimit:
    """A time limit for each piece of work on one connection, and typed errors for it.

    Use it as `with limit.within(timeout_s):`, for one piece of work after another. If one takes
    longer, the connection is closed. The server is never asked to cancel, because the work may
    commit: a server that is asked to cancel while it waits for a synchronous standby commits, and
    acknowledges, without it. It sends a warning then: "committed locally, but might not have been
    replicated". The text depends on the server's language; the C function's name does not.

    Its listener and its timer stay until `end`, which must be called before the connection is
    released.

    Args:
        where: the server, for messages.
        on_hang: called when the time limit is reached.

    Raises (also from `with`):
        CutOff: the time limit was reached.
        OutcomeUnknown: the connection was lost, or the commit did not wait for its standby.
        TryAgain: nothing was written, and a retry may work.
        StorageError: nothing was written.
    """

    def __init__(self, connection: Any, where: str, on_hang: Callable[[], None]) -> None:
        self._connection = connection
        self._where = where
        self._on_hang = on_hang
        self._timeout_s: float | None = None
        self._deadline = Deadline(self._cut_off)
        self._was_cut_off = False
        self._unreplicated: list[str] = []
        try:
            connection.add_log_listener(self._listen)
        except asyncpg.InterfaceError as error:  # it is closed
            raise meaning_of(error, where, connection) from error

    def within(self, timeout_s: float | None) -> Self:
        """Set the seconds that the body of `with` may take; None: any time."""
        self._timeout_s = timeout_s
        return self

    # Each commit enters it. A generator, with a listener and a timer for each commit, took a fifth
    # of the event loop's time for a single record.

    def __enter__(self) -> None:
        if self._unreplicated:
            self._unreplicated.clear()
        if self._timeout_s is not None:
            self._deadline.set(self._timeout_s)

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        self._deadline.clear()
        if error is None:
            if self._unreplicated:
                raise OutcomeUnknown(self._unreplicated[0])
        elif self._was_cut_off and isinstance(error, (AttributeError, *DriverError)):
            # asyncpg raises AttributeError if closed between two messages
            raise CutOff(f"{self._where} did not answer within {self._timeout_s} s") from error
        elif isinstance(error, DriverError):
            raise meaning_of(error, self._where, self._connection) from error
        elif isinstance(error, asyncio.CancelledError):
            _terminate(self._connection)

    def _cut_off(self) -> None:
        self._was_cut_off = True
        self._on_hang()
        _terminate(self._connection)

    def _listen(self, _: Any, message: Any) -> None:
        if message.server_source_function == _WAIT_FOR_STANDBY:
            self._unreplicated.append(str(message))

    def end(self) -> None:
        """Stop the timer, and listening."""
        self._deadline.stop()
        with contextlib.suppress(asyncpg.InterfaceError):  # the pool has it back already
            self._connection.remove_log_listener(self._listen)


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


def _terminate(connection: Any) -> None:
    with contextlib.suppress(asyncpg.InterfaceError):  # the pool has it back already
        connection.terminate()
