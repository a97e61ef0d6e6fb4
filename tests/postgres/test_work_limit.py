"""The time limit of work on a connection, for one piece of work after another."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest

from async_history._core.writing.commit_function import OutcomeUnknown, TryAgain
from async_history._postgres.connecting.work_limit import CutOff, WorkLimit
from tests.support import patience

LONG_S = 3600.0


class Connection:
    """What a limit uses of a connection of asyncpg."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[Any, Any], None]] = []
        self.closed = asyncio.Event()

    def add_log_listener(self, listener: Callable[[Any, Any], None]) -> None:
        if self.closed.is_set():
            raise asyncpg.InterfaceError("connection is closed")
        self.listeners.append(listener)

    def remove_log_listener(self, listener: Callable[[Any, Any], None]) -> None:
        self.listeners.remove(listener)

    def terminate(self) -> None:
        self.closed.set()

    def warn(self, function: str) -> None:
        for listener in self.listeners:
            listener(self, SimpleNamespace(server_source_function=function))


def limit_of(connection: Connection, hung: list[bool] | None = None) -> WorkLimit:
    return WorkLimit(connection, "here", lambda: (hung if hung is not None else []).append(True))


async def cut_off(connection: Connection) -> None:
    """Wait until the connection is closed, and fail as asyncpg does between two messages."""
    await connection.closed.wait()
    raise AttributeError


def fail_with_a_warning(connection: Connection) -> None:
    connection.warn("SyncRepWaitForLSN")
    raise asyncpg.LockNotAvailableError("locked")


@pytest.mark.parametrize("before_s", [LONG_S, 0.001])
async def test_work_is_cut_off_at_its_own_limit(before_s: float) -> None:
    connection, hung = Connection(), [False]
    limit = limit_of(connection, hung)
    with limit.within(before_s):
        pass
    with pytest.raises(CutOff, match="did not answer within"), limit.within(0.01):
        await asyncio.wait_for(cut_off(connection), patience.SOON_S)
    assert hung == [False, True]
    limit.end()


@pytest.mark.parametrize("limit_s", [LONG_S, None])
async def test_the_limit_of_earlier_work_does_not_count(limit_s: float | None) -> None:
    connection = Connection()
    limit = limit_of(connection)
    with limit.within(0.01):
        pass
    with limit.within(limit_s), pytest.raises(TimeoutError):
        await asyncio.wait_for(connection.closed.wait(), 0.05)
    limit.end()


async def test_an_unreplicated_commit_is_reported_once() -> None:
    connection = Connection()
    limit = limit_of(connection)
    with pytest.raises(OutcomeUnknown, match="SyncRepWaitForLSN"), limit.within(LONG_S):
        connection.warn("SyncRepWaitForLSN")
    with limit.within(LONG_S):
        connection.warn("another function")
    with pytest.raises(TryAgain), limit.within(LONG_S):
        fail_with_a_warning(connection)
    with limit.within(LONG_S):
        pass
    limit.end()
    assert connection.listeners == []


async def test_a_cancelled_connection_is_closed() -> None:
    connection = Connection()
    limit = limit_of(connection)
    with pytest.raises(asyncio.CancelledError), limit.within(LONG_S):
        raise asyncio.CancelledError
    assert connection.closed.is_set()
    limit.end()


async def test_the_outcome_on_a_closed_connection_is_unknown() -> None:
    connection = Connection()
    connection.terminate()
    with pytest.raises(OutcomeUnknown):
        limit_of(connection)
