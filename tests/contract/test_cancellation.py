"""Every call, cancelled at each of its awaits in turn: through its task, and by anyio's scopes.

A scope also cancels the awaits of a clean-up, until the task has left the scope.
"""

import asyncio
import os
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, closing
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import asyncpg
import pytest
from fastapi import FastAPI, Request, Response
from httpx import ASGITransport, AsyncClient

from async_history import HistoryManager, open_history
from async_history.postgres import PostgresHistoryManager
from tests.conftest import stores, url_of
from tests.support.patience import LONG_S
from tests.support.postgres_faults import until
from tests.support.postgres_server import with_query
from tests.support.reads import READS
from tests.support.writes import WRITES

_MOST_AWAITS = 300

Call = Callable[[HistoryManager], Awaitable[object]]
Open = Callable[[], AbstractAsyncContextManager[HistoryManager]]


class Stepped:
    """A call that calls `at_await` when its nth await has to wait."""

    def __init__(self, call: Awaitable[object], nth: int, at_await: Callable[[], object]) -> None:
        self._call = call
        self._left = nth
        self._at_await = at_await

    def __await__(self) -> Generator[Any, Any, object]:
        steps: Any = self._call.__await__()
        go_on: Callable[[], Any] = lambda: next(steps)  # noqa: E731
        while True:
            try:
                waited_for = go_on()
            except StopIteration as end:
                return end.value
            if not self._left:
                asyncio.get_running_loop().call_soon(self._at_await)
            self._left -= 1
            try:
                yield waited_for
            except BaseException as thrown:
                error = thrown
                go_on = lambda: steps.throw(error)  # noqa: E731, B023
            else:
                go_on = lambda: next(steps)  # noqa: E731


async def _by_task(call: Awaitable[object], nth: int) -> bool:
    """Return whether the call was cancelled at its nth await."""

    async def run() -> None:
        await Stepped(call, nth, task.cancel)

    task = asyncio.create_task(run())
    await asyncio.wait([task])
    if task.cancelled():
        return True
    task.result()
    return False


async def _by_scope(call: Awaitable[object], nth: int) -> bool:
    with anyio.CancelScope() as scope:
        await Stepped(call, nth, scope.cancel)
    return scope.cancelled_caught


CANCELS = {"task": _by_task, "scope": _by_scope}


async def _try_all(open_: Open, calls: dict[str, Call], how: str) -> None:
    """Cancel each call at each await. Then the manager works and has every acked record."""
    cancel = CANCELS[how]
    async with open_() as history:
        acked = {(await history.add_history("m", None, "first", "ADD")).id}
        for name, call in calls.items():
            for nth in range(_MOST_AWAITS):
                if not await cancel(call(history), nth):
                    break
                record = await asyncio.wait_for(history.add_history("m", None, name, "ADD"), LONG_S)
                acked.add(record.id)
            else:
                pytest.fail(f"{name} never ended")
        there = {record.id for record in await asyncio.wait_for(history.get_history("m"), LONG_S)}
        assert acked <= there
        assert len(await history.get_history("n")) % 3 == 0, "a batch of three is partly there"


async def _open_and_close(open_: Open, how: str) -> None:
    async def use() -> None:
        async with open_() as history:
            with anyio.CancelScope(shield=True):
                await history.stats()

    for nth in range(_MOST_AWAITS):
        if not await CANCELS[how](use(), nth):
            break
        async with open_() as history:
            await history.add_history("m", None, "x", "ADD")
    else:
        pytest.fail("it never opened")
    assert nth > 1


def _left_threads(before: set[threading.Thread]) -> list[threading.Thread]:
    threads = [each for each in set(threading.enumerate()) - before if not each.daemon]
    for thread in threads:
        thread.join(LONG_S)
    return [each for each in threads if each.is_alive()]


def _left_files(folder: Path) -> list[str]:
    try:
        links = [os.path.realpath(f"/proc/self/fd/{each}") for each in os.listdir("/proc/self/fd")]
    except FileNotFoundError:
        return []
    return [link for link in links if link.startswith(str(folder))]


@pytest.fixture(
    params=stores("file", "rollback journal", "memory", "postgres", "pool", "pgbouncer")
)
def open_(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    if request.param == "rollback journal":
        return lambda: open_history(tmp_path / "history.db", journal="delete")
    if request.param == "pool":
        return partial(_OfUsersPool, url_of("postgres", request, tmp_path))
    url = url_of(request.param, request, tmp_path)
    # One of two connections writes. If a place in the pool were lost, nothing could be read.
    if request.param == "postgres":
        return lambda: open_history(with_query(url, application_name=_OURS), pool_size=2)
    if request.param == "pgbouncer":
        return lambda: open_history(url, pool_size=2)
    return lambda: open_history(url)


_OURS = "cancelled at each await"


class _OfUsersPool:
    """A manager of a user's pool. The pool has all its connections once the manager is closed."""

    def __init__(self, url: str) -> None:
        server, _, self._schema = url.rpartition("schema=")
        self._server = server.rstrip("?&")

    async def __aenter__(self) -> HistoryManager:
        with anyio.CancelScope(shield=True):
            self._pool = await asyncpg.create_pool(
                self._server,
                min_size=0,
                max_size=2,
                server_settings={"application_name": _OURS},
            )
        self._history = PostgresHistoryManager(pool=self._pool, schema=self._schema)
        try:
            return await self._history.__aenter__()
        except BaseException:
            await self._close_pool()
            raise

    async def __aexit__(self, *error: Any) -> None:
        try:
            await self._history.__aexit__(*error)
        finally:
            await self._close_pool()

    async def _close_pool(self) -> None:
        with anyio.CancelScope(shield=True):
            await asyncio.wait_for(self._pool.close(), LONG_S)


async def _require_no_connections(postgres: str) -> None:
    """Return once the server has no connection of ours."""
    admin = await asyncpg.connect(postgres)

    async def are_gone() -> bool:
        return not await admin.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1", _OURS
        )

    await until(are_gone)
    await admin.close()


@pytest.mark.parametrize("how", CANCELS)
@pytest.mark.parametrize("what", ["opening", "reads", "writes"])
def test_cancelled_at_each_await(
    what: str, how: str, open_: Open, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    before = set(threading.enumerate())
    if what == "opening":
        asyncio.run(_open_and_close(open_, how))
    else:
        asyncio.run(_try_all(open_, READS if what == "reads" else WRITES, how))
    assert not _left_threads(before)
    assert not _left_files(tmp_path)
    path = tmp_path / "history.db"
    if path.exists():
        with closing(sqlite3.connect(path, timeout=0)) as plain:
            plain.execute("BEGIN EXCLUSIVE")
    if isinstance(open_, partial) or "postgres" in request.node.name:
        asyncio.run(_require_no_connections(request.getfixturevalue("postgres")))


@pytest.mark.parametrize("how", CANCELS)
def test_a_cancelled_backup_leaves_nothing(how: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with open_history(tmp_path / "history.db") as history:
            await history.add_history("m", None, "x", "ADD")
            for nth in range(_MOST_AWAITS):
                copy = tmp_path / f"copy {nth}"
                if not await CANCELS[how](history.backup(copy), nth):
                    break
                assert not list(tmp_path.glob("*.unfinished"))
            assert len(await history.get_history("m")) == 1

    before = set(threading.enumerate())
    asyncio.run(main())
    assert not _left_threads(before)
    assert not _left_files(tmp_path)


async def test_requests_that_a_middleware_s_scope_cancels(tmp_path: Path) -> None:
    app = FastAPI()
    acked: list[str] = []
    async with open_history(tmp_path / "history.db") as history:

        @app.middleware("http")
        async def give_up(request: Request, call_next: Any) -> Any:
            turns = int(request.query_params["turns"])
            with anyio.CancelScope() as scope:

                async def cancel_later() -> None:
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    scope.cancel()

                cancelling = asyncio.create_task(cancel_later())
                response = await call_next(request)
                cancelling.cancel()
                return response
            return Response(status_code=504)

        @app.get("/{name}")
        async def endpoint(name: str, turns: int) -> int:
            record = await history.add_history("m", None, name, "ADD")
            acked.append(record.id)
            return len(await history.get_history("m")) + await history.count_history(text="x")

        transport = ASGITransport(app=app)
        async with AsyncClient(transport=transport, base_url="http://test") as client:
            answers = await asyncio.gather(
                *(client.get(f"/{turns}", params={"turns": turns}) for turns in range(0, 200, 4))
            )
        assert {answer.status_code for answer in answers} <= {200, 504}
        assert 504 in {answer.status_code for answer in answers}
        there = await asyncio.wait_for(history.get_history("m"), LONG_S)
        assert set(acked) <= {record.id for record in there}


def test_worker_threads_that_all_wait_for_their_acks(tmp_path: Path) -> None:
    """The writer opens the file again after another's reset, and needs no thread of anyio's."""
    path = tmp_path / "history.db"

    async def main() -> int:
        async with open_history(path) as history:
            await history.add_history("m", None, "x", "ADD")
            with closing(sqlite3.connect(path)) as plain:
                plain.executescript("DROP TABLE history; DROP TABLE messages")

            def call(name: str) -> None:
                anyio.from_thread.run(history.add_history, name, None, "x", "ADD")

            limiter = anyio.to_thread.current_default_thread_limiter()
            async with asyncio.timeout(LONG_S), anyio.create_task_group() as group:
                for n in range(int(limiter.total_tokens)):
                    group.start_soon(anyio.to_thread.run_sync, call, str(n))
            return await history.count_history() - int(limiter.total_tokens)

    assert asyncio.run(main()) == 0
