"""A file with a rollback journal keeps the guarantees. The contract's tests run on it too."""

import asyncio
import json
import sqlite3
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from async_history import HistoryManager, InvalidInput, StorageLocked, open_history
from async_history._core.options import Journal
from async_history._sqlite.connecting import errors
from async_history.blocking import BlockingHistoryManager
from async_history.sqlite import SQLiteHistoryManager, adopt
from async_history.testing import NewStore, RandomCallCases
from tests.conftest import new_stores
from tests.subprocesses import processes
from tests.subprocesses.checks import check_levels, check_sound, check_submissions, looking, texts
from tests.subprocesses.failing_io import compiler, run_failing
from tests.subprocesses.opened import VARIABLE
from tests.support.patience import LONG_S, MINUTES_S

pytestmark = pytest.mark.once

linux = pytest.mark.skipif(sys.platform != "linux", reason="uses what only Linux has")
has_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C compiler")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.db"


@pytest.fixture
def programs_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the programs that a test starts use a rollback journal."""
    monkeypatch.setenv(VARIABLE, "delete")


def mode_of(path: Path) -> str:
    with closing(sqlite3.connect(path)) as connection:
        mode: str
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    return mode


async def add(history: HistoryManager, text: str) -> None:
    await history.add_history("m", None, text, "UPDATE")


async def read(history: HistoryManager) -> list[str | None]:
    return [record.new_memory for record in await history.get_history("m")]


class TestRandomCalls(RandomCallCases):
    examples = 12

    @pytest.fixture
    def new_store(self, request: pytest.FixtureRequest, tmp_path: Path) -> NewStore:
        return new_stores("rollback", request, tmp_path)


@pytest.mark.faults
@pytest.mark.timeout(1_200)
class TestDurability:
    @pytest.mark.parametrize(("durability", "synchronous"), [("full", 3), ("normal", 2)])
    async def test_the_journals_removal_is_synced(
        self, path: Path, durability: str, synchronous: int
    ) -> None:
        history = SQLiteHistoryManager(path, journal="delete", durability=durability)  # type: ignore[arg-type]
        async with history:
            await add(history, "x")
            writing = history.store.pool._writer
            assert writing is not None
            for pragma, value in (("journal_mode", "delete"), ("synchronous", synchronous)):
                assert list(await writing.execute_fetchall(f"PRAGMA {pragma}")) == [(value,)]
            assert [file.name for file in path.parent.iterdir()] == ["history.db"]
            assert (await history.stats()).wal_bytes == 0
            assert not any(w.code == "wal-reset-fault" for w in (await history.stats()).warnings)

    @pytest.mark.subprocess
    @linux
    @has_compiler
    @pytest.mark.usefixtures("programs_have_it")
    @pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.nightly), 11])
    def test_killed_at_every_write(self, stride: int, tmp_path: Path) -> None:
        counts = run_failing(tmp_path, "killed", stride, timeout_s=MINUTES_S)
        assert counts["opening"] > 20 // stride
        assert counts["wrote"] > 100 // stride
        assert counts["closed"] == 1

    @pytest.mark.subprocess
    @linux
    @has_compiler
    @pytest.mark.nightly
    @pytest.mark.usefixtures("programs_have_it")
    @pytest.mark.parametrize("what", ["opening", "writing", "erasing"])
    def test_each_write_of_commits_fails(self, what: str, tmp_path: Path) -> None:
        assert run_failing(tmp_path, what, timeout_s=MINUTES_S)

    @pytest.mark.subprocess
    @linux
    @pytest.mark.usefixtures("programs_have_it")
    def test_killed_again_and_again_under_load(self, tmp_path: Path) -> None:
        counts = json.loads(processes.run("kills", tmp_path, 20, 20_261_128, timeout_s=MINUTES_S))
        assert counts["writing"] >= 5


class TestConversion:
    @pytest.mark.parametrize(("first", "then"), [("wal", "delete"), ("delete", "wal")])
    async def test_conversion_in_each_direction(
        self, path: Path, first: Journal, then: Journal
    ) -> None:
        for number, journal in enumerate((first, then, first)):
            async with open_history(path, journal=journal) as history:
                await add(history, str(number))
                assert await read(history) == [str(n) for n in range(number + 1)]
            assert mode_of(path) == journal

    async def test_a_log_that_others_use_is_kept(self, path: Path) -> None:
        async with open_history(path) as history:
            await add(history, "x")
            with pytest.raises(StorageLocked, match="others have it open"):
                await open_history(path, journal="delete", lock_timeout_s=0.1)
            await add(history, "y")
        async with open_history(path, journal="delete") as history:
            assert await read(history) == ["x", "y"]

    @pytest.mark.subprocess
    async def test_a_log_that_a_killed_process_left_is_copied(self, path: Path) -> None:
        async with open_history(path) as history:
            await add(history, "x")
        await asyncio.to_thread(processes.run, "same_file", "die_writing", path)
        assert path.with_name("history.db-wal").stat().st_size
        async with open_history(path, journal="delete") as history:
            assert await read(history) == ["x", None]
        assert not path.with_name("history.db-wal").exists()

    async def test_opening_without_migration_keeps_the_journal_mode(self, path: Path) -> None:
        async with open_history(path, journal="delete") as history:
            await add(history, "x")
        async with open_history(path, migrate=False) as history:
            assert await read(history) == ["x"]
            await add(history, "y")
            assert await read(history) == ["x", "y"]
        assert mode_of(path) == "delete"

    async def test_conversion_by_the_url(self, path: Path) -> None:
        async with open_history(f"sqlite:///{path}?journal=delete") as history:
            await add(history, "x")
        assert mode_of(path) == "delete"

    def test_conversion_by_the_url_of_the_blocking_manager(self, path: Path) -> None:
        history = BlockingHistoryManager(f"sqlite:///{path}?journal=delete")
        history.add_history("m", None, "x", "ADD")
        history.close()
        assert mode_of(path) == "delete"

    @pytest.mark.parametrize("query", ["journal=off", "journal=delete&x=1", "journal=", "x=1"])
    def test_bad_journal_parameters_are_refused(self, path: Path, query: str) -> None:
        with pytest.raises(InvalidInput):
            open_history(f"sqlite:///{path}?{query}")

    @pytest.mark.parametrize("journal", ["wal", "delete"])
    async def test_adopting_converts_too(self, path: Path, journal: Journal) -> None:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(
                "CREATE TABLE history (id TEXT PRIMARY KEY, memory_id TEXT, event TEXT)"
            )
        assert (await asyncio.to_thread(adopt, path, journal=journal)).done
        assert mode_of(path) == journal


class TestReadersAndTheWriter:
    async def test_readers_and_the_writer_both_make_progress(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Endless reads, and writes: both go on, and neither gets the other's lock error."""
        monkeypatch.setattr(errors, "LOCK_SLICE_S", 0)  # SQLite itself does not wait
        async with open_history(path, journal="delete", lock_timeout_s=0) as history:
            is_over = False
            reads = 0

            async def go_on_reading() -> None:
                nonlocal reads
                while not is_over:
                    await history.get_history("m")
                    assert await history.count_history() >= 0
                    reads += 1

            async with asyncio.timeout(LONG_S):
                readers = [asyncio.create_task(go_on_reading()) for _ in range(8)]
                for number in range(50):
                    await add(history, str(number))
                is_over = True
                await asyncio.gather(*readers)
            assert await read(history) == [str(number) for number in range(50)]
            assert reads >= 8

    async def test_another_process_that_reads_is_waited_for(self, path: Path) -> None:
        async with open_history(path, journal="delete", lock_timeout_s=0.2) as history:
            await add(history, "x")
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN")
                other.execute("SELECT count(*) FROM history").fetchall()
                with pytest.raises(StorageLocked):
                    await add(history, "refused")
                assert await read(history) == ["x"]
                other.execute("COMMIT")
            await add(history, "y")
            assert await read(history) == ["x", "y"]

    async def test_writes_wait_for_a_backup_and_it_is_whole(self, path: Path) -> None:
        async with open_history(path, journal="delete") as history:
            assert isinstance(history, SQLiteHistoryManager)
            await history.batch_add_history(
                [{"memory_id": "m", "new_memory": "x" * 5_000, "event": "ADD"}] * 300
            )
            async with asyncio.timeout(LONG_S):
                await asyncio.gather(
                    history.backup(path.with_name("copy.db")),
                    *(add(history, str(number)) for number in range(30)),
                )
            assert await history.count_history() == 330
        with looking(path.with_name("copy.db")) as connection:
            check_sound(connection)
            assert len(texts(connection)) >= 300

    @pytest.mark.subprocess
    @linux
    @pytest.mark.usefixtures("programs_have_it")
    async def test_several_processes_on_a_fresh_file(self, path: Path) -> None:
        with ExitStack() as stack:
            for run in range(3):
                stack.enter_context(processes.started("same_file", "ours", path, run, 10))
        with looking(path, "rw") as connection:
            check_sound(connection)
            check_levels(connection)
            assert len(check_submissions(texts(connection))) == 3 * 50 * 10
        assert mode_of(path) == "delete"


@pytest.fixture
def linked(path: Path, tmp_path: Path) -> Path:
    """A link to a file in another folder."""
    link = tmp_path / "elsewhere" / "link.db"
    link.parent.mkdir()
    link.symlink_to(path)
    return link


class TestLinks:
    async def test_files_next_to_a_link_are_next_to_its_target(
        self, path: Path, linked: Path
    ) -> None:
        async with open_history(linked) as history:
            assert isinstance(history, SQLiteHistoryManager)
            await add(history, "x")
            stats = await history.stats()
            assert stats.wal_bytes == path.with_name("history.db-wal").stat().st_size > 0
            assert stats.file_bytes == path.stat().st_size
            await history.erase(memory_ids=["m"], reason="asked")
            await history.backup(linked.with_name("backup.db"))
            assert not any(warning.code == "file-removed" for warning in stats.warnings)
        assert sorted(file.name for file in linked.parent.iterdir()) == ["backup.db", "link.db"]

    @pytest.mark.subprocess
    async def test_reading_changes_nothing(self, path: Path, linked: Path) -> None:
        async with open_history(path) as history:
            await add(history, "x")
        await asyncio.to_thread(
            processes.run, "same_file", "die_writing", path
        )  # a log that was not copied stays
        before = {file.name: file.stat().st_size for file in path.parent.iterdir()}
        for look in (path, linked):
            async with open_history(look, migrate=False) as history:
                assert len(await history.get_history("m")) == 2
                assert (await history.stats()).wal_bytes == before["history.db-wal"]
            await asyncio.to_thread(adopt, look, dry_run=True)
            assert {f.name: f.stat().st_size for f in path.parent.iterdir()} == before
