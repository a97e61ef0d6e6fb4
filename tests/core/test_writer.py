"""The group-commit writer alone, with a commit function that fails, stalls or dies on demand."""

import asyncio
import gc
import logging
import weakref
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, cast

import pytest

from async_history import (
    CommitUnknown,
    HistoryClosed,
    HistoryError,
    IdConflict,
    Overloaded,
    StorageFull,
    StorageRefused,
)
from async_history._core.writing.commit_function import OutcomeUnknown
from async_history._core.writing.committed_batch import CommittedBatch
from async_history._core.writing.observer import WriterObserver
from async_history._core.writing.pending_calls import PendingCall
from async_history._core.writing.queue import BoundedQueue
from async_history._core.writing.wakeups import FIRST_SLICE, SLICE, WakeupScheduler
from async_history._core.writing.writer import GroupCommitWriter
from async_history._core.writing.writer_options import WriterOptions
from tests.core.writers import Item, MakeWriter, Store, pending_calls, submit, turn
from tests.support.patience import LONG_S


def preparing_writer(make_writer: MakeWriter, prepared: list[list[str]]) -> GroupCommitWriter[Item]:
    """Return a writer that appends the names of what it prepares."""
    return make_writer(
        batch_records=100,
        head_start_s=3_600,
        prepare=lambda items: prepared.append([item.name for item in items]),
    )


async def committed_before_a_stall(
    store: Store, writer: GroupCommitWriter[Item], others: int = 100
) -> list[asyncio.Task[None]]:
    """Return 100 callers whose batch is committed, while the commit of others stalls."""
    store.gate.clear()
    tasks = submit(writer, *(Item(str(n)) for n in range(100 + others)))
    await store.begun.wait()
    store.begun.clear()
    store.gate.set()
    store.gate = asyncio.Event()
    await store.begun.wait()
    return tasks[:100]


class TestBatches:
    async def test_a_lone_submission_commits_at_once(
        self, store: Store, make_writer: MakeWriter
    ) -> None:
        writer = make_writer()
        await writer.submit(Item("a"))
        assert store.batches == [["a"]]

    async def test_calls_during_a_commit_share_the_next(
        self, store: Store, make_writer: MakeWriter
    ) -> None:
        store.gate.clear()
        writer = make_writer()
        first = submit(writer, Item("first"))
        await store.begun.wait()
        callers = submit(writer, *(Item(str(n)) for n in range(200)))
        await turn()
        store.gate.set()
        await asyncio.gather(*first, *callers)
        assert store.batches == [["first"], [str(n) for n in range(200)]]

    @pytest.mark.parametrize(
        ("limits", "sizes"),
        [
            ({"batch_records": 3}, [3, 3, 3, 1]),
            ({"batch_bytes": 40}, [4, 4, 2]),
            ({"batch_records": 1}, [1] * 10),
        ],
    )
    async def test_batches_are_limited(
        self, store: Store, make_writer: MakeWriter, limits: dict[str, int], sizes: list[int]
    ) -> None:
        writer = make_writer(**limits)
        await asyncio.gather(*submit(writer, *(Item(str(n), size_bytes=10) for n in range(10))))
        assert [len(batch) for batch in store.batches] == sizes
        assert store.log == [str(n) for n in range(10)]

    async def test_a_submission_larger_than_a_batch_is_one_batch(
        self, store: Store, make_writer: MakeWriter
    ) -> None:
        writer = make_writer(batch_records=3)
        await asyncio.gather(
            *submit(writer, Item("a"), Item("big", record_count=50), Item("b"), Item("c"))
        )
        assert store.batches == [["a"], ["big"], ["b", "c"]]

    async def test_acks_come_after_the_commit(self, store: Store, make_writer: MakeWriter) -> None:
        store.gate.clear()
        writer = make_writer()
        (task,) = submit(writer, Item("a"))
        await store.begun.wait()
        await turn()
        assert not task.done()
        store.gate.set()
        await task

    async def test_many_callers_get_every_ack(self, store: Store, make_writer: MakeWriter) -> None:
        """Many callers are woken just after the next commit began: none may be forgotten."""
        writer = make_writer(batch_records=100)

        async def agent(name: int) -> None:
            for n in range(5):
                await writer.submit(Item(f"{name}.{n}"))

        await asyncio.gather(*(agent(n) for n in range(300)))
        assert len(store.log) == len(set(store.log)) == 1_500
        for name in range(300):
            own = [entry for entry in store.log if entry.startswith(f"{name}.")]
            assert own == [f"{name}.{n}" for n in range(5)]
        stats = writer.stats()
        assert (stats.acked_submissions, stats.acked_records) == (1_500, 1_500)

    async def test_many_callers_are_woken_when_the_next_commit_has_begun(
        self, store: Store, make_writer: MakeWriter
    ) -> None:
        writer = make_writer(batch_records=100, head_start_s=3_600)
        callers = await committed_before_a_stall(store, writer)
        await turn()
        assert not any(task.done() for task in callers)
        assert store.has_begun is not None
        await asyncio.to_thread(store.has_begun)
        await asyncio.gather(*callers)
        store.gate.set()

    async def test_what_waits_is_prepared_while_a_batch_is_committed(
        self, store: Store, make_writer: MakeWriter
    ) -> None:
        """Once the callers of the batch before are woken, and have called again."""
        prepared: list[list[str]] = []
        writer = preparing_writer(make_writer, prepared)
        callers = await committed_before_a_stall(store, writer)
        callers[-1].add_done_callback(lambda _: submit(writer, Item("again")))
        submit(writer, *(Item(f"next {n}") for n in range(20)))
        await turn()
        assert prepared == []
        assert store.has_begun is not None
        await asyncio.to_thread(store.has_begun)
        await asyncio.gather(*callers)
        await turn()
        assert prepared == [[*(f"next {n}" for n in range(20)), "again"]]
        store.gate.set()

    async def test_only_what_waits_before_an_operation_is_prepared(
        self, store: Store, make_writer: MakeWriter
    ) -> None:
        prepared: list[list[str]] = []
        writer = preparing_writer(make_writer, prepared)
        callers = await committed_before_a_stall(store, writer)
        submit(writer, Item("before"))
        alone = asyncio.ensure_future(writer.run_alone(turn))
        submit(writer, Item("after"))
        assert store.has_begun is not None
        await asyncio.to_thread(store.has_begun)
        await asyncio.gather(*callers)
        await turn()
        assert prepared == [["before"]]
        store.gate.set()
        await alone

    async def test_nothing_is_prepared_between_commits(
        self, store: Store, make_writer: MakeWriter
    ) -> None:
        prepared: list[Sequence[Item]] = []
        writer = make_writer(prepare=prepared.append)
        for n in range(3):
            await writer.submit(Item(str(n)))
            await turn()
        assert prepared == []

    async def test_what_is_not_written_is_reported(
        self, store: Store, make_writer: MakeWriter
    ) -> None:
        """Withdrawn, refused or failed; not what was withdrawn too late."""
        reports: list[None] = []
        store.gate.clear()
        writer = make_writer(forget_prepared=lambda: reports.append(None))
        store.script += [{}, {0: StorageRefused("no")}, StorageFull("no")]
        (in_batch,) = submit(writer, Item("in a batch"))
        await store.begun.wait()
        waits, stays = submit(writer, Item("waits"), Item("stays"))
        await turn()
        in_batch.cancel()
        await turn()
        assert reports == []
        waits.cancel()
        await turn()
        assert len(reports) == 1
        store.gate.set()
        with pytest.raises(StorageRefused):
            await stays
        assert len(reports) == 2
        with pytest.raises(StorageFull):
            await writer.submit(Item("fails"))
        assert len(reports) == 3

    async def test_the_count_of_records_never_decreases(
        self, store: Store, make_writer: MakeWriter
    ) -> None:
        """Nor from a commit until the callers that it refused are woken."""
        seen: list[int] = []

        class Observer:
            sees_calls = False

            def committed(self, *_: object) -> None:
                seen.append(writer.stats().acked_records)

            def acknowledged(self, _: object) -> None:
                seen.append(writer.stats().acked_records)

        writer = make_writer()
        writer.observe(cast(WriterObserver, Observer()))
        store.script.append({1: StorageRefused("no")})
        store.gate.clear()
        done = submit(writer, Item("first"))
        await store.begun.wait()
        done += submit(writer, Item("a", 3), Item("b", 5), Item("c", 7))
        store.script.insert(0, {})
        store.gate.set()
        await asyncio.gather(*done, return_exceptions=True)
        assert seen == sorted(seen)
        assert seen[-1] == 1 + 3 + 7
        assert writer.stats().refused_submissions == 1

    async def test_many_callers_are_woken_in_slices(
        self, store: Store, make_writer: MakeWriter
    ) -> None:
        writer = make_writer()
        tasks = submit(writer, *(Item(str(n)) for n in range(3 * SLICE)))
        woken = [0]
        for _ in range(20):
            await asyncio.sleep(0)
            woken.append(sum(task.done() for task in tasks))
        steps = [b - a for a, b in pairwise(woken) if b > a]
        assert steps == [SLICE] * 3

    async def test_callers_run_in_slices(self, store: Store, make_writer: MakeWriter) -> None:
        writer = make_writer()
        ran = 0

        async def call(name: str) -> None:
            nonlocal ran
            await writer.submit(Item(name))
            ran += 1

        calls = [asyncio.create_task(call(str(n))) for n in range(3 * SLICE)]
        seen = [0]
        async with asyncio.timeout(LONG_S):
            while ran < len(calls):
                await asyncio.sleep(0)
                seen.append(ran)
        assert [b - a for a, b in pairwise(seen) if b > a] == [SLICE] * 3

    async def test_the_first_slices_are_small_while_a_commit_begins(self) -> None:
        """A large batch may not be in the socket yet."""
        left, woken = 3 * SLICE, list[int]()

        def wake(_: str, most: int) -> bool:
            nonlocal left
            woken.append(min(left, most))
            left -= woken[-1]
            return left > 0

        scheduler = WakeupScheduler[str](wake, head_start_s=3_600)
        for _ in range(2):
            left = 3 * SLICE
            scheduler.add("large", callers=left, next_callers=left)
            scheduler.commit_has_begun()
            while left:
                await turn()
        steps = [FIRST_SLICE, 8, 16, 32, 64, SLICE, SLICE, FIRST_SLICE]
        assert woken == 2 * steps

    async def test_callers_that_call_again_form_one_batch_again(
        self, store: Store, make_writer: MakeWriter
    ) -> None:
        """Although they are woken in slices, while the writer has nothing else to do."""
        writer = make_writer()

        async def agent(name: int) -> None:
            for n in range(3):
                await writer.submit(Item(f"{name}.{n}"))

        await asyncio.gather(*(agent(n) for n in range(3 * SLICE)))
        assert [len(batch) for batch in store.batches] == [3 * SLICE] * 3

    async def test_many_callers_do_not_wait_for_the_commit_of_a_few(
        self, store: Store, make_writer: MakeWriter
    ) -> None:
        writer = make_writer(batch_records=100, head_start_s=3_600)
        callers = await committed_before_a_stall(store, writer, others=5)
        await asyncio.wait_for(asyncio.gather(*callers), LONG_S)
        store.gate.set()

    async def test_a_lone_caller_is_not_woken_before_the_many_of_the_last_batch(
        self, store: Store, make_writer: MakeWriter
    ) -> None:
        writer = make_writer(batch_records=100, head_start_s=3_600)
        woken: list[str] = []
        items = [*(Item(f"many {n}") for n in range(100)), Item("lone", record_count=100)]
        items += [Item(f"after {n}") for n in range(100)]

        async def call(item: Item) -> None:
            await writer.submit(item)
            woken.append(item.name)

        calls = [asyncio.create_task(call(item)) for item in items]
        await turn()
        store.gate.set()
        await writer.submit(Item("end"))
        assert [len(batch) for batch in store.batches] == [100, 1, 100, 1]
        await asyncio.gather(*calls)
        assert woken == [item.name for item in items]

    async def test_many_callers_are_woken_even_if_the_next_commit_stalls(
        self, store: Store, make_writer: MakeWriter
    ) -> None:
        callers = await committed_before_a_stall(store, make_writer(batch_records=100))
        await asyncio.wait_for(asyncio.gather(*callers), LONG_S)
        store.gate.set()

    async def test_each_batch_has_its_own_head_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The head start of an earlier batch, which was woken sooner, does not shorten it."""
        now, woken = 0.0, list[str]()

        def wake(callers: str, most: int) -> bool:
            woken.append(callers)
            return False

        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
        scheduler = WakeupScheduler[str](wake, head_start_s=10)
        scheduler.add("first", callers=100, next_callers=100)
        scheduler.commit_has_begun()
        await turn()
        assert woken == ["first"]
        now = 9.0
        scheduler.add("second", callers=100, next_callers=100)
        now = 12.0
        await turn()
        assert woken == ["first"]
        now = 20.0
        await turn()
        assert woken == ["first", "second"]

    async def test_callers_are_woken_once_an_iteration_however_long_it_takes(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now, left = 0.0, 30
        iterations: list[int] = []
        iteration = 0

        def wake(callers: str, most: int) -> bool:
            nonlocal now, left
            now += 0.3
            left -= 1
            iterations.append(iteration)
            return left > 0

        async def count() -> None:
            nonlocal iteration
            while left:
                iteration += 1
                await asyncio.sleep(0)

        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
        counting = asyncio.create_task(count())
        await asyncio.sleep(0)
        scheduler = WakeupScheduler[str](wake)
        scheduler.add("batch", callers=30, next_callers=0)
        await scheduler.wait_until_woken()
        await counting
        assert len(set(iterations)) == len(iterations) == 30


class TestFaults:
    async def test_a_refused_submission_does_not_fail_its_neighbours(
        self, store: Store, make_writer: MakeWriter
    ) -> None:
        store.script = [{1: IdConflict("taken")}]
        writer = make_writer()
        results = await asyncio.gather(
            *submit(writer, Item("a"), Item("b"), Item("c")), return_exceptions=True
        )
        assert [type(result) for result in results] == [type(None), IdConflict, type(None)]
        assert store.batches == [["a", "c"]]
        assert writer.stats().refused_submissions == 1
        assert writer.stats().acked_records == 2

    @pytest.mark.parametrize("index", [-1, 3])
    async def test_a_refusal_of_no_submission_leaves_the_outcome_unknown(
        self, store: Store, make_writer: MakeWriter, index: int
    ) -> None:
        store.script = [{index: IdConflict("taken")}]
        writer = make_writer()
        calls = submit(writer, Item("a"), Item("b"), Item("c"))
        results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), LONG_S)
        assert [type(result) for result in results] == [CommitUnknown] * 3
        await asyncio.wait_for(writer.submit(Item("after")), LONG_S)

    async def test_a_refusal_that_always_raises_is_not_repeated(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is logged, because its caller was cancelled, and a filter of the log raises."""

        def raise_(_: logging.LogRecord) -> bool:
            raise RuntimeError("the log is full")

        monkeypatch.setattr(logging.getLogger("async_history"), "filters", [raise_])
        calls = pending_calls(4)
        asyncio.Future.cancel(calls[0])
        taken = IdConflict("taken")
        refused = {0: IdConflict("taken"), 2: taken}
        batch = CommittedBatch(list(calls), refused, lambda *_: None)
        with pytest.raises(RuntimeError, match="the log is full"):
            batch.settle(4)
        assert not batch.settle(4)
        assert [calls[1].result(), calls[2].exception(), calls[3].result()] == [None, taken, None]

    async def test_a_refusal_that_raises_has_no_acknowledgement(self) -> None:
        """As with an error that is none, and with any exception of a signal handler."""
        calls = pending_calls(2)
        refused: Any = {0: object()}
        batch = CommittedBatch(list(calls), refused, lambda *_: None)
        with pytest.raises(TypeError):
            batch.settle(4)
        assert not batch.settle(4)
        assert isinstance(calls[0].exception(), CommitUnknown)
        assert calls[1].result() is None

    async def test_callers_are_woken_in_order_though_the_observer_raises(self) -> None:
        woken: list[int] = []
        seen: list[PendingCall[Item]] = []

        def begin(calls: list[PendingCall[Item]], _: Mapping[int, HistoryError]) -> None:
            seen.extend(calls)
            raise RuntimeError("the observer failed")

        calls = pending_calls(5)
        for n, call in enumerate(calls):
            call.add_done_callback(lambda _, n=n: woken.append(n))  # type: ignore[misc]
        batch = CommittedBatch(list(calls), {}, begin)
        with pytest.raises(RuntimeError, match="the observer failed"):
            batch.settle(2)
        while batch.settle(2):
            pass
        await turn()
        assert seen == calls
        assert woken == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize(
        ("error", "kind"),
        [(StorageFull("full"), StorageFull), (RuntimeError("raised in between"), CommitUnknown)],
    )
    async def test_a_failing_store_fails_the_batch_once(
        self, store: Store, make_writer: MakeWriter, error: Exception, kind: type[HistoryError]
    ) -> None:
        store.script = [error]
        writer = make_writer()
        results = await asyncio.gather(
            *submit(writer, Item("a"), Item("b")), return_exceptions=True
        )
        assert store.calls == 1, "never one by one"
        assert all(type(result) is kind for result in results)
        assert results[0] is not results[1], "each caller gets its own error object"
        assert all(isinstance(r, BaseException) and r.__cause__ is error for r in results)
        await writer.submit(Item("later"))
        assert store.batches == [["later"]]

    async def test_unknown_outcomes_are_tried_again_under_the_same_ids(
        self, store: Store, make_writer: MakeWriter
    ) -> None:
        store.script = [OutcomeUnknown("lost"), OutcomeUnknown("lost"), {}]
        writer = make_writer()
        await writer.submit(Item("a"))
        assert (store.calls, store.batches) == (3, [["a"]])

    async def test_past_the_deadline_commit_unknown_is_raised(
        self, store: Store, make_writer: MakeWriter
    ) -> None:
        store.script = [OutcomeUnknown("lost")] * 100
        writer = make_writer(commit_timeout_s=0.05)
        results = await asyncio.gather(
            *submit(writer, Item("a"), Item("b")), return_exceptions=True
        )
        assert [getattr(result, "ids", None) for result in results] == [("a",), ("b",)]
        assert all(isinstance(result, CommitUnknown) for result in results)
        assert "ids: a" in str(results[0])

    async def test_a_dying_writer_gives_every_caller_the_reason(self, store: Store) -> None:
        class Died(BaseException):
            pass

        store.gate.clear()
        store.script = [Died("out of memory")]
        writer = GroupCommitWriter(
            store.commit, finish=store.finish, options=WriterOptions(queue_records=2)
        )
        tasks = submit(writer, *(Item(str(n)) for n in range(5)))
        await store.begun.wait()
        tasks += submit(writer, *(Item(str(n)) for n in range(5, 10)))
        await turn()
        store.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        with pytest.raises(Died):
            await writer.task
        assert {type(result) for result in results} == {HistoryClosed, CommitUnknown}
        assert all("out of memory" in str(result) for result in results)
        with pytest.raises(HistoryClosed, match="out of memory") as later:
            await writer.submit(Item("later"))
        assert isinstance(later.value.__cause__, Died)
        assert store.finished == 1


class TestCancellation:
    async def test_a_cancelled_queued_submission_is_withdrawn(
        self, store: Store, make_writer: MakeWriter
    ) -> None:
        store.gate.clear()
        writer = make_writer()
        first = submit(writer, Item("first"))
        await store.begun.wait()
        a, b, c = submit(writer, Item("a", size_bytes=5), Item("b"), Item("c"))
        await turn()
        b.cancel()
        await turn()
        assert b.cancelled(), "at once, even while the store stalls"
        assert writer.stats().queued_records == 2
        store.gate.set()
        await asyncio.gather(*first, a, c)
        assert store.batches == [["first"], ["a", "c"]]

    async def test_a_submission_cancelled_just_before_its_turn_is_withdrawn(
        self, store: Store, make_writer: MakeWriter
    ) -> None:
        """Its caller has not run since it was cancelled."""
        store.gate.clear()
        writer = make_writer()
        first = submit(writer, Item("first"))
        await store.begun.wait()
        tasks = submit(writer, Item("a"), Item("b"))
        await turn()
        store.gate.set()
        tasks[0].cancel()
        await asyncio.gather(*first, *tasks, return_exceptions=True)
        assert store.log == ["first", "b"]
        assert writer.stats().queued_records == 0

    async def test_a_cancelled_submission_in_a_batch_completes(
        self, store: Store, make_writer: MakeWriter
    ) -> None:
        store.gate.clear()
        writer = make_writer()
        (task,) = submit(writer, Item("a"))
        await store.begun.wait()
        task.cancel()
        await turn()
        assert task.cancelled()
        store.gate.set()
        await writer.submit(Item("b"))
        assert store.log == ["a", "b"]

    async def test_a_failure_without_a_waiting_caller_is_logged(
        self, store: Store, make_writer: MakeWriter, caplog: pytest.LogCaptureFixture
    ) -> None:
        store.gate.clear()
        store.script = [StorageFull("no space")]
        writer = make_writer()
        (task,) = submit(writer, Item("a"))
        await store.begun.wait()
        task.cancel()
        await turn()
        store.gate.set()
        with caplog.at_level(logging.ERROR, "async_history"):
            await writer.submit(Item("b"))
        assert "was cancelled was not written" in caplog.text
        assert "no space" in caplog.text

    async def test_a_cancelled_waiting_caller_leaves_the_queue(
        self, store: Store, make_writer: MakeWriter
    ) -> None:
        store.gate.clear()
        writer = make_writer(queue_records=1)
        tasks = submit(writer, *(Item(str(n)) for n in range(4)))
        await store.begun.wait()
        await turn()
        tasks[2].cancel()
        await turn()
        store.gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert store.log == ["0", "1", "3"]

    async def test_a_withdrawn_submission_makes_space(
        self, store: Store, make_writer: MakeWriter
    ) -> None:
        store.gate.clear()
        writer = make_writer(queue_records=1)
        tasks = submit(writer, *(Item(str(n)) for n in range(3)))
        await store.begun.wait()
        await turn()
        assert writer.stats().waiting_callers == 1
        tasks[1].cancel()
        await turn()
        assert writer.stats().waiting_callers == 0
        assert writer.stats().queued_records == 1

    async def test_the_writers_own_cancellation_means_close(self, store: Store) -> None:
        """As at the end of `asyncio.run`: every task is cancelled once, and the batch completes."""
        store.gate.clear()
        writer = GroupCommitWriter(store.commit, finish=store.finish)
        tasks = submit(writer, Item("a"))
        await store.begun.wait()
        tasks += submit(writer, Item("queued"))
        await turn()
        writer.task.cancel()
        await turn()
        store.gate.set()
        await asyncio.gather(*tasks)
        await writer.task
        assert sorted(set(store.log)) == ["a", "queued"]
        assert store.finished == 1
        with pytest.raises(HistoryClosed):
            await writer.submit(Item("late"))


class TestBackpressure:
    @pytest.mark.parametrize("limit", [{"queue_records": 10}, {"queue_bytes": 100}])
    async def test_a_full_queue_makes_callers_wait_in_turn(
        self, store: Store, make_writer: MakeWriter, limit: dict[str, int]
    ) -> None:
        store.gate.clear()
        writer = make_writer(**limit, batch_records=4)
        tasks = submit(writer, *(Item(str(n), size_bytes=10) for n in range(50)))
        await store.begun.wait()
        await turn()
        stats = writer.stats()
        assert stats.queued_records <= 10
        assert stats.queued_bytes <= 100
        assert stats.waiting_callers == 50 - 4 - 10
        store.gate.set()
        await asyncio.gather(*tasks)
        assert store.log == [str(n) for n in range(50)]

    async def test_past_the_timeout_it_is_overloaded_and_not_written(
        self, store: Store, make_writer: MakeWriter
    ) -> None:
        store.gate.clear()
        writer = make_writer(queue_records=1, queue_timeout_s=0.01)
        tasks = submit(writer, *(Item(str(n)) for n in range(5)))
        done, _ = await asyncio.wait(tasks[2:])
        for task in done:
            assert isinstance(task.exception(), Overloaded)
            assert "not written" in str(task.exception())
        store.gate.set()
        await asyncio.gather(*tasks[:2])
        await writer.submit(Item("later"))
        assert store.log == ["0", "1", "later"]

    async def test_a_refused_submission_is_not_kept(
        self, store: Store, make_writer: MakeWriter
    ) -> None:
        """It is freed at once, not at the next garbage collection: refused texts may be large."""
        store.gate.clear()
        writer = make_writer(queue_records=1, queue_timeout_s=0.01)
        tasks = submit(writer, Item("in the batch"), Item("queued"))
        await store.begun.wait()
        item = Item("refused")
        alive = weakref.ref(item)
        gc.disable()
        try:
            try:
                await writer.submit(item)
            except Overloaded:
                pass
            else:
                pytest.fail("there was space")
            del item
            await asyncio.sleep(0)
            assert alive() is None
        finally:
            gc.enable()
        store.gate.set()
        await asyncio.gather(*tasks)

    async def test_a_submission_larger_than_the_queue_enters_alone_when_it_is_empty(
        self, store: Store, make_writer: MakeWriter
    ) -> None:
        store.gate.clear()
        writer = make_writer(queue_bytes=100)
        tasks = submit(writer, Item("a", size_bytes=50), Item("b", size_bytes=50))
        await store.begun.wait()
        tasks += submit(
            writer, Item("c", size_bytes=50), Item("large", size_bytes=10_000), Item("d")
        )
        await turn()
        assert writer.stats().queued_bytes <= 100
        assert writer.stats().waiting_callers == 2, "no call overtakes the large one"
        store.gate.set()
        await asyncio.gather(*tasks)
        assert store.log == ["a", "b", "c", "large", "d"]


class TestReservedPlaces:
    """A submission that takes long to prepare keeps its call's place in the queue."""

    @pytest.fixture
    def ready(self) -> asyncio.Event:
        return asyncio.Event()

    @staticmethod
    def later(
        writer: GroupCommitWriter[Item], ready: asyncio.Event, item: Item | Exception
    ) -> "asyncio.Task[None]":
        async def prepare() -> Item:
            await ready.wait()
            if isinstance(item, Exception):
                raise item
            return item

        return asyncio.create_task(writer.submit_when_ready(prepare))

    async def test_no_later_call_overtakes_it(
        self, store: Store, make_writer: MakeWriter, ready: asyncio.Event
    ) -> None:
        writer = make_writer()
        before = submit(writer, Item("a"))
        slow = self.later(writer, ready, Item("b"))
        await turn()

        async def reset() -> None:
            store.log.append("reset")

        reset_ = asyncio.ensure_future(writer.run_alone(reset))
        after = submit(writer, Item("c"))
        await asyncio.gather(*before)
        await turn()
        assert store.log == ["a"]
        assert writer.stats().waiting_callers == 3
        ready.set()
        await asyncio.gather(slow, reset_, *after)
        assert store.log == ["a", "b", "reset", "c"]

    @pytest.mark.parametrize("how", ["invalid", "cancelled"])
    async def test_once_withdrawn_it_lets_the_others_in(
        self, store: Store, make_writer: MakeWriter, ready: asyncio.Event, how: str
    ) -> None:
        writer = make_writer()
        slow = self.later(writer, ready, IdConflict("invalid"))
        await turn()
        after = submit(writer, Item("a"), Item("b"))
        await turn()
        assert store.log == []
        if how == "invalid":
            ready.set()
        else:
            slow.cancel()
        await asyncio.gather(*after)
        assert store.log == ["a", "b"]
        with pytest.raises((IdConflict, asyncio.CancelledError)):
            await slow
        assert writer.stats().queued_records == writer.stats().waiting_callers == 0

    async def test_it_waits_for_space_like_any_other(
        self, store: Store, make_writer: MakeWriter, ready: asyncio.Event
    ) -> None:
        store.gate.clear()
        writer = make_writer(queue_records=3)
        tasks = submit(writer, Item("a"))
        await store.begun.wait()
        tasks += submit(writer, Item("b", 2))
        slow = [self.later(writer, ready, Item(name, 2)) for name in ("c", "d")]
        await turn()
        tasks += submit(writer, Item("e"))
        ready.set()
        await turn()
        assert writer.stats().queued_records == 2
        assert writer.stats().waiting_callers == 3
        store.gate.set()
        await asyncio.gather(*slow, *tasks)
        assert store.log == ["a", "b", "c", "d", "e"]

    async def test_past_the_timeout_it_is_overloaded(
        self, store: Store, make_writer: MakeWriter, ready: asyncio.Event
    ) -> None:
        store.gate.clear()
        writer = make_writer(queue_records=1, queue_timeout_s=0.01)
        tasks = submit(writer, Item("a"))
        await store.begun.wait()
        tasks += submit(writer, Item("b"))
        ready.set()
        with pytest.raises(Overloaded):
            await self.later(writer, ready, Item("c"))
        store.gate.set()
        await asyncio.gather(*tasks)
        assert store.log == ["a", "b"]

    async def test_callers_after_it_are_not_overloaded_while_there_is_space(
        self, store: Store, make_writer: MakeWriter, ready: asyncio.Event
    ) -> None:
        writer = make_writer(queue_timeout_s=0.0)
        slow = self.later(writer, ready, Item("a"))
        await turn()
        after = submit(writer, Item("b"))
        await turn()
        ready.set()
        await asyncio.gather(slow, *after)
        assert store.log == ["a", "b"]

    async def test_closing_refuses_it_and_commits_those_behind_it(
        self, store: Store, make_writer: MakeWriter, ready: asyncio.Event
    ) -> None:
        writer = make_writer()
        slow = self.later(writer, ready, Item("a"))
        await turn()
        after = submit(writer, Item("b"))
        await turn()
        await writer.aclose(5)
        await asyncio.gather(*after)
        ready.set()
        with pytest.raises(HistoryClosed):
            await slow
        with pytest.raises(HistoryClosed):
            await self.later(writer, ready, Item("c"))
        assert store.log == ["b"]


class TestErrorsWhileEntering:
    """A caller that gets an error leaves nothing in the queue."""

    @pytest.mark.parametrize("is_prepared", [False, True])
    async def test_if_the_loop_takes_no_timer(
        self, store: Store, make_writer: MakeWriter, is_prepared: bool
    ) -> None:
        store.gate.clear()
        writer = make_writer(queue_records=1, queue_timeout_s="5")
        tasks = submit(writer, Item("a"))
        await store.begun.wait()
        tasks += submit(writer, Item("b"))
        await turn()

        async def prepare() -> Item:
            return Item("c")

        with pytest.raises(TypeError):
            await (writer.submit_when_ready(prepare) if is_prepared else writer.submit(Item("c")))
        assert writer.stats().waiting_callers == 0
        store.gate.set()
        await asyncio.gather(*tasks)
        await writer.submit(Item("d"))
        assert store.log == ["a", "b", "d"]

    async def test_if_the_writer_cannot_be_woken(self) -> None:
        def fail() -> None:
            raise StorageFull("no")

        queue = BoundedQueue[Item](
            records=1, size_bytes=9, timeout_s=None, on_admitted=fail, on_withdrawn=fail
        )
        with pytest.raises(StorageFull):
            queue.enter(Item("a"), None)
        assert len(queue) == queue.records == queue.size_bytes == queue.waiting == 0


class TestStackEnds:
    """A caller near the recursion limit cannot schedule anything. Later calls are not affected."""

    async def test_the_writer_cannot_be_woken(
        self, store: Store, make_writer: MakeWriter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        writer = make_writer()
        await turn()
        with takes_no_callback(monkeypatch), pytest.raises(RecursionError):
            writer.submit(Item("a"))
        await writer.submit(Item("b"))
        assert store.log == ["b"]

    async def test_a_reserved_call_cannot_be_admitted(
        self, store: Store, make_writer: MakeWriter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def prepare() -> Item:
            await asyncio.sleep(0)
            return Item("a")

        writer = make_writer()
        await turn()
        reserved = writer.submit_when_ready(prepare)
        reserved.send(None)
        after = submit(writer, Item("b"))
        await turn()
        with takes_no_callback(monkeypatch), pytest.raises(RecursionError):
            reserved.send(None)
        await asyncio.gather(*after)
        assert store.log == ["b"]

    async def test_a_reserved_call_cannot_be_withdrawn(
        self, store: Store, make_writer: MakeWriter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise RecursionError

        async def prepare() -> Item:
            await asyncio.sleep(0)
            raise IdConflict("invalid")

        writer = make_writer()
        reserved = writer.submit_when_ready(prepare)
        reserved.send(None)
        after = submit(writer, Item("a"))
        await turn()
        with monkeypatch.context() as patch:
            patch.setattr(BoundedQueue, "withdraw", fail)
            with pytest.raises(RecursionError):
                reserved.send(None)
        await asyncio.gather(*after)
        assert store.log == ["a"]
        assert writer.stats().waiting_callers == 0


@contextmanager
def takes_no_callback(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the running loop refuse to schedule anything."""

    def fail(*_: object, **__: object) -> None:
        raise RecursionError

    with monkeypatch.context() as patch:
        patch.setattr(asyncio.get_running_loop(), "call_soon", fail)
        yield


class TestTurns:
    async def test_an_operation_runs_alone_in_its_turn(
        self, store: Store, make_writer: MakeWriter
    ) -> None:
        store.gate.clear()
        writer = make_writer()

        async def reset() -> str:
            store.log.append("reset")
            return "done"

        tasks: list[Awaitable[object]] = [*submit(writer, Item("a"))]
        await store.begun.wait()
        tasks += submit(writer, Item("b"))
        await turn()
        tasks.append(asyncio.ensure_future(writer.run_alone(reset)))
        await turn()
        tasks += submit(writer, Item("c"), Item("d"))
        store.gate.set()
        results = await asyncio.gather(*tasks)
        assert store.log == ["a", "b", "reset", "c", "d"]
        assert results[2] == "done"
        assert store.batches == [["a"], ["b"], ["c", "d"]]

    async def test_an_operation_that_fails_fails_only_its_caller(
        self, store: Store, make_writer: MakeWriter
    ) -> None:
        async def fail() -> None:
            raise StorageFull("no space")

        writer = make_writer()
        with pytest.raises(StorageFull):
            await writer.run_alone(fail)
        await writer.submit(Item("a"))
        assert store.log == ["a"]


class TestClosing:
    async def test_closing_drains_what_was_accepted(
        self, store: Store, make_writer: MakeWriter
    ) -> None:
        store.gate.clear()
        writer = make_writer(queue_records=3, batch_records=2)
        tasks = submit(writer, *(Item(str(n)) for n in range(8)))
        await store.begun.wait()
        await turn()
        closing = asyncio.ensure_future(writer.aclose(5))
        await turn()
        with pytest.raises(HistoryClosed):
            await writer.submit(Item("late"))
        store.gate.set()
        await closing
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert store.log == ["0", "1", "2", "3", "4"], "one batch and the queue"
        assert [type(r) for r in results[5:]] == [HistoryClosed] * 3
        assert "not written" in str(results[5])
        assert store.finished == 1
        assert writer.task.done()

    async def test_closing_is_bounded(self, store: Store, make_writer: MakeWriter) -> None:
        store.gate.clear()
        writer = make_writer()
        tasks = submit(writer, Item("a"))
        await store.begun.wait()
        tasks += submit(writer, Item("b"))
        await turn()
        await writer.aclose(0.01)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[0], CommitUnknown)
        assert results[0].ids == ("a",)
        assert isinstance(results[1], HistoryClosed)
        store.gate.set()
        await writer.task
        assert store.log == ["a"]

    async def test_closing_an_idle_writer(self, store: Store, make_writer: MakeWriter) -> None:
        writer = make_writer()
        await asyncio.gather(writer.aclose(5), writer.aclose(5))
        await writer.aclose(5)
        assert store.finished == 1

    async def test_cancelling_an_idle_writer_closes_it(
        self, store: Store, make_writer: MakeWriter
    ) -> None:
        writer = make_writer()
        await turn()
        writer.task.cancel()
        done, _ = await asyncio.wait([writer.task], timeout=LONG_S)
        assert done
        assert store.finished == 1

    async def test_stats_show_the_oldest_wait(self, store: Store, make_writer: MakeWriter) -> None:
        store.gate.clear()
        writer = make_writer()
        tasks = submit(writer, Item("a"))
        await store.begun.wait()
        first = writer.stats().oldest_wait_s
        await turn()
        assert writer.stats().oldest_wait_s > first >= 0
        store.gate.set()
        await asyncio.gather(*tasks)
        assert writer.stats().oldest_wait_s == 0
