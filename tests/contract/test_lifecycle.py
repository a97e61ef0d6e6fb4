"""A manager and its loop, threads, forks, exits and cancellation."""

import asyncio
import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from weakref import ref

import pytest

from async_history import (
    CommitUnknown,
    HistoryError,
    HistoryManager,
    open_history,
)
from async_history._core.writing.writer import GroupCommitWriter
from async_history.encryption import KeyRing
from async_history.sqlite import SQLiteHistoryManager
from async_history.testing import InterruptionCases, LifecycleCases, NewStore
from tests.conftest import OpenStore, new_stores, stores
from tests.subprocesses.processes import run_source
from tests.support.patience import LONG_S, SOON_S

pytestmark = pytest.mark.versions


class TestEveryBackend(LifecycleCases): ...


class TestBackendsThatKeep(InterruptionCases):
    @pytest.fixture
    def new_store(self, new_keeping_store: NewStore) -> NewStore:
        return new_keeping_store


class TestLoops:
    def test_the_end_of_asyncio_run_completes_the_batch(self, tmp_path: Path) -> None:
        """Callers are cancelled, the batch is not: the file has all of it or none."""
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
        assert not path.with_name("history.db-wal").exists(), "the last connection copied the log"


PARTS: Final[Mapping[str, tuple[Callable[[HistoryManager], Any], Callable[[Any], Any]]]] = {
    "encryption": (lambda history: history.encryption, lambda part: part.rotate_keys()),
    "ledger": (lambda history: history.ledger, lambda part: part.verify()),
    "query": (lambda history: history.query_history(), lambda part: anext(aiter(part))),
    "follower": (lambda history: history.follow(), anext),
    "call": (lambda history: [history.get_history("m")], lambda part: part[0]),
    "method": (lambda history: history.get_history, lambda part: part("m")),
}
"""What a program may keep of a manager, and a use of it."""


class TestUnclosed:
    """A manager that was not closed is named in a warning, and closed."""

    @pytest.mark.parametrize("is_in_cycle", [True, False])
    @pytest.mark.parametrize(
        "store", stores("file", "memory", "postgres", "sqlalchemy", "sqlalchemy postgres")
    )
    async def test_while_its_loop_runs(
        self,
        store: str,
        request: pytest.FixtureRequest,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        *,
        is_in_cycle: bool,
    ) -> None:
        open_store: OpenStore = new_stores(store, request, tmp_path)()
        history = await open_store()
        await history.add_history("m", None, "x", "ADD")
        await history.check()  # the writer has waited since, with nothing that refers to its task
        keeps_store = history.backend.store_name is not None
        where = history.backend.where
        if is_in_cycle:
            history.itself = history  # type: ignore[attr-defined]
        kept = [history]
        del history
        with pytest.warns(ResourceWarning, match="unclosed <.* open>: use `async with`") as warned:
            self._forget(kept)
        assert [where in str(one.message) for one in warned] == [True]
        async with asyncio.timeout(LONG_S):
            while others := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(others)
        gc.collect()
        assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []
        if keeps_store:
            async with open_store() as history:
                assert await history.count_history() == 1

    @staticmethod
    def _forget(kept: list[HistoryManager]) -> None:
        kept.clear()
        gc.collect()

    @pytest.mark.parametrize("kept", PARTS)
    async def test_one_that_is_in_use(self, kept: str, tmp_path: Path) -> None:
        """It stays open while something that was got from it is kept."""
        keys = KeyRing({"a": bytes(32)})
        history = await open_history(tmp_path / "history.db", keys=keys, ledger=True)
        await history.add_history("m", None, "x", "ADD")
        there = ref(history)
        get, use = PARTS[kept]
        part = get(history)
        del history
        gc.collect()
        assert await use(part)
        still = there()
        assert still is not None
        await still.aclose()

    async def test_one_that_was_closed(self, tmp_path: Path) -> None:
        """It warns of nothing: warnings are errors here."""
        for way in ("async with", "aclose", "close", "refused"):
            history = open_history(tmp_path / "history.db")
            if way == "async with":
                async with history:
                    pass
            elif way == "aclose":
                await (await history).aclose()
            elif way == "close":
                (await history).close()
                await history.aclose()
            del history
            gc.collect()

    @pytest.mark.subprocess
    @pytest.mark.parametrize("name", ["history.db", "memory://"])
    @pytest.mark.parametrize(
        "last",
        ["pass", "history.itself = history", "del history", "del history; gc.collect()"],
    )
    def test_at_the_end_of_the_program(self, tmp_path: Path, name: str, last: str) -> None:
        done = run_source(
            f"""
            import asyncio, gc, sys, warnings
            from async_history import open_history

            warnings.simplefilter("always", ResourceWarning)
            loop = asyncio.new_event_loop()
            history = loop.run_until_complete(open_history(sys.argv[1])._opened())
            loop.run_until_complete(history.add_history("m", None, "x", "ADD"))
            {last}
            """,
            name if "://" in name else str(tmp_path / name),
        )
        assert done.returncode == 0
        assert done.stderr.count("ResourceWarning: unclosed <SQLiteHistoryManager") == 1
        assert "Traceback (most" not in done.stderr
        assert "Exception ignored" not in done.stderr
        assert "was destroyed" not in done.stderr

    @pytest.mark.subprocess
    def test_one_whose_loop_has_closed_it(self, tmp_path: Path) -> None:
        """`asyncio.run` ends the manager with its tasks: nothing is left open."""
        done = run_source(
            """
            import asyncio, sys, warnings
            from async_history import open_history

            async def main():
                global history
                history = await open_history(sys.argv[1])
                await history.add_history("m", None, "x", "ADD")

            warnings.simplefilter("always", ResourceWarning)
            asyncio.run(main())
            """,
            str(tmp_path / "history.db"),
        )
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.subprocess
class TestForks:
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
    def test_a_forked_child_is_refused_and_ends(self, tmp_path: Path) -> None:
        done = run_source(
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
        done = run_source(
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

    def test_asyncio_run_without_a_close_ends_and_keeps_the_records(self, tmp_path: Path) -> None:
        path = tmp_path / "history.db"
        done = run_source(
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
        done = run_source(
            """
            import sys
            import async_history
            print([n for n in ("sqlite3", "aiosqlite", "asyncpg", "typer") if n in sys.modules])
            """
        )
        assert done.stdout.strip() == "[]", done.stderr

    def test_a_driver_is_imported_only_when_it_is_used(self) -> None:
        done = run_source(
            """
            import asyncio, sys
            from async_history import open_history
            async def main():
                async with open_history("memory://") as history:
                    await history.add_history("m", None, "tea", "ADD")
            asyncio.run(main())
            print([n for n in ("aiosqlite", "asyncpg", "typer") if n in sys.modules])
            """
        )
        assert done.stdout.strip() == "['aiosqlite']", done.stderr


class TestCancellation:
    async def test_opening_cancelled_at_each_step(self, tmp_path: Path) -> None:
        """Nothing stays open, and the file is usable."""
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


class TestOverload:
    async def test_a_full_queue_with_a_timeout_raises_overloaded(self, tmp_path: Path) -> None:
        path = tmp_path / "history.db"
        async with open_history(path, queue_records=10, queue_timeout_s=0.01) as history:
            await history.add_history("m", None, "x", "ADD")
            with _locked(path):
                results = await asyncio.wait_for(_first_errors(history, 700), LONG_S)
        assert set(results) == {"Overloaded"}

    async def test_the_loop_runs_while_the_file_is_locked(self, tmp_path: Path) -> None:
        """Another connection holds the lock."""
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
        """The lock is held for longer than closing may take: the outcome is unknown."""
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
    """Start calls, wait until all but those in batch and queue have failed, cancel these."""
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
