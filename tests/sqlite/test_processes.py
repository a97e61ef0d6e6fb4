"""Several processes on one file: ours, and programs without this library."""

import asyncio
import itertools
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from async_history import HistoryManager, HistoryOptions, StorageLocked, open_history
from async_history._sqlite.connecting import errors
from async_history._sqlite.connecting.errors import connect
from async_history._sqlite.schema.adopt import compatibility_view
from tests.subprocesses import processes
from tests.subprocesses.checks import (
    check_levels,
    check_manager,
    check_sound,
    check_submissions,
    looking,
    texts,
)
from tests.subprocesses.same_file import MEMORIES, TASKS
from tests.support.legacy_files import plain_mem0
from tests.support.patience import LONG_S

pytestmark = [
    pytest.mark.subprocess,
    pytest.mark.once,
    pytest.mark.skipif(sys.platform != "linux", reason="locks files as Linux does"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.db"


async def check_all(path: Path) -> list[str]:
    """Check the file through a manager and without; return the records' texts."""
    async with open_history(path, create=False) as history:
        await check_manager(history, path)
        await history.add_history("last", None, None, "ADD")
        await check_manager(history, path)
    with looking(path, "rw") as connection:
        check_sound(connection)
        check_levels(connection)
        return texts(connection)


async def write_while(
    history: HistoryManager,
    program: "subprocess.Popen[str]",
    *,
    rounds: int,
    tasks: int = 20,
    until: Callable[[], bool] = lambda: True,
) -> int:
    """Write and read from many tasks, at least `rounds` times and until a condition holds.

    Then tell the program to finish. Returns how many records were acked.
    """
    acked = 0

    async def work(task: int) -> None:
        nonlocal acked
        number = 0
        while number < rounds or not until():
            size = 1 + number % 3
            await history.batch_add_history(
                [
                    {"memory_id": f"m{(task + n) % 50}", "new_memory": "ours", "event": "UPDATE"}
                    for n in range(size)
                ]
            )
            acked += size
            await history.get_history(f"m{task}")
            was_last = until()  # no process resets any more
            await history.save_messages([{"content": "x"}], f"s{task}")
            assert await history.get_last_messages(f"s{task}") or not was_last
            number += 1

    async with asyncio.timeout(LONG_S):
        await asyncio.gather(*(work(task) for task in range(tasks)))
    assert await asyncio.to_thread(processes.finish, program) == 0
    return acked


def printed(program: "subprocess.Popen[str]") -> int:
    """Return the last number that an ended program printed."""
    assert program.stdout is not None
    return int(program.stdout.read())


class TestThisLibrary:
    async def test_eight_processes_of_fifty_tasks_on_a_fresh_file(self, path: Path) -> None:
        """No `database is locked`, each record once, and each process's own order kept."""
        runs, rounds = 8, 6
        with ExitStack() as stack:
            programs = [
                stack.enter_context(processes.started("same_file", "ours", path, run, rounds))
                for run in range(runs)
            ]
            for program in programs:
                assert program.stdin is not None
                program.stdin.close()
        *found, _ = await check_all(path)
        wrote = check_submissions(found)
        assert len(wrote) == runs * TASKS * rounds
        assert {(one.run, one.task) for one in wrote} == {
            (run, memory) for run in range(runs) for memory in range(MEMORIES)
        }

    async def test_eight_processes_make_the_same_files_at_once(self, path: Path) -> None:
        count = 4
        with ExitStack() as stack:
            programs = [
                stack.enter_context(processes.started("same_file", "openings", path, run, count))
                for run in range(8)
            ]
            for program in programs:
                assert program.stdin is not None
                program.stdin.close()
        for number in range(count):
            *found, _ = await check_all(path.with_name(f"{path.name}.{number}"))
            assert sorted(found) == [str(run) for run in range(8)]


class TestPlainMem0:
    async def test_both_write_as_fast_as_they_can(self, path: Path) -> None:
        """Both make progress, and each sees the other's records."""
        async with open_history(path) as history:
            with processes.started("same_file", "mem0_writes", path) as program:
                assert [r.new_memory for r in await history.get_history("mem0")][:1] == ["0"]
                acked = await write_while(history, program, rounds=10)
                count = printed(program)
            seen = [record.new_memory for record in await history.get_history("mem0")]
            assert seen == [str(number) for number in range(count)]
            await check_manager(history, path)
        found = await check_all(path)
        assert found.count("ours") == acked
        with closing(plain_mem0().SQLiteManager(str(path))) as mem0:
            assert len(mem0.get_history("mem0")) == count
            assert len(mem0.get_history("m1")) == len(await ids(path, "m1"))

    async def test_plain_mem0_resets_twenty_times(self, path: Path) -> None:
        """Nothing hangs, nothing fails, and in the end the file is sound."""
        async with open_history(path) as history:
            with processes.started("same_file", "mem0_resets", path, 20) as program:
                await write_while(
                    history, program, rounds=5, tasks=10, until=lambda: program.poll() is not None
                )
            await check_manager(history, path)
            await history.reset()
            await history.add_history("m", None, "after", "ADD")
            assert [r.new_memory for r in await history.get_history("m")] == ["after"]
        assert (await check_all(path))[:1] == ["after"]


async def ids(path: Path, memory_id: str) -> list[str]:
    async with open_history(path) as history:
        return [record.id for record in await history.get_history(memory_id)]


class TestOthers:
    async def test_vacuum_under_load(self, path: Path) -> None:
        async with open_history(path) as history:
            with processes.started("same_file", "vacuum", path, 10) as program:
                acked = await write_while(
                    history, program, rounds=5, until=lambda: program.poll() is not None
                )
            await check_manager(history, path)
        assert (await check_all(path)).count("ours") == acked

    async def test_rows_removed_added_and_renamed_under_load(self, path: Path) -> None:
        async with open_history(path) as history:
            await history.add_history("m0", None, "first", "ADD")
            with processes.started("same_file", "meddle", path) as program:
                await write_while(history, program, rounds=20)
                assert printed(program) >= 50
            await check_manager(history, path)
        await check_all(path)

    @pytest.mark.parametrize("kept", [0, 5, 9])
    async def test_the_newest_rows_removed_together(self, path: Path, kept: int) -> None:
        """One statement removes many rows: their rowids are used again for other memories."""
        async with open_history(path) as history:
            for number in range(10):
                await history.add_history(f"m{number}", None, str(number), "ADD")
            others = values((f"other {n}", f"n{n % 5}") for n in range(12))
            sql(path, f"DELETE FROM history WHERE rowid > {kept}; {others}")
            for _ in range(2):
                await check_manager(history, path)
                for number in range(10):
                    expected = [str(number)] if number < kept else []
                    found = await history.get_history(f"m{number}")
                    assert [record.new_memory for record in found] == expected
                await history.add_history("new", None, "x", "ADD")
        await check_all(path)

    async def test_a_rowid_used_again_for_the_same_memory(self, path: Path) -> None:
        """Its entry is already in the index."""
        async with open_history(path) as history:
            for number in range(3):
                await history.add_history("m", None, str(number), "ADD")
            sql(path, "DELETE FROM history WHERE rowid = 3")
            await history.add_history("m", None, "again", "ADD")
            found = [record.new_memory for record in await history.get_history("m")]
            assert found == ["0", "1", "again"]
        await check_all(path)


def sql(path: Path, script: str) -> None:
    """Run a script in a new process."""
    processes.run("same_file", "sql", path, script)


def values(rows: Iterable[tuple[str, str]]) -> str:
    """Return SQL that inserts records with these ids and memories."""
    listed = ", ".join(f"('{record}', '{memory}', 'ADD')" for record, memory in rows)
    return f"INSERT INTO history (id, memory_id, event) VALUES {listed};"


class TestOpening:
    """A file with a rollback journal, as plain mem0 leaves it, while another process locks it."""

    async def test_opening_waits_exactly_for_lock_timeout_s(self, path: Path) -> None:
        plain_mem0().SQLiteManager(str(path)).close()
        loop = asyncio.get_running_loop()
        with processes.started("same_file", "hold", path, "EXCLUSIVE"):
            either: list[HistoryOptions] = [
                {"lock_timeout_s": 1},
                {"lock_timeout_s": 1, "migrate": False},
            ]
            for options in either:
                began = loop.time()
                with pytest.raises(StorageLocked, match=r"history\.db is locked"):
                    await open_history(path, **options)
                assert 1 <= loop.time() - began < LONG_S
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)

    async def test_opening_succeeds_when_the_lock_is_released(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(errors, "LOCK_SLICE_S", 0)  # SQLite itself does not wait
        plain_mem0().SQLiteManager(str(path)).close()

        async def opened() -> None:
            async with open_history(path, lock_timeout_s=LONG_S) as history:
                await history.add_history("m", None, "x", "ADD")

        with processes.started("same_file", "hold", path, "EXCLUSIVE"):
            opening = asyncio.create_task(opened())
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert not opening.done()
        await opening
        await check_all(path)


def test_tables_that_are_dropped_between_two_reads_of_an_opening(path: Path) -> None:
    """Whatever happens between its statements, a read shows one moment."""

    async def fill() -> None:
        async with open_history(path) as history:
            await history.add_history("m", None, "x", "ADD")

    asyncio.run(fill())
    with closing(connect(path, "rw")) as ours, closing(sqlite3.connect(path)) as other:
        of_tables = "SELECT sql FROM sqlite_master WHERE name IN ('history', 'messages')"
        tables = ";".join(row[0] for row in other.execute(of_tables))
        statements: list[str] = []
        ours.set_trace_callback(statements.append)
        assert compatibility_view(ours) is None
        for before in range(len(statements)):
            count = itertools.count()

            def drop(_: str, count: Iterator[int] = count, before: int = before) -> None:
                if next(count) == before:
                    other.executescript("DROP TABLE history; DROP TABLE messages")

            ours.set_trace_callback(drop)
            compatibility_view(ours)
            assert next(count) > before
            ours.set_trace_callback(None)
            other.executescript(tables)
