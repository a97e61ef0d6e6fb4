"""Connections to PostgreSQL that break, or are delayed, at each message of a call in turn."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import timedelta
from itertools import count
from typing import Any

import pytest

from async_history import (
    CommitUnknown,
    HistoryClosed,
    HistoryManager,
    IdConflict,
    StorageLocked,
    StorageRefused,
    StorageUnreachable,
    open_history,
)
from async_history._postgres.connecting.lock_connection import LockConnection
from async_history._postgres.connecting.pool_limits import PoolLimits
from async_history._postgres.connecting.url import server_url
from tests.subprocesses.postgres_load import texts
from tests.subprocesses.proxy import Proxy
from tests.support.patience import LONG_S, SOON_S
from tests.support.postgres_faults import (  # noqa: F401 - fixtures are used by name
    a_admin,
    a_proxy,
    a_schema,
    a_server,
    a_url,
    add,
    again,
    connected,
    submission,
    taken_into_a_batch,
    until_more_wait,
    until_others_are,
    waiting_for_locks,
)
from tests.support.postgres_server import PostgresServer, are_installed, with_query

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.faults,
    pytest.mark.once,
    pytest.mark.skipif(not are_installed(), reason="needs a server of its own"),
]


@pytest.fixture
def places(request: pytest.FixtureRequest) -> Iterable[int]:
    """After how many messages a long call is cut off: any with --nightly, else a fifth of them."""
    step = 1 if request.config.getoption("--nightly") else 5
    return count(random.randrange(step), step)  # noqa: S311 - a test's random choices


Way = Callable[[HistoryManager, int], Awaitable[list[str]]]
"""Write something under a number; return the texts that must be stored then, in order."""


def expected(number: int, size: int) -> list[str]:
    return [f"{number}.{index}" for index in range(size)]


async def one(history: HistoryManager, number: int) -> list[str]:
    await add(history, f"{number}.0")
    return expected(number, 1)


async def several(history: HistoryManager, number: int) -> list[str]:
    await history.batch_add_history(submission(number, 3, named=False))
    return expected(number, 3)


async def named(history: HistoryManager, number: int) -> list[str]:
    await history.batch_add_history(submission(number, 3, named=True))
    return expected(number, 3)


async def if_latest(history: HistoryManager, number: int) -> list[str]:
    newest = history.query_history(memory_id="m", order="newest", page_size=1)
    latest = await anext(aiter(newest), None)
    await history.batch_add_history(submission(number, 2, named=False), if_latest=latest)
    return expected(number, 2)


async def all_kinds(history: HistoryManager, number: int) -> list[str]:
    """Write one batch of everything, with a record that a trigger refuses."""
    results = await asyncio.gather(
        history.batch_add_history(submission(number, 3, named=False)),
        history.save_messages([{"content": f"{number}"}], "s"),
        history.add_history("m", None, "forbidden", "UPDATE"),
        history.save_messages([{"content": f"{number} again"}], "s"),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [list, type(None), StorageRefused, type(None)]
    messages = await history.get_last_messages("s", 2)
    assert [message.content for message in messages] == [f"{number}", f"{number} again"]
    return expected(number, 3)


async def messages(history: HistoryManager, number: int) -> list[str]:
    await history.save_messages([{"content": f"{number} {n}"} for n in range(2)], "s")
    saved = [message.content for message in await history.get_last_messages("s")]
    assert saved == [f"{n // 2} {n % 2}" for n in range(number * 2 + 2)][-10:]
    return []


async def forbid(admin: Any, schema: str) -> None:
    await admin.execute(
        f'ALTER TABLE "{schema}".history ADD CHECK (new_memory IS DISTINCT FROM $$forbidden$$)'
    )


async def until_known(url: str, records: list[dict[str, Any]]) -> None:
    """Submit records with ids through a manager without a short deadline."""
    async with open_history(url) as history:
        await history.batch_add_history(records)


class TestStoppedServer:
    """The server stops at each message of a client in turn, and never answers it."""

    async def test_no_call_waits_longer_than_its_limits(
        self, proxy: Proxy, schema: str, places: Iterable[int]
    ) -> None:
        url = with_query(proxy.url, schema=schema)
        async with open_history(url):
            pass  # opening makes the tables
        for place in places:
            late = proxy.hold(after=place)
            async with asyncio.timeout(SOON_S):
                with contextlib.suppress(CommitUnknown, StorageLocked, StorageUnreachable):
                    await self.use(url)
            late.release()
            if not late.came.is_set():
                break
        assert place > 15, "messages from opening to closing"

    @staticmethod
    async def use(url: str) -> None:
        async with open_history(url, acquire_timeout_s=0.3, retry_timeout_s=0.6) as history:
            await add(history, "x")
            await asyncio.gather(*(history.get_history("m") for _ in range(2)))
            await history.save_messages([{"content": "x"}], "s")

    async def test_no_session_of_locks_waits_longer_than_its_limit(self, proxy: Proxy) -> None:
        limits = PoolLimits(1, None, acquire_timeout_s=0.3, idle_s=None, lifetime_s=None)
        for place in count():
            late = proxy.hold(after=place)
            async with asyncio.timeout(SOON_S):
                with contextlib.suppress(StorageUnreachable):
                    locks = await LockConnection.connect(server_url(proxy.url), limits)
                    assert locks is not None
                    locks.terminate()
            late.release()
            if not late.came.is_set():
                break
        assert place > 5, "messages"


class TestCuts:
    """The connection is cut at each message of a commit in turn, in either direction."""

    @pytest.mark.parametrize(
        ("way", "cache"),
        [
            *((way, None) for way in (several, named, if_latest, all_kinds, messages)),
            *((way, 0) for way in (several, if_latest, messages)),  # as with a pooler
        ],
    )
    async def test_every_caller_gets_an_ack(
        self,
        proxy: Proxy,
        schema: str,
        admin: Any,
        way: Way,
        cache: int | None,
        places: Iterable[int],
    ) -> None:
        url = with_query(proxy.url, schema=schema)
        async with open_history(url, pool_size=2, statement_cache_size=cache) as history:
            await forbid(admin, schema)
            wanted = await way(history, 0)
            for number, place in enumerate(places, 1):
                proxy.cut_after(place)
                wanted += await way(history, number)
                if proxy.cuts < number:
                    break
            assert await texts(admin, schema) == wanted
        assert place > 5, "messages of a commit"

    @pytest.mark.parametrize("way", [one, named])
    async def test_an_unreachable_server_makes_the_outcome_unknown_at_the_deadline(
        self, proxy: Proxy, schema: str, admin: Any, way: Way
    ) -> None:
        """The error has the ids. With them the records may be written again, written or not.

        On a busy machine an attempt may end before its statement is sent. The outcome is then
        known: not written.
        """
        url = with_query(proxy.url, schema=schema)
        await until_known(url, submission(0, 1, named=True))
        async with open_history(url, pool_size=2, retry_timeout_s=0.1) as history:
            wanted = expected(0, 1)
            for number in count(1):
                proxy.cut_after(number - 1, for_good=True)
                try:
                    wanted += await way(history, number)
                except CommitUnknown as error:
                    all_of_it = expected(number, len(error.ids))
                    assert await texts(admin, schema) in (wanted, wanted + all_of_it)
                    proxy.stop_cutting()
                    await until_known(url, again(number, error))
                    wanted += all_of_it
                except StorageUnreachable:
                    assert await texts(admin, schema) == wanted
                    proxy.stop_cutting()
                if proxy.cuts < number:
                    break
            assert await texts(admin, schema) == wanted
        assert number > 5

    async def test_a_reset_cut_at_each_message(self, proxy: Proxy, schema: str, admin: Any) -> None:
        async with open_history(with_query(proxy.url, schema=schema), pool_size=2) as history:
            for number in count(1):
                await add(history, "before")
                proxy.cut_after(number - 1)
                await history.reset()
                await add(history, "after")
                assert await texts(admin, schema) == ["after"]
                if proxy.cuts < number:
                    break
        assert number > 5

    async def test_an_erasure_cut_at_each_message(
        self, proxy: Proxy, schema: str, places: Iterable[int]
    ) -> None:
        """It counts everything that it erased, even if it was not told that a step committed."""
        async with open_history(with_query(proxy.url, schema=schema), pool_size=2) as history:
            for number, place in enumerate(places, 1):
                name = await _record_to_erase(history, number)
                proxy.cut_after(place)
                assert await _erased(history, name, "memory") == (3, 2), place
                if proxy.cuts < number:
                    break
            proxy.stop_cutting()
            erasures = await history.erasures()
            assert [(one.records, one.messages) for one in erasures] == [(3, 2)] * number
        assert place > 15

    async def test_a_prune_cut_at_each_message(
        self, proxy: Proxy, schema: str, places: Iterable[int]
    ) -> None:
        """It counts everything that it removed, even if it was not told that a step committed."""
        async with open_history(with_query(proxy.url, schema=schema), pool_size=2) as history:
            for number, place in enumerate(places, 1):
                await history.reset()  # each row that is read is one message
                await _outlived(history)
                proxy.cut_after(place)
                assert await _pruned(history) == (5, 1), place
                if proxy.cuts < number:
                    break
        assert place > 15


async def _outlived(history: HistoryManager) -> None:
    """Record three old changes of a memory that stays, and three of a deleted one."""
    then = "2020-01-01T00:00:00Z"
    old = {"memory_id": "stays", "event": "UPDATE", "created_at": then, "updated_at": then}
    ending = old | {"memory_id": "ends"}
    await history.batch_add_history([old, ending, old, ending, ending | {"event": "DELETE"}, old])


async def _pruned(history: HistoryManager) -> tuple[int, int]:
    """Prune; return the records and memories of the report."""
    report = await history.prune(older_than=timedelta(days=1))
    return report.records, report.memories_gone


async def _record_to_erase(history: HistoryManager, number: int) -> str:
    """Record something to erase; return the memory, the actor and the scope."""
    name = str(number)
    items = submission(number, 3, named=False)
    await history.batch_add_history([one | {"memory_id": name, "actor_id": name} for one in items])
    await history.save_messages([{"content": text} for text in ("a", "b")], name)
    return name


async def _erased(history: HistoryManager, name: str, by: str) -> tuple[int, int]:
    """Erase it; return the records and messages of the report."""
    whose: dict[str, Any] = {"memory_ids": [name]} if by == "memory" else {"actor_id": name}
    report = await history.erase(**whose, session_scopes=[name], reason="asked", vacuum=False)
    return report.records, report.messages


class TestLateMessages:
    """A message reaches the server after its sender was cut off and has tried again."""

    async def test_a_late_reset_does_not_remove_records_acked_after_it(
        self, proxy: Proxy, schema: str, admin: Any
    ) -> None:
        async with open_history(with_query(proxy.url, schema=schema)) as history:
            await add(history, "before")
            late = proxy.hold(b"TRUNCATE")
            reset = asyncio.create_task(history.reset())
            await late.came.wait()
            late.cut_client()
            await reset
            await add(history, "after")
            late.release()
            await until_others_are(admin, 1)
            assert await texts(admin, schema) == ["after"]

    @pytest.mark.parametrize("way", [if_latest, all_kinds, messages])
    async def test_a_retry_waits_for_the_first_commit(
        self, proxy: Proxy, schema: str, admin: Any, way: Way
    ) -> None:
        """The retry is refused neither as a repeated id nor as not the latest."""
        async with open_history(with_query(proxy.url, schema=schema)) as history:
            await forbid(admin, schema)
            wanted = await way(history, 0)
            late = proxy.hold(b"COMMIT;")
            call = asyncio.ensure_future(way(history, 1))
            await late.came.wait()
            late.cut_client()
            await until_more_wait(admin)
            late.release()
            wanted += await call
            assert await texts(admin, schema) == wanted

    @pytest.mark.parametrize(
        ("by", "before"),
        [
            ("memory", ["begun", "names noted"]),
            ("actor", ["begun", "names noted", "records found"]),
        ],
    )
    async def test_an_erasure_counts_once_what_two_attempts_erase(
        self, proxy: Proxy, schema: str, admin: Any, by: str, before: Sequence[str]
    ) -> None:
        async with open_history(with_query(proxy.url, schema=schema)) as history:
            name = await _record_to_erase(history, 0)
            late = proxy.hold(b"COMMIT;")
            erasing = asyncio.ensure_future(_erased(history, name, by))
            for _ in before:
                await late.came.wait()
                earlier, late = late, proxy.hold(b"COMMIT;")
                earlier.release()
            await late.came.wait()
            late.cut_client()
            await until_more_wait(admin)
            late.release()
            assert await erasing == (3, 2)
            (erasure,) = await history.erasures()
            assert (erasure.records, erasure.messages) == (3, 2)

    async def test_a_prune_counts_once_what_two_attempts_remove(
        self, proxy: Proxy, schema: str, admin: Any
    ) -> None:
        async with open_history(with_query(proxy.url, schema=schema)) as history:
            await _outlived(history)
            late = proxy.hold(b"COMMIT;")
            pruning = asyncio.ensure_future(_pruned(history))
            await late.came.wait()
            late.cut_client()
            await until_more_wait(admin)
            late.release()
            assert await pruning == (5, 1)

    async def test_records_submitted_again_during_the_first_commit(
        self, proxy: Proxy, schema: str, admin: Any
    ) -> None:
        """With the ids of a first commit whose outcome is unknown and which has not ended."""
        url = with_query(proxy.url, schema=schema)
        items = submission(1, 2, named=False)
        async with open_history(url, statement_cache_size=0, retry_timeout_s=3) as history:
            await several(history, 0)
            late = proxy.hold(b"COMMIT;")
            with pytest.raises(CommitUnknown) as unknown:
                await history.batch_add_history(items)
        items = again(1, unknown.value)
        async with open_history(url) as history:
            waiting = await waiting_for_locks(admin)
            call = asyncio.create_task(history.batch_add_history(items))
            await until_more_wait(admin, waiting)
            late.release()
            await call
            with pytest.raises(IdConflict):
                await history.batch_add_history([items[0] | {"new_memory": "other"}])
            assert await texts(admin, schema) == expected(0, 3) + expected(1, 2)

    @pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
    async def test_if_latest_holds_under_any_isolation_level(
        self, server: PostgresServer, schema: str, admin: Any, isolation: str
    ) -> None:
        """Of several calls that compare with the latest record, one appends."""
        await admin.execute(f"CREATE DATABASE {schema}")
        await admin.execute(
            f"ALTER DATABASE {schema} SET default_transaction_isolation='{isolation}'"
        )
        url = server.url(schema)
        async with open_history(url) as one, open_history(url) as other:
            latest = await one.add_history("m", None, "0", "ADD")
            for number in range(20):
                results = await asyncio.gather(
                    *(
                        history.batch_add_history(
                            [{"memory_id": "m", "new_memory": str(number), "event": "UPDATE"}],
                            if_latest=latest,
                        )
                        for history in (one, other)
                    ),
                    return_exceptions=True,
                )
                ((latest,),) = [result for result in results if isinstance(result, list)]
            assert len(await one.get_history("m")) == 21


class TestCancellation:
    """The caller is cancelled at each message of its call in turn."""

    async def cancelled_at_each(
        self,
        proxy: Proxy,
        call: Callable[[], Awaitable[object]],
        check: Callable[[], Awaitable[Any]],
        places: Iterable[int] | None = None,
    ) -> int:
        for number in places or count(1):
            passed = asyncio.create_task(proxy.passed(number).wait())
            task = asyncio.ensure_future(call())
            await asyncio.wait((passed, task), return_when=asyncio.FIRST_COMPLETED)
            passed.cancel()
            is_over = not task.cancel()
            await asyncio.wait([task])
            await check()
            if is_over:
                return number
        raise AssertionError

    async def test_a_cancelled_opening(
        self, proxy: Proxy, schema: str, admin: Any, places: Iterable[int]
    ) -> None:
        async def open_and_close() -> None:
            async with open_history(with_query(proxy.url, schema=schema)) as history:
                await add(history, "x")

        async def nothing_is_left() -> None:
            await until_others_are(admin, 0)

        assert await self.cancelled_at_each(proxy, open_and_close, nothing_is_left, places) > 20
        await open_and_close()

    @pytest.mark.parametrize(("cache", "asks_to_cancel"), [(None, True), (0, False)])
    async def test_a_cancelled_read(
        self, proxy: Proxy, schema: str, cache: int | None, asks_to_cancel: bool
    ) -> None:
        """The server is asked to cancel the read of a cancelled caller; a pooler is not."""
        url = with_query(proxy.url, schema=schema)
        async with open_history(url, pool_size=2, statement_cache_size=cache) as history:
            await add(history, "x")

            async def check() -> None:
                assert len(await history.get_history("m")) == 1

            assert await self.cancelled_at_each(proxy, check, check) > 2
            while asks_to_cancel and not proxy.cancel_requests:  # it was always answered before
                await self.cancelled_at_each(proxy, check, check)
        assert (proxy.cancel_requests > 0) is asks_to_cancel

    async def test_closing_cancels_no_query(self, proxy: Proxy, schema: str) -> None:
        """A pooler can crash on a request to cancel whose sender is gone: none is sent."""
        for turns in range(1, 8):
            async with open_history(with_query(proxy.url, schema=schema)) as history:
                reading = [asyncio.create_task(history.get_history("m")) for _ in range(100)]
                passed = proxy.passed(turns * 20)
                await asyncio.wait_for(passed.wait(), LONG_S)
            found = await asyncio.gather(*reading, return_exceptions=True)
            assert [one for one in found if one != [] and not isinstance(one, HistoryClosed)] == []
        assert proxy.cancel_requests == 0

    @pytest.mark.parametrize("way", [several, all_kinds])
    async def test_a_cancelled_write(self, proxy: Proxy, schema: str, admin: Any, way: Way) -> None:
        """A batch completes."""
        numbers = count()
        async with open_history(with_query(proxy.url, schema=schema), pool_size=2) as history:
            await forbid(admin, schema)

            async def write() -> None:
                await way(history, next(numbers))

            async def check() -> None:
                await add(history, "next")

            await self.cancelled_at_each(proxy, write, check)
            found = [text for text in await texts(admin, schema) if text != "next"]
            assert found == [
                f"{number}.{index}" for number in range(next(numbers)) for index in range(3)
            ]

    async def test_a_cancelled_reset(self, proxy: Proxy, schema: str, admin: Any) -> None:
        async with open_history(with_query(proxy.url, schema=schema), pool_size=2) as history:

            async def check() -> None:
                await add(history, "after")
                assert await texts(admin, schema) == ["after"]

            await self.cancelled_at_each(proxy, history.reset, check)

    def test_the_end_of_asyncio_run_completes_the_batch(
        self, url: str, server: PostgresServer, schema: str
    ) -> None:
        """Callers are cancelled, the batch is not. Everything is closed."""
        calls: list[asyncio.Future[Any]] = []

        async def leave() -> None:
            history = await open_history(url)
            calls.append(asyncio.ensure_future(named(history, 0)))
            await taken_into_a_batch(history)

        async def look() -> list[str]:
            async with connected(server) as connection:
                await until_others_are(connection, 0)
                return await texts(connection, schema)

        asyncio.run(leave())
        assert calls[0].cancelled()
        assert asyncio.run(look()) == expected(0, 3)
