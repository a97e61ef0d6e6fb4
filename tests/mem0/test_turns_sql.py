"""Turns between processes on MariaDB: named locks of a separate session."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from async_history import open_history
from async_history._core.locking.session_locks import SessionLocks
from async_history._sql.connecting.lock_connection import NamedLockConnection
from async_history.errors import StorageLocked, StorageUnreachable
from async_history.mem0._turns.turn_queues import TurnQueues
from async_history.mem0._turns.turns import Turns, number_of
from benchmarks._processes import update_together
from tests.mem0.turns import taken
from tests.subprocesses.turns import Holder
from tests.support.mariadb_server import kill_sessions, run_sql
from tests.support.patience import LONG_S

pytestmark = [
    pytest.mark.mariadb,
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore"),  # mem0's own, of pydantic and swig
]

Side = Callable[..., Turns]


@pytest.fixture
def url(new_database: Callable[[], URL]) -> str:
    return new_database().render_as_string(hide_password=False)


@pytest.fixture
async def side(url: str) -> AsyncIterator[Side]:
    """Makes the turns of another process."""
    made: list[SessionLocks] = []

    def new(where: str = url, **options: Any) -> Turns:
        locks = open_history(where, **options).backend.new_locks()
        assert isinstance(locks, SessionLocks)
        made.append(locks)
        return Turns(TurnQueues(locks))

    yield new
    for locks in made:
        if locks._thread is not None:
            locks._thread.stop()
            await asyncio.to_thread(locks._thread.join)


@pytest.mark.subprocess
@pytest.mark.parametrize("end", ["leaves", "dies"])
async def test_another_process_waits_until_it_leaves_or_dies(
    url: str, side: Side, end: str
) -> None:
    turns, holder = side(), Holder(url)
    with contextlib.ExitStack() as stack:
        stack.callback(holder.end)
        await taken(turns, "another memory")
        waiting = asyncio.create_task(taken(turns))
        locks = turns.queues._locks
        assert isinstance(locks, SessionLocks)
        session = locks._session
        assert session is not None
        while not any(  # noqa: ASYNC110
            request.at for request in list(session._requests.values())
        ):
            await asyncio.sleep(0)
        assert not waiting.done()
        if end == "leaves":
            holder.go_on()
            holder.says("left it")
        else:
            holder.die()
        await asyncio.wait_for(waiting, LONG_S)


async def test_each_database_of_a_server_has_its_own_turns(
    side: Side, new_database: Callable[[], URL]
) -> None:
    """Named locks are shared by all databases of a server."""
    other = new_database().render_as_string(hide_password=False)
    async with side().of("m", "store"):
        await asyncio.wait_for(taken(side(other)), LONG_S)


async def test_a_turn_whose_session_was_killed_is_lost_once_another_has_it(
    url: str, side: Side
) -> None:
    mine = side()
    lock = name_of_lock(mine, url)
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
    async with mine.of("m", "store") as turn, engine.connect() as other:
        # It asks for the lock before that is lost, so that it gets it first.
        waiting = asyncio.create_task(
            other.execute(text("SELECT GET_LOCK(:lock, 3600)"), {"lock": lock})
        )
        asks = "SELECT 1 FROM information_schema.processlist WHERE state = 'User lock'"
        async with asyncio.timeout(LONG_S):
            while not run_sql(make_url(url), asks):  # noqa: ASYNC110 - a server has no event for it
                await asyncio.sleep(0.01)
        assert kill_sessions(make_url(url), f"SELECT IS_USED_LOCK('{lock}')")
        assert (await waiting).scalar() == 1
        async with asyncio.timeout(LONG_S):
            while not mine.queues.is_lost(number_of("m")):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        with pytest.raises(StorageLocked, match="lost"):
            turn.require_kept()
    await engine.dispose()


async def test_a_turn_whose_session_was_killed_is_taken_again(url: str, side: Side) -> None:
    mine, others = side(), side()
    holder = f"SELECT IS_USED_LOCK('{name_of_lock(mine, url)}')"
    async with mine.of("m", "store") as turn:
        (killed,) = kill_sessions(make_url(url), holder)
        async with asyncio.timeout(LONG_S):
            while run_sql(make_url(url), holder)[0][0] in (killed, None):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            while mine.queues.is_lost(number_of("m")):  # noqa: ASYNC110
                await asyncio.sleep(0)
        turn.require_kept()
        waiting = asyncio.create_task(taken(others))
        done, _ = await asyncio.wait([waiting], timeout=0.1)
        assert not done
    await asyncio.wait_for(waiting, LONG_S)


def name_of_lock(turns: Turns, url: str) -> str:
    """Return the name that the server knows the lock of the memory "m" by."""
    locks = turns.queues._locks
    assert isinstance(locks, SessionLocks)
    unconnected: Any = None
    named = NamedLockConnection(unconnected, str(make_url(url).database), "here", LONG_S)
    return named._name(locks._of(number_of("m")))


async def test_an_unreachable_server_raises(side: Side, new_database: Callable[[], URL]) -> None:
    gone = new_database().update_query_dict({"unix_socket": "/nowhere"})
    with pytest.raises(StorageUnreachable):
        await taken(side(gone.render_as_string(hide_password=False), retry_timeout_s=0.2))


@pytest.mark.nightly
def test_processes_that_change_the_same_memories_keep_the_chains(url: str, tmp_path: Path) -> None:
    done = update_together(
        "ours", url, tmp_path, processes=2, memories=3, rounds=10, takes_back=True
    )
    assert (done.breaks, done.wrong) == (0, 0)
    assert done.records > 3 + 2 * 3 * 3
