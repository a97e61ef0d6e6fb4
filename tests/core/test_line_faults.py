"""What others wait for still comes after an exception at any line that the event loop runs.

A signal handler may raise anywhere: pytest-timeout's does, and Python's own for SIGINT where a
program calls `run_until_complete`.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import CodeType

import pytest

from async_history import CommitUnknown, HistoryClosed, HistoryManager, open_history
from async_history._core.reading.coalesce import CoalescedReads
from async_history._core.writing.wakeups import WAKEUP_BATCH_MIN
from async_history._core.writing.writer import GroupCommitWriter
from async_history._core.writing.writer_options import DEFAULT_OPTIONS, WriterOptions
from tests.core.writers import Item, Store, turn
from tests.support.line_faults import LineFault, fault_at_line
from tests.support.patience import LONG_S

QUEUE = {"take", "admit_waiting", "_remove_all", "_remove"}
CLOSING = {
    "begin_close",
    "_fail_everyone_left",
    "_fail_calls",
    "_on_ended",
    "_unwritten",
    "refuse",
    "refuse_all",
    "refuse_waiting",
    "stop_waiting",
    "withdraw",
    "wake",
}
CALLERS = {"submit", "_require_open", "_wake_up"}
"""Functions of the writer that run in the caller's task, which gets their exceptions."""


@pytest.fixture(autouse=True)
async def silent_loop() -> AsyncIterator[None]:
    """asyncio logs the exceptions of callbacks."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)
    yield
    loop.set_exception_handler(None)


def of_the_writer(code: CodeType) -> bool:
    name = Path(code.co_filename).name
    if name == "queue.py":
        return code.co_name in QUEUE
    return name in ("wakeups.py", "committed_batch.py", "writer.py") and code.co_name not in CALLERS


class Death(BaseException):
    """What the writer dies of."""


def of_the_closing(code: CodeType) -> bool:
    name = Path(code.co_filename).name
    return (
        name in ("pending_calls.py", "queue.py", "waiter.py", "writer.py")
        and code.co_name in CLOSING
    )


async def submitted(writer: GroupCommitWriter[Item], name: str) -> None:
    await writer.submit(Item(name))


@pytest.mark.parametrize(("callers", "step"), [(6, 1), (WAKEUP_BATCH_MIN + 1, 13)])
async def test_every_caller_of_the_writer_gets_an_outcome(callers: int, step: int) -> None:
    nth, ended = 1 - step, False
    while not ended:
        nth += step
        store = Store()
        store.gate.set()
        writer = GroupCommitWriter(store.commit, finish=store.finish, options=DEFAULT_OPTIONS)
        await asyncio.sleep(0)
        # The second batch is committed while the first one's callers wait to be woken.
        tasks = [asyncio.create_task(submitted(writer, str(n))) for n in range(callers)]
        with fault_at_line(nth, of=of_the_writer) as fault:
            begun = asyncio.create_task(store.begun.wait())
            await asyncio.wait([begun, *tasks], return_when=asyncio.FIRST_COMPLETED)
            begun.cancel()
            tasks += [asyncio.create_task(submitted(writer, "later")) for _ in range(callers)]
            await asyncio.wait(tasks, timeout=LONG_S)
        ended = fault.line is None
        after = asyncio.create_task(submitted(writer, "after"))
        await asyncio.wait([after], timeout=LONG_S)
        assert all(task.done() for task in [*tasks, after]), fault.line
        if isinstance(error := after.exception(), HistoryClosed):
            assert "LineFault" in str(error)
        else:
            assert error is None, fault.line
        outcomes = {type(task.exception()) for task in tasks}
        assert outcomes <= {type(None), CommitUnknown, HistoryClosed}, fault.line
        assert sum(task.exception() is None for task in tasks) <= len(store.log), fault.line
        await writer.aclose(LONG_S)
        if not writer.task.cancelled():
            writer.task.exception()


@pytest.mark.parametrize("ends", [True, False])
async def test_every_caller_gets_an_outcome_if_closing_is_interrupted(ends: bool) -> None:
    nth, ended = 0, False
    while not ended:
        nth += 1
        store = Store()
        options = WriterOptions(queue_records=2)
        writer = GroupCommitWriter(store.commit, finish=store.finish, options=options)
        tasks = [asyncio.create_task(submitted(writer, "in the batch")) for _ in range(2)]
        await store.begun.wait()
        tasks += [asyncio.create_task(submitted(writer, "in the queue")) for _ in range(4)]
        await turn()
        with fault_at_line(nth, of=of_the_closing) as fault:
            closing = asyncio.create_task(writer.aclose(LONG_S if ends else 0))
            await turn()
            if ends:
                store.script = [Death()]
                store.gate.set()
            await asyncio.wait([closing], timeout=LONG_S)
            await turn()
        ended = fault.line is None
        store.gate.set()
        # If an exception interrupted the first lines of closing, another call closes.
        await writer.aclose(LONG_S)
        await asyncio.wait([*tasks, writer.task], timeout=LONG_S)
        assert all(task.done() for task in tasks), fault.line
        assert writer.task.done(), fault.line
        assert {type(task.exception()) for task in tasks} <= {
            type(None),
            CommitUnknown,
            HistoryClosed,
        }, fault.line
        assert store.finished == 1, fault.line
        for task in (closing, writer.task):
            if not task.cancelled():
                task.exception()


class Interrupted(Item):
    """A submission whose ids can't be asked for at first, as if signals came each time."""

    left = 7

    @property
    def ids(self) -> list[str]:
        self.left -= 1
        if self.left >= 0:
            raise LineFault
        return [self.name]


async def test_every_caller_gets_an_outcome_after_many_exceptions() -> None:
    store = Store()
    store.script = [Death()]
    writer = GroupCommitWriter(store.commit, finish=store.finish, options=DEFAULT_OPTIONS)
    calls = [writer.submit(Interrupted("in the batch")), writer.submit(Item("in the batch"))]
    await store.begun.wait()
    calls.append(writer.submit(Item("in the queue")))
    store.gate.set()
    await asyncio.wait(calls, timeout=LONG_S)
    assert [type(call.exception()) for call in calls] == [
        CommitUnknown,
        CommitUnknown,
        HistoryClosed,
    ]
    assert isinstance(writer.task.exception(), LineFault)


async def test_an_error_in_every_try_does_not_keep_the_loop_busy() -> None:
    store, most = Store(), 1000
    store.script = [Death()]
    writer = GroupCommitWriter(store.commit, finish=store.finish, options=DEFAULT_OPTIONS)
    interrupted = Interrupted("in the batch")
    interrupted.left = most
    call = writer.submit(interrupted)
    store.gate.set()
    for _ in range(50):
        await turn()
    assert most - interrupted.left < 20
    interrupted.left = 0
    await asyncio.wait([call], timeout=LONG_S)
    assert isinstance(call.exception(), CommitUnknown)
    assert isinstance(writer.task.exception(), LineFault)


async def test_every_caller_of_shared_reads_gets_an_outcome() -> None:
    async def read(questions: Sequence[int]) -> Mapping[int, int]:
        await asyncio.sleep(0)
        return {question: question for question in questions}

    nth, ended = 0, False
    while not ended:
        nth += 1
        reads = CoalescedReads[int, int](read, 1)
        with fault_at_line(nth, of=lambda code: code.co_name == "_ended") as fault:
            tasks = [asyncio.create_task(reads.of(n)) for n in range(3)]
            await asyncio.wait(tasks, timeout=LONG_S)
        ended = fault.line is None
        for n in range(3):
            assert await asyncio.wait_for(reads.of(n), LONG_S) == n, fault.line


@pytest.mark.parametrize("url", ["memory://", "file"])
async def test_the_result_of_a_connections_thread_arrives(url: str, tmp_path: Path) -> None:
    async with open_history(tmp_path / "history.db" if url == "file" else url) as history:
        for nth in (2, 3, 4):  # an exception at the first line, `try`, comes before the function
            with fault_at_line(nth, of=lambda code: code.co_name == "_give") as fault:
                await asyncio.wait_for(record_and_read(history, str(nth)), LONG_S)
            assert fault.line is not None


async def record_and_read(history: HistoryManager, text: str) -> None:
    for n in range(3):
        await history.add_history("m", None, f"{text}.{n}", "ADD")
        await history.get_history("m")


async def test_a_manager_says_why_it_has_ended() -> None:
    async with open_history("memory://") as history:
        with (
            fault_at_line(1, of=lambda code: code.co_name == "take"),
            pytest.raises(HistoryClosed, match="LineFault"),
        ):
            await history.add_history("m", None, "text", "ADD")
        await asyncio.sleep(0)
        with pytest.raises(HistoryClosed, match="the writer died: LineFault"):
            await history.get_history("m")
