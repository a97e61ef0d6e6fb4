"""Loops, threads, forks, exits, cancellation: whose a manager is, and how it ends."""

import asyncio
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from async_history import (
    CommitUnknown,
    HistoryClosed,
    HistoryError,
    HistoryManager,
    WrongLoop,
    open_history,
)
from async_history._core.writer import GroupCommitWriter
from async_history.sqlite import SQLiteHistoryManager
from tests.conftest import OpenStore
from tests.patience import LONG_S, SOON_S

pytestmark = pytest.mark.versions


def run_program(source: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a program of its own."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(source), *arguments],
        capture_output=True,
        text=True,
        timeout=LONG_S,
        cwd=Path(__file__).parent.parent,
    )


class TestLoops:
    async def test_another_loop_is_refused_and_never_hangs(self, open_store: OpenStore) -> None:
        async with open_store() as history:

            def elsewhere() -> list[type[BaseException] | None]:
                async def calls() -> list[type[BaseException] | None]:
                    errors: list[type[BaseException] | None] = []
                    for call in (
                        history.add_history("m", None, "x", "ADD"),
                        history.get_history("m"),
                        history.save_messages([{"role": "user"}], "s"),
                        history.get_last_messages("s"),
                        history.stats(),
                        history.reset(),
                        history.aclose(),
                    ):
                        try:
                            await call
                        except Exception as error:
                            errors.append(type(error))
                    return errors

                return asyncio.run(calls())

            assert await asyncio.to_thread(elsewhere) == [WrongLoop] * 7
            await history.add_history("m", None, "still ours", "ADD")

    def test_a_loop_that_has_ended(self, open_store: OpenStore) -> None:
        async def opened() -> HistoryManager:
            return await open_store()

        async def use(history: HistoryManager) -> None:
            await history.add_history("m", None, "x", "ADD")

        history = asyncio.run(opened())
        with pytest.raises((WrongLoop, HistoryClosed)):
            asyncio.run(use(history))
        history.close()

    def test_the_end_of_asyncio_run_completes_what_was_in_a_batch(self, tmp_path: Path) -> None:
        """Callers are cancelled, the batch is not: the file has all of it or none, and closes."""
        path = tmp_path / "history.db"

        async def leave() -> None:
            history = await open_history(path)
            tasks = [
                asyncio.create_task(
                    history.batch_add_history(
                        [{"memory_id": f"m{n}", "event": "ADD"} for _ in range(30)]
                    )
                )
                for n in range(40)
            ]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)

        asyncio.run(leave())

        async def look() -> list[int]:
            async with open_history(path) as history:
                return [len(await history.get_history(f"m{n}")) for n in range(40)]

        counts = asyncio.run(look())
        assert set(counts) <= {0, 30}
        assert 30 in counts
        assert not path.with_name("history.db-wal").exists(), "the last one out copied the log"


@pytest.mark.subprocess
class TestForks:
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
    def test_a_forked_child_is_refused_and_ends(self, tmp_path: Path) -> None:
        done = run_program(
            """
            import asyncio, os, sys
            from async_history import WrongLoop, open_history

            async def main():
                history = await open_history(sys.argv[1])
                await history.add_history("m", None, "parent", "ADD")
                child = os.fork()
                if not child:
                    refused = 0
                    for call in (lambda: history.get_history("m"), history.stats, history.aclose):
                        try:
                            await call()
                        except WrongLoop:
                            refused += 1
                    try:
                        history.close()
                    except WrongLoop:
                        refused += 1
                    os._exit(refused)
                _, status = os.waitpid(child, 0)
                print("refused", os.waitstatus_to_exitcode(status))
                await history.add_history("m", None, "parent", "UPDATE")
                print("records", len(await history.get_history("m")))
                await history.aclose()

            asyncio.run(main())
            """,
            str(tmp_path / "history.db"),
        )
        assert done.stdout.split() == ["refused", "4", "records", "2"], done.stderr


@pytest.mark.subprocess
class TestExit:
    @pytest.mark.parametrize(
        "ending",
        ["pass", "raise SystemExit(0)", "loop.close()", "os.kill(os.getpid(), signal.SIGINT)"],
    )
    def test_a_program_that_does_not_close_ends(self, tmp_path: Path, ending: str) -> None:
        before = time.monotonic()
        done = run_program(
            f"""
            import asyncio, os, signal, sys, warnings
            from async_history import open_history

            warnings.simplefilter("ignore", ResourceWarning)
            loop = asyncio.new_event_loop()
            history = loop.run_until_complete(open_history(sys.argv[1])._opened())
            record = loop.run_until_complete(history.add_history("m", None, "x", "ADD"))
            print(record.new_memory, flush=True)
            {ending}
            """,
            str(tmp_path / "history.db"),
        )
        assert done.stdout.strip() == "x", done.stderr
        assert time.monotonic() - before < SOON_S, "it waited for a timeout"

    def test_asyncio_run_that_does_not_close_ends_and_keeps(self, tmp_path: Path) -> None:
        path = tmp_path / "history.db"
        done = run_program(
            """
            import asyncio, sys
            from async_history import open_history

            async def main():
                history = await open_history(sys.argv[1])
                await asyncio.gather(
                    *(history.add_history("m", None, str(n), "UPDATE") for n in range(100))
                )

            asyncio.run(main())
            """,
            str(path),
        )
        assert (done.returncode, done.stderr) == (0, "")

        async def count() -> int:
            async with open_history(path) as history:
                return len(await history.get_history("m"))

        assert asyncio.run(count()) == 100

    def test_importing_loads_no_driver(self) -> None:
        done = run_program(
            """
            import sys
            import async_history
            print([n for n in ("sqlite3", "aiosqlite", "asyncpg", "typer") if n in sys.modules])
            """
        )
        assert done.stdout.strip() == "[]", done.stderr


class TestCancellation:
    async def test_during_opening(self, tmp_path: Path) -> None:
        """Cancelled at each step of opening in turn: nothing stays open, the file is usable."""
        path = tmp_path / "history.db"
        for steps in range(12):

            async def opened() -> None:
                async with open_history(path):
                    pass

            task = asyncio.create_task(opened())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        async with open_history(path) as history:
            await history.add_history("m", None, "x", "ADD")

    async def test_during_reset_and_close(self, open_store: OpenStore) -> None:
        history = await open_store()
        await history.add_history("m", None, "x", "ADD")
        for steps in range(6):
            task = asyncio.create_task(history.reset())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        await history.add_history("m", None, "y", "ADD")
        for steps in range(3):
            task = asyncio.create_task(history.aclose())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        await history.aclose()

    async def test_storms(self, open_keeping_store: OpenStore) -> None:
        """Calls cancelled at random: an ack means written, once, and every batch is whole."""
        chance = random.Random(20_261_120)  # noqa: S311 - a test's dice
        acked: set[str] = set()

        async def agent(history: HistoryManager, name: int) -> None:
            for n in range(15):
                size = chance.choice([1, 1, 1, 5, 700])
                memory_id = f"{name}.{n}"
                items = [{"memory_id": memory_id, "event": "ADD"} for _ in range(size)]
                call = asyncio.create_task(history.batch_add_history(items))
                messages = asyncio.create_task(history.save_messages([{"role": "user"}], "s"))
                for _ in range(chance.randrange(12)):
                    await asyncio.sleep(0)
                if chance.random() < 0.5:
                    call.cancel()
                    messages.cancel()
                await asyncio.wait([call, messages])
                sizes[memory_id] = size
                if not call.cancelled():
                    call.result()
                    acked.add(memory_id)

        sizes: dict[str, int] = {}
        async with open_keeping_store() as history:
            await asyncio.gather(*(agent(history, name) for name in range(20)))
            assert acked
            assert len(acked) < len(sizes)
            for memory_id, size in sizes.items():
                found = len(await history.get_history(memory_id))
                assert found in ({size} if memory_id in acked else {0, size})


class TestResetsAndClose:
    async def test_twenty_writers_through_ten_resets_and_a_close(
        self, open_store: OpenStore
    ) -> None:
        history = await open_store()
        closed = 0

        async def write(name: int) -> None:
            nonlocal closed
            try:
                while True:
                    await history.add_history(f"m{name}", None, "x", "ADD")
                    await history.save_messages([{"role": "user", "content": "x"}], f"s{name}")
                    await history.get_history(f"m{name}")
                    await asyncio.sleep(0)
            except HistoryClosed:
                closed += 1

        writers = [asyncio.create_task(write(n)) for n in range(20)]
        for _ in range(10):
            await history.reset()
        await history.aclose()
        await asyncio.gather(*writers)
        assert closed == 20

    async def test_a_reset_takes_its_turn(self, open_keeping_store: OpenStore) -> None:
        async with open_keeping_store() as history:
            before = [
                asyncio.create_task(history.add_history("m", None, "before", "ADD")) for _ in "123"
            ]
            await asyncio.sleep(0)
            reset = asyncio.create_task(history.reset())
            await asyncio.sleep(0)
            after = [
                asyncio.create_task(history.add_history("m", None, "after", "ADD")) for _ in "12"
            ]
            await asyncio.gather(*before, reset, *after)
            assert [r.new_memory for r in await history.get_history("m")] == ["after"] * 2


class TestOverload:
    async def test_a_full_queue_with_a_timeout(self, tmp_path: Path) -> None:
        path = tmp_path / "history.db"
        async with open_history(path, queue_records=10, queue_timeout_s=0.01) as history:
            await history.add_history("m", None, "x", "ADD")
            with _locked(path):
                results = await asyncio.wait_for(_first_errors(history, 700), LONG_S)
        assert set(results) == {"Overloaded"}

    async def test_many_callers_share_the_loop_with_others(self, tmp_path: Path) -> None:
        """While the file is locked by another, the loop goes on ticking."""
        path = tmp_path / "history.db"
        async with open_history(path) as history:
            await history.add_history("m", None, "x", "ADD")
            ticks = 0
            with _locked(path):
                call = asyncio.create_task(history.add_history("m", None, "y", "UPDATE"))
                for _ in range(50):
                    await asyncio.sleep(0.001)
                    ticks += 1
                assert not call.done()
            await call
            assert ticks == 50


class TestBoundedClosing:
    async def test_a_close_that_times_out_lets_the_loop_end(self, tmp_path: Path) -> None:
        """Another holds the lock for longer than closing may take: the outcome is unknown."""
        path = tmp_path / "history.db"
        history = await open_history(path, close_timeout_s=0.05)
        await history.add_history("m", None, "x", "ADD")
        assert isinstance(history, SQLiteHistoryManager)
        writer = history.store.writer
        with _locked(path):
            calls = [
                asyncio.create_task(history.add_history("m", None, str(n), "UPDATE", id=str(n)))
                for n in range(3)
            ]
            await asyncio.sleep(0)
            await history.aclose()
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(result) for result in results] == [CommitUnknown] * 3
            await history.aclose()
            assert isinstance(writer, GroupCommitWriter)
            await asyncio.wait_for(writer.task, SOON_S)
        async with open_history(path) as again:
            assert len(await again.get_history("m")) in (1, 4)


class _locked:  # noqa: N801 - reads as a word of the test
    """Another connection holds the file's write lock."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        self.release = threading.Event()
        held = threading.Event()

        def hold() -> None:
            import sqlite3

            connection = sqlite3.connect(self.path, isolation_level=None)
            connection.execute("BEGIN IMMEDIATE")
            held.set()
            self.release.wait()
            connection.close()

        self.thread = threading.Thread(target=hold)
        self.thread.start()
        held.wait()

    def __exit__(self, *exc: object) -> None:
        self.release.set()
        self.thread.join()


async def _first_errors(history: HistoryManager, count: int) -> list[str]:
    """Start calls, wait until all but what batch and queue hold have failed, cancel those."""
    calls = [
        asyncio.create_task(history.add_history("m", None, str(n), "UPDATE")) for n in range(count)
    ]
    failed: list[str] = []
    for call in asyncio.as_completed(calls):
        try:
            await call
        except HistoryError as error:
            failed.append(type(error).__name__)
        if len(failed) >= count - 512 - 10:
            break
    for call_left in calls:
        call_left.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    return failed


class TestOpeningAndClosingAtOnce:
    async def test_a_call_while_opening_says_so(self, open_keeping_store: OpenStore) -> None:
        history = open_keeping_store()
        opening = asyncio.ensure_future(history._opened())
        await asyncio.sleep(0)
        with pytest.raises(HistoryClosed, match="not open yet"):
            await history.add_history("m", None, "x", "ADD")
        await opening
        await history.aclose()

    @pytest.mark.parametrize("how", ["close", "aclose"])
    async def test_closed_while_opening(self, open_keeping_store: OpenStore, how: str) -> None:
        history = open_keeping_store()
        opening = asyncio.ensure_future(history._opened())
        await asyncio.sleep(0)
        if how == "close":
            history.close()
        else:
            await history.aclose()
        with pytest.raises(HistoryClosed, match="while it was being opened"):
            await opening
        await history.aclose()


class TestReadsAtClosing:
    async def test_reads_end_with_an_answer_or_closed(self, open_store: OpenStore) -> None:
        history = await open_store()
        for n in range(50):
            await history.add_history("m", None, str(n), "UPDATE")
        reads = [asyncio.create_task(history.get_history("m")) for _ in range(100)]
        await asyncio.sleep(0)
        await history.aclose()
        for result in await asyncio.gather(*reads, return_exceptions=True):
            assert isinstance(result, list | HistoryClosed)
