"""Following, on every backend: every record once and in order, whatever happens meanwhile."""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from async_history import (
    CursorGone,
    HistoryClosed,
    HistoryManager,
    HistoryRecord,
    InvalidInput,
    StorageUnreachable,
    WrongLoop,
    dump_lines,
    open_history,
)
from async_history._core.concurrency.commit_signal import CommitSignal
from async_history._core.reading.follow import Follower
from async_history._core.reading.follow_reads import FollowRead
from async_history._core.reading.follower_group import FollowerGroup
from async_history.testing import FollowCases, FollowerEndCases, NewStore
from async_history.testing.follow import numbers
from async_history.testing.followers import NEVER_S, SOON_S, Reading, add_many, first
from tests.conftest import OpenStore, stores, url_of
from tests.subprocesses import processes
from tests.support.patience import LONG_S


class TestEveryBackend(FollowerEndCases): ...


class TestBackendsThatKeep(FollowCases):
    @pytest.fixture
    def new_store(self, new_keeping_store: NewStore) -> NewStore:
        return new_keeping_store


class FakeStore:
    """Records and a mark that a test sets. Counts how often each was read."""

    def __init__(self) -> None:
        self.bell = CommitSignal()
        self.records: list[HistoryRecord] = []
        self.reads: list[tuple[int, str | None]] = []
        self.marks = 0
        self.marked = asyncio.Event()
        self.mark_error: Exception | None = None
        self.read_error: Exception | None = None
        self.may_read = asyncio.Event()
        self.may_read.set()
        self.cancelled_reads = 0
        self.group: FollowerGroup[int] = FollowerGroup(self.bell, lambda: self)

    def add(self, text: str, memory_id: str = "m") -> None:
        self.records.append(HistoryRecord(text, memory_id, None, text, "ADD"))

    def position(self, cursor: str | None) -> int | None:
        return None if cursor is None else int(cursor)

    async def end(self) -> int:
        return len(self.records)

    async def page(self, after: int | None, memory_id: str | None, limit: int) -> FollowRead[int]:
        self.reads.append((after or 0, memory_id))
        begin, end = after or 0, len(self.records)
        try:
            await self.may_read.wait()
        except asyncio.CancelledError:
            self.cancelled_reads += 1
            raise
        if self.read_error is not None:
            raise self.read_error
        places = [n for n in range(begin, end) if memory_id in (None, self.records[n].memory_id)][
            :limit
        ]
        records = [self.records[n] for n in places]
        return FollowRead(records, lambda index: places[index] + 1, end, is_last=True)

    async def mark(self) -> int:
        self.marks += 1
        self.marked.set()
        await asyncio.sleep(0)
        if self.mark_error is not None:
            raise self.mark_error
        return len(self.records)

    async def until_marks(self, count: int) -> None:
        async with asyncio.timeout(LONG_S):
            while self.marks < count:
                self.marked.clear()
                await self.marked.wait()
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    def follow(self, memory_id: str | None = None, poll_interval_s: float = NEVER_S) -> Any:
        return Follower(self.group, None, memory_id, (), (), poll_interval_s)


class TestSharing:
    """Followers of one manager share reads."""

    async def test_a_commit_during_a_read_starts_another_read(self) -> None:
        """The follower was not waiting yet when the record was committed."""
        store = FakeStore()
        store.may_read.clear()
        async with Reading(store.follow()) as reading:
            while not store.reads:  # noqa: ASYNC110 - a read that has begun, and finds nothing
                await asyncio.sleep(0)
            store.add("x")
            store.bell.notify()
            store.may_read.set()
            assert await reading.until(1) == ["x"]
        assert len(store.reads) == 2

    async def test_a_read_that_began_before_a_commit_is_not_shared_after_it(self) -> None:
        store = FakeStore()
        store.may_read.clear()
        async with Reading(store.follow()):
            while not store.reads:  # noqa: ASYNC110
                await asyncio.sleep(0)
            store.add("x")
            store.bell.notify()
            async with Reading(store.follow()) as late:
                while len(store.reads) < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0)
                store.may_read.set()
                assert await late.until(1) == ["x"]

    @pytest.mark.parametrize("many", [1, 2, 300])
    async def test_idle_followers_share_a_poll_and_read_nothing(self, many: int) -> None:
        store = FakeStore()
        store.add("0")
        async with AsyncExitStack() as stack:
            readings = [
                await stack.enter_async_context(
                    Reading(store.follow("m" if n % 2 else None, SOON_S))
                )
                for n in range(many)
            ]
            for reading in readings:
                await reading.until(1)
            await store.until_marks(2)  # the first poll may have woken followers that had read it
            reads = len(store.reads)
            await store.until_marks(12)
            assert len(store.reads) == reads <= 4
            store.add("1")  # by another process: nothing wakes the followers
            for reading in readings:
                assert await reading.until(2) == ["0", "1"]
            assert len(store.reads) == reads + 1
        marks = store.marks
        await asyncio.sleep(0)
        assert store.marks <= marks + 1

    async def test_followers_of_one_memory_share_a_read(self) -> None:
        store = FakeStore()
        async with AsyncExitStack() as stack:
            readings = [
                await stack.enter_async_context(Reading(store.follow(f"m{n}"))) for n in range(50)
            ]
            while store.group.waiting < 50:  # noqa: ASYNC110 - until all are at the end
                await asyncio.sleep(0)
            reads = len(store.reads)
            for n in range(50):
                store.add(f"text {n}", f"m{n}")
            store.bell.notify()
            for n, reading in enumerate(readings):
                assert await reading.until(1) == [f"text {n}"]
            assert store.reads[reads:] == [(0, None)]

    async def test_the_shortest_poll_interval_counts(self) -> None:
        store = FakeStore()
        async with Reading(store.follow(poll_interval_s=NEVER_S)):
            await asyncio.sleep(0)
            async with Reading(store.follow(poll_interval_s=SOON_S)) as reading:
                await store.until_marks(3)
                store.add("x")
                assert await reading.until(1) == ["x"]

    async def test_a_poll_that_fails_raises_in_every_follower(self) -> None:
        store = FakeStore()
        errors = [StorageUnreachable("gone"), ValueError("a bug")]
        for error in errors:
            store.mark_error = store.read_error = None
            async with Reading(store.follow(poll_interval_s=SOON_S)) as reading:
                await store.until_marks(store.marks + 2)
                store.mark_error = error
                store.read_error = StorageUnreachable("gone")
                with pytest.raises(StorageUnreachable):
                    await reading.until(1)

    async def test_each_follower_gets_its_own_error(self) -> None:
        store = FakeStore()
        store.read_error = CursorGone("gone")
        async with Reading(store.follow()) as a, Reading(store.follow()) as b:
            async with asyncio.timeout(LONG_S):
                await asyncio.wait([a.task, b.task])
        assert len(store.reads) == 1
        assert isinstance(a.task.exception(), CursorGone)
        assert isinstance(b.task.exception(), CursorGone)
        assert a.task.exception() is not b.task.exception()

    async def test_a_read_goes_on_when_its_callers_time_out(self) -> None:
        """However often the caller times out, one read runs to its end and nothing is lost."""
        store = FakeStore()
        store.add("x")
        store.may_read.clear()
        following = store.follow()
        for _ in range(20):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(following), 0.001)
        store.may_read.set()
        assert (await anext(following)).new_memory == "x"
        assert (len(store.reads), store.cancelled_reads) == (1, 0)


class TestOneByOne:
    """`anext` and `next_records` with timeouts, as in an endpoint with heartbeats."""

    async def test_timeouts_lose_nothing(self, open_keeping_store: OpenStore) -> None:
        async with open_keeping_store() as history:
            following = history.follow(poll_interval_s=SOON_S)
            found: list[str | None] = []
            beats = 0
            for number in range(30):
                for timeout_s in (0.0001, 0.001, 0.02):
                    try:
                        record = await asyncio.wait_for(anext(following), timeout_s)
                    except TimeoutError:
                        beats += 1
                    else:
                        found.append(record.new_memory)
                await history.add_history("m", None, str(number), "ADD")
            while len(found) < 30:
                found += [r.new_memory for r in await following.next_records(limit=7)]
            assert found == numbers(0, 30)
            assert beats
            assert await following.next_records(timeout_s=0.01) == []
            # It is not compared with the end, which any transaction of a server moves.
            again = history.follow(after=following.cursor, poll_interval_s=SOON_S)
            await history.add_history("m", None, "last", "ADD")
            assert [record.new_memory for record in await again.next_records()] == ["last"]

    async def test_next_records_returns_many_at_once(self, open_keeping_store: OpenStore) -> None:
        async with open_keeping_store() as history:
            following = history.follow(memory_id="m", poll_interval_s=NEVER_S)
            assert await following.next_records(timeout_s=0.001) == []
            await history.batch_add_history(add_many(numbers(0, 10)))
            await history.batch_add_history(add_many(["other"], "n"))
            taken = await following.next_records(limit=4)
            assert [record.new_memory for record in taken] == numbers(0, 4)
            again = history.follow(after=following.cursor, memory_id="m")
            for follower in (following, again):
                rest = await follower.next_records()
                assert [record.new_memory for record in rest] == numbers(4, 10)
            for limit in (0, -1, True, 1.5, "1", None):
                with pytest.raises(InvalidInput, match="limit must be"):
                    await following.next_records(limit=limit)  # type: ignore[arg-type]
            for timeout_s in (-1, True, "1", float("nan")):
                with pytest.raises(InvalidInput, match="timeout_s must be"):
                    await following.next_records(timeout_s=timeout_s)  # type: ignore[arg-type]

    async def test_a_follower_belongs_to_one_task(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            following = history.follow(poll_interval_s=NEVER_S)
            async with Reading(following) as reading:
                await asyncio.sleep(0)
                with pytest.raises(InvalidInput, match="another task"):
                    await anext(following)
                await history.add_history("m", None, "x", "ADD")
                if await history.get_history("m"):
                    assert await reading.until(1) == ["x"]


class TestOtherLoops:
    """A follower is checked when it is iterated over, not only when it is made."""

    async def test_another_loop_is_refused(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            await history.add_history("m", None, "x", "ADD")

            async def first_of(iterable: AsyncIterable[object]) -> None:
                async for _ in iterable:
                    return

            def elsewhere(iterable: AsyncIterable[object]) -> None:
                asyncio.run(first_of(iterable))

            for iterable in (
                history.query_history(),
                history.query_history().pages(),
                history.memories_at(datetime.now(UTC)),
                history.follow(),
                dump_lines(history),
            ):
                with pytest.raises(WrongLoop):
                    await asyncio.to_thread(elsewhere, iterable)

    async def test_a_closed_manager_is_refused(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            await history.add_history("m", None, "x", "ADD")
            iterables: list[AsyncIterable[object]] = [
                history.query_history(),
                history.memories_at(datetime.now(UTC)),
                history.follow(),
                dump_lines(history),
            ]
        for iterable in iterables:
            with pytest.raises(HistoryClosed):
                async for _ in iterable:
                    pass


@pytest.mark.subprocess
@pytest.mark.once
class TestProcesses:
    @pytest.mark.parametrize("store", stores("file", "postgres"))
    async def test_four_processes_write_and_another_continues_to_follow(
        self, store: str, request: pytest.FixtureRequest, tmp_path: Path
    ) -> None:
        """Each writer's records come once and in order, here and in a process that takes over."""
        url = url_of(store, request, tmp_path)
        names, each = ["a", "b", "c", "d"], 300
        total = (len(names) + 1) * each
        async with open_history(url) as history:
            writers = [
                await asyncio.create_subprocess_exec(
                    *processes.command("follow", "write", url, name, each), cwd=processes.ROOT
                )
                for name in names
            ]
            following = history.follow(poll_interval_s=SOON_S)
            half = asyncio.create_task(first(following, total // 2))
            for number in range(each):
                await history.add_history("us", None, f"us {number}", "UPDATE")
            texts = await half
            assert [await writer.wait() for writer in writers] == [0] * len(names)
            rest = await asyncio.to_thread(
                processes.run, "follow", "read", url, following.cursor, total - len(texts)
            )
            texts += rest.splitlines()
            for name in (*names, "us"):
                own = [text for text in texts if text and text.startswith(f"{name} ")]
                assert own == [f"{name} {n}" for n in range(each)]
            assert len(texts) == total


def _text_of(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


_PARTS = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(),
    st.integers(),
    st.integers(min_value=2**62, max_value=2**66),
    st.text(),
    st.text(st.characters(categories=["Cs", "Cc"]), min_size=1),
    st.sampled_from(
        ["sqlite", "postgresql", "1:1:", "5:3:4", "1:99999999999999999999:", "3:9:3,7"]
    ),
    st.lists(st.integers(), max_size=2),
)
MADE_UP = st.one_of(
    st.text(max_size=40),
    st.binary(max_size=40).map(_text_of),
    st.lists(_PARTS, max_size=7).map(lambda parts: _text_of(json.dumps(parts).encode())),
    st.lists(_PARTS, max_size=7).map(
        lambda parts: _text_of(json.dumps(parts, separators=(",", ":")).encode())
    ),
    st.builds(
        lambda parts: _text_of(json.dumps(parts, separators=(",", ":")).encode()),
        st.tuples(_PARTS, _PARTS),
    ),
    st.builds(
        lambda *parts: _text_of(json.dumps(["postgresql", *parts], separators=(",", ":")).encode()),
        *(_PARTS for _ in range(5)),
    ),
    st.sampled_from(
        [
            _text_of(b"[" * 100_000),
            _text_of(b'[1,"\\ud800"]'),
            _text_of(b'[1,"a\\u0000"]'),
            _text_of(b"[%d]" % 10**4_000),
            _text_of(b'["sqlite",99999999999999999999,"x"]'),
            _text_of(b'["postgresql","1/1",0,"1:1:",null,99999999999999999999]'),
            _text_of(b'["postgresql","1/1",0,"1:1:","9:3:",0]'),
            "é" * 10,
        ]
    ),
)
"""Return texts that a client may send instead of a cursor."""


@pytest_asyncio.fixture
async def history_with_a_record(open_store: OpenStore) -> AsyncIterator[HistoryManager]:
    async with open_store() as history:
        await history.add_history("m", None, "x", "ADD")
        yield history


@pytest.mark.once
class TestMadeUpCursors:
    @settings(
        max_examples=50,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(made_up=MADE_UP)
    async def test_texts_that_are_not_cursors_raise_a_typed_error(
        self, made_up: str, history_with_a_record: HistoryManager
    ) -> None:
        """At once, with a short message, or as CursorGone if the text could be a cursor."""
        history = history_with_a_record
        try:
            query = history.query_history(after=made_up)
        except InvalidInput as error:
            assert len(str(error)) < 300  # noqa: PT017
        else:
            with contextlib.suppress(CursorGone):
                async for _ in query:
                    break
        try:
            following = history.follow(after=made_up, poll_interval_s=NEVER_S)
        except InvalidInput as error:
            assert len(str(error)) < 300  # noqa: PT017
        else:
            with contextlib.suppress(CursorGone):
                await following.next_records(timeout_s=0.001)

    async def test_a_cursor_with_one_changed_part_is_refused(
        self, open_keeping_store: OpenStore
    ) -> None:
        async with open_keeping_store() as history:
            await history.add_history("m", None, "x", "ADD")
            end = await history.end_cursor()
            assert end is not None
            parts = json.loads(base64.urlsafe_b64decode(end + "=" * (-len(end) % 4)))
            for index in range(len(parts)):
                bads: list[object] = [2**63, -(2**63) - 1, True, 1.5, "\ud800", "\0", [], "9:3:"]
                for bad in bads:
                    changed = [*parts[:index], bad, *parts[index + 1 :]]
                    text = _text_of(json.dumps(changed, separators=(",", ":")).encode())
                    try:
                        following = history.follow(after=text)
                    except InvalidInput:
                        continue
                    assert bad == "9:3:"
                    with pytest.raises(CursorGone):
                        await anext(following)
