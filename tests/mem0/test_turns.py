"""Turns: one at a time for each memory, on loops, threads and in processes that may die."""

import asyncio
import multiprocessing
import os
import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from async_history import open_history
from async_history.errors import StorageLocked
from async_history.mem0._turns.process_locks import SUFFIX, FileLocks
from async_history.mem0._turns.store_turns import turns_of
from async_history.mem0._turns.turn_queues import TurnQueues
from async_history.mem0._turns.turns import Turns, number_of
from tests.mem0.turns import Together, taken
from tests.subprocesses.turns import Holder
from tests.support.patience import LONG_S

pytestmark = pytest.mark.once

OFD = pytest.mark.skipif(
    sys.platform != "linux", reason="locks of an open file description are Linux's"
)


@pytest.fixture(params=["one process", "many processes"])
def turns(request: pytest.FixtureRequest, tmp_path: Path) -> Turns:
    return Turns(
        TurnQueues(
            None if request.param == "one process" else FileLocks(str(tmp_path / "history.db"))
        )
    )


class TestWithinAProcess:
    async def test_tasks_take_turns_in_order(self, turns: Turns) -> None:
        together, came = Together(), []

        async def take(number: int) -> None:
            async with turns.of("m", "store"):
                with together.one_more():
                    came.append(number)
                    await asyncio.sleep(0)

        await asyncio.gather(*(take(n) for n in range(50)))
        assert (together.most, came) == (1, list(range(50)))
        assert turns.queues.is_idle

    async def test_loops_and_threads_take_turns(self, turns: Turns) -> None:
        together, done = Together(), []

        async def of_loop() -> None:
            async def one() -> None:
                async with turns.of("m", "store"):
                    with together.one_more():
                        await asyncio.sleep(0)
                        done.append(1)

            await asyncio.gather(*(one() for _ in range(20)))

        def of_thread() -> None:
            for _ in range(20):
                with turns.of("m", "store"), together.one_more():
                    done.append(1)

        threads = [threading.Thread(target=of_thread) for _ in range(4)]
        threads += [threading.Thread(target=asyncio.run, args=(of_loop(),)) for _ in range(3)]
        for thread in threads:
            thread.start()
        await of_loop()
        for thread in threads:
            await asyncio.to_thread(thread.join, LONG_S)
        assert (together.most, len(done)) == (1, 160)
        assert turns.queues.is_idle

    def test_threads_that_start_at_the_same_time_open_one_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened: list[FileLocks] = []

        def noted(locks: FileLocks) -> None:
            opened.append(locks)
            os.sched_yield()

        monkeypatch.setattr(FileLocks, "open", noted)

        def come(turns: Turns, start: threading.Barrier, memory_id: str) -> None:
            start.wait()
            with turns.of(memory_id, "store"):
                pass

        for _ in range(50):
            each_round = (
                Turns(TurnQueues(FileLocks(str(tmp_path / "history.db")))),
                threading.Barrier(4),
            )
            threads = [threading.Thread(target=come, args=(*each_round, name)) for name in "abcd"]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(opened) == 50

    async def test_other_memories_do_not_wait(self, turns: Turns) -> None:
        async with turns.of("one", "store"), turns.of("other", "store"):
            pass
        assert turns.queues.is_idle

    async def test_a_cancelled_task_leaves_the_turn_to_others(self, turns: Turns) -> None:
        """Cancelled while it waits, as its turn comes, or while it has it."""
        chance = random.Random(7)  # noqa: S311 - a test
        done = 0

        async def one() -> None:
            nonlocal done
            async with turns.of("m", "store"):
                await asyncio.sleep(0)
                done += 1

        for _ in range(200):
            tasks = [asyncio.create_task(one()) for _ in range(5)]
            for _ in range(chance.randrange(8)):
                await asyncio.sleep(0)
            chance.choice(tasks).cancel()
            await asyncio.wait(tasks)
        assert done >= 800
        assert turns.queues.is_idle

    async def test_the_next_turn_waits_for_the_acks_only_with_another_store(
        self, turns: Turns
    ) -> None:
        ack = asyncio.get_running_loop().create_future()
        async with turns.of("m", "store") as turn:
            turn.acks.append(ack)
        async with turns.of("m", "store"):
            pass

        async def of_another() -> bool:
            async with turns.of("m", "another store"):
                return ack.done()

        another = asyncio.create_task(of_another())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not another.done()
        ack.set_result(None)
        assert await another
        assert turns.queues.is_idle

    def test_a_turn_of_a_closed_loop_holds_up_no_other(self, turns: Turns) -> None:
        async def hold() -> None:
            async with turns.of("m", "store") as turn:
                turn.acks.append(asyncio.get_running_loop().create_future())
                await asyncio.Event().wait()

        async def wait() -> None:
            async with turns.of("m", "another store"):
                pass

        kept = []
        for body in (hold, wait):
            loop = asyncio.new_event_loop()
            kept.append(loop.create_task(body()))
            for _ in range(5):
                loop.run_until_complete(asyncio.sleep(0))
            loop.close()
        asyncio.run(asyncio.wait_for(wait(), LONG_S))
        for task in kept:
            task._log_destroy_pending = False  # type: ignore[attr-defined]

    async def test_managers_of_one_store_have_the_same_turns(self, tmp_path: Path) -> None:
        one, same = open_history(tmp_path / "a.db"), open_history(f"sqlite:///{tmp_path}/a.db")
        other, memory = open_history(tmp_path / "b.db"), open_history("memory://")
        assert turns_of(one) == turns_of(same)
        assert turns_of(memory) == turns_of(memory)
        found = {turns_of(each) for each in (one, other, memory, open_history("null://"))}
        assert len(found) == 4
        one, same = (open_history(f"postgresql://{user}@h/d") for user in ("one", "other"))
        assert (
            one.backend.store_name
            == same.backend.store_name
            != open_history("postgresql://h/e").backend.store_name
        )


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Holder]:
    holder = Holder(str(tmp_path / "history.db"))
    yield holder
    holder.end()


async def asked(folder: Path) -> None:
    """Return when a process waits for another's turn of the memory "m"."""
    locks = FileLocks(str(folder / "history.db"))
    await asyncio.to_thread(locks.open)
    while not locks.is_asked_for(number_of("m")):  # noqa: ASYNC110 - the kernel has no event for it
        await asyncio.sleep(0)
    locks.close()


@OFD
class TestBetweenProcesses:
    @pytest.mark.subprocess
    @pytest.mark.parametrize("end", ["leaves", "dies"])
    async def test_another_waits_until_it_leaves_or_dies(
        self, holder: Holder, tmp_path: Path, end: str
    ) -> None:
        turns = Turns(TurnQueues(FileLocks(str(tmp_path / "history.db"))))
        await taken(turns, "another memory")
        waiting = asyncio.create_task(taken(turns))
        await asked(tmp_path)
        assert not waiting.done()
        if end == "leaves":
            holder.go_on()
            holder.says("left it")
        else:
            holder.die()
        await asyncio.wait_for(waiting, LONG_S)

    @pytest.mark.subprocess
    async def test_a_thread_waits_for_another_process(self, holder: Holder, tmp_path: Path) -> None:
        turns = Turns(TurnQueues(FileLocks(str(tmp_path / "history.db"))))
        has_it = threading.Event()

        def take() -> None:
            with turns.of("m", "store"):
                has_it.set()

        thread = threading.Thread(target=take)
        thread.start()
        await asked(tmp_path)
        assert not has_it.is_set()
        holder.end()
        assert await asyncio.to_thread(has_it.wait, LONG_S)
        thread.join()

    @pytest.mark.subprocess
    async def test_waiting_for_a_stopped_process_raises_in_the_end(
        self, holder: Holder, tmp_path: Path
    ) -> None:
        turns = Turns(TurnQueues(FileLocks(str(tmp_path / "history.db")), timeout_s=0.01))
        with pytest.raises(StorageLocked, match="another process has had this memory's turn"):
            await taken(turns)

        def take() -> None:
            with turns.of("m", "store"):
                pass

        with pytest.raises(StorageLocked):
            await asyncio.to_thread(take)
        assert turns.queues.is_idle

    async def test_a_turn_is_kept_until_the_acks(self, tmp_path: Path) -> None:
        mine, others = (Turns(TurnQueues(FileLocks(str(tmp_path / "history.db")))) for _ in "ab")
        ack = asyncio.get_running_loop().create_future()
        async with mine.of("m", "store") as turn:
            turn.acks.append(ack)
        waiting = asyncio.create_task(taken(others))
        await asked(tmp_path)
        assert not waiting.done()
        ack.set_result(None)
        await asyncio.wait_for(waiting, LONG_S)
        assert mine.queues.is_idle
        assert others.queues.is_idle

    async def test_a_process_that_never_pauses_lets_others_in(self, tmp_path: Path) -> None:
        mine, others = (Turns(TurnQueues(FileLocks(str(tmp_path / "history.db")))) for _ in "ab")
        got_in = asyncio.Event()

        async def never_pausing() -> None:
            while not got_in.is_set():
                await taken(mine)

        async def other() -> None:
            async with others.of("m", "store"):
                got_in.set()

        busy = [asyncio.create_task(never_pausing()) for _ in range(5)]
        await asyncio.wait_for(other(), LONG_S)
        await asyncio.gather(*busy)

    async def test_several_memories_in_any_order(self, tmp_path: Path) -> None:
        sides = [Turns(TurnQueues(FileLocks(str(tmp_path / "history.db")))) for _ in range(3)]
        chance = random.Random(3)  # noqa: S311 - a test

        async def many(turns: Turns) -> None:
            loop = asyncio.get_running_loop()
            for memory_id in chance.choices("abc", k=60):
                async with turns.of(memory_id, "store") as turn:
                    ack = loop.create_future()
                    turn.acks.append(ack)
                    await asyncio.sleep(0)
                    loop.call_later(0.001, ack.set_result, None)
            await ack
            await asyncio.sleep(0)  # its callbacks

        async with asyncio.timeout(LONG_S):
            await asyncio.gather(*(many(turns) for turns in sides for _ in range(3)))
        assert all(turns.queues.is_idle for turns in sides)

    @pytest.mark.subprocess
    def test_a_forked_child_has_no_turn_of_its_parent(self, tmp_path: Path) -> None:
        """Neither the parent's turns, nor an open lock that would outlive the parent."""
        turns = Turns(TurnQueues(FileLocks(str(tmp_path / "history.db"))))
        context = multiprocessing.get_context("fork")
        results = context.SimpleQueue()

        def child() -> None:
            locks = FileLocks(str(tmp_path / "history.db"))
            locks.open()
            results.put((turns.queues.is_idle, locks.take(number_of("m"))))

        with turns.of("m", "store"):
            process = context.Process(target=child)
            process.start()
            assert results.get() == (True, False)
            process.join()
        assert turns.queues.is_idle

    @pytest.mark.parametrize("how", ["removed", "replaced"])
    async def test_removing_the_lock_file_loses_the_turn(self, tmp_path: Path, how: str) -> None:
        mine, others = (Turns(TurnQueues(FileLocks(str(tmp_path / "history.db")))) for _ in "ab")
        await taken(others, "another memory")
        async with mine.of("other", "store") as kept, mine.of("m", "store") as turn:
            turn.require_kept()
            if how == "removed":
                (tmp_path / f"history.db{SUFFIX}").unlink()
            else:
                (tmp_path / "new").touch()
                (tmp_path / "new").rename(tmp_path / f"history.db{SUFFIX}")
            with pytest.raises(StorageLocked, match="turns, is gone"):
                turn.require_kept()
            await taken(others)
            await taken(mine, "a third")
            with pytest.raises(StorageLocked):
                kept.require_kept()
        assert mine.queues.is_idle
        async with others.of("m", "store") as turn:
            waiting = asyncio.create_task(taken(mine))
            await asked(tmp_path)
            assert not waiting.done()
            turn.require_kept()
        await asyncio.wait_for(waiting, LONG_S)

    async def test_lost_locks_are_checked_for_once_a_turn_of_the_loop(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A system call for each change would cost as much as the rest of a turn."""
        asked: list[int] = []
        real = os.fstat

        def fstat(file: int) -> os.stat_result:
            asked.append(file)
            return real(file)

        turns = Turns(TurnQueues(FileLocks(str(tmp_path / "history.db")))).on_this_loop()
        await taken(turns)
        await asyncio.sleep(0)
        monkeypatch.setattr(os, "fstat", fstat)
        for number in range(10):
            async with turns.of(f"m{number}", "store") as turn:
                turn.require_kept()
        assert len(asked) == 1
        async with turns.of("m", "store") as turn:
            (tmp_path / f"history.db{SUFFIX}").unlink()
            await asyncio.sleep(0)
            with pytest.raises(StorageLocked, match="turns, is gone"):
                turn.require_kept()
        assert len(asked) == 2
        await taken(turns)

    async def test_only_an_empty_file_is_left(self, tmp_path: Path) -> None:
        await taken(Turns(TurnQueues(FileLocks(str(tmp_path / "history.db")))))
        (left,) = tmp_path.iterdir()
        assert (left.name, left.stat().st_size) == (f"history.db{SUFFIX}", 0)
        await taken(Turns(TurnQueues()))
        assert len(list(tmp_path.iterdir())) == 1

    async def test_a_folder_that_cannot_be_written_is_warned_of_once(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        turns = Turns(TurnQueues(FileLocks(str(tmp_path / "missing" / "history.db"))))
        for _ in range(2):
            await taken(turns)
        (said,) = caplog.messages
        assert "updates of one memory are serialized within this process only" in said
        assert os.fspath(tmp_path) in said


class TestOnAStoppedLoop:
    async def test_a_call_that_stops_the_loop_of_the_turn_is_refused(self) -> None:
        turns = Turns(TurnQueues())
        async with turns.of("m", "store"):
            with pytest.raises(StorageLocked, match="on the event loop that this call blocks"):
                turns.of("m", "other").__enter__()
            with turns.of("another memory", "other"):
                assert turns.is_held_here("m")
        assert turns.queues.is_idle
