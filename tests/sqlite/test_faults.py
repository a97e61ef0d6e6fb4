"""Storage that fails: a typed error, acked records kept, a responsive loop, work that resumes."""

import asyncio
import errno
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest

from async_history import (
    CommitUnknown,
    HistoryClosed,
    HistoryManager,
    StorageCorrupt,
    StorageError,
    StorageFull,
    StorageLocked,
    StorageReadOnly,
    open_history,
)
from async_history._core.removing.prune import PruneStep
from async_history._sqlite import opening
from async_history._sqlite import store as sqlite_store
from async_history._sqlite.connecting import errors
from async_history._sqlite.connecting.connection import ThreadConnection
from async_history._sqlite.connecting.errors import system_refusal
from async_history._sqlite.index.levels import LEVELS
from async_history._sqlite.removing.prune import prune
from async_history._sqlite.schema.adopt import prepare
from async_history._sqlite.writing.commit import BatchCommitter
from async_history.sqlite import SQLiteHistoryManager
from tests.subprocesses import processes
from tests.subprocesses.checks import check_sound, looking
from tests.subprocesses.confined import BOUND_BY_MODES
from tests.subprocesses.failing_io import compiler, run_failing
from tests.support.patience import LONG_S, MINUTES_S

pytestmark = [pytest.mark.faults, pytest.mark.once]

T = TypeVar("T")

linux = pytest.mark.skipif(sys.platform != "linux", reason="uses what only Linux has")
has_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C compiler")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.db"


async def texts(history: HistoryManager, memory_id: str = "m") -> list[str | None]:
    return [record.new_memory for record in await history.get_history(memory_id)]


async def add(history: HistoryManager, text: str) -> None:
    await history.add_history("m", None, text, "UPDATE")


async def while_ticking(work: Awaitable[T]) -> T:
    """Await something slow, and check that the loop runs meanwhile."""
    task = asyncio.ensure_future(work)
    ticks = 0
    while not task.done():
        await asyncio.sleep(0.001)
        ticks += 1
    assert ticks > 1
    return await task


@pytest.fixture
def disk(tmp_path: Path) -> Iterator["Disk"]:
    disk = Disk(tmp_path / "disk")
    if not disk.is_mounted:
        pytest.skip("may not mount; TestEveryWrite covers a full disk")
    yield disk
    disk.unmount()


@pytest.mark.subprocess
class TestFullDisk:
    @pytest.fixture(params=["disk", "pages"])
    def space(self, request: pytest.FixtureRequest, tmp_path: Path) -> "Iterator[Disk | Pages]":
        """Something to fill: a small disk or, if none can be mounted, a file."""
        disk = Disk(tmp_path / "disk")
        if request.param == "pages" or not disk.is_mounted:
            disk.unmount()
            yield Pages(tmp_path)
        else:
            yield disk
            disk.unmount()

    async def test_acked_records_are_kept_and_work_resumes(self, space: "Disk | Pages") -> None:
        path = space.folder / "history.db"
        acked: list[str | None] = []
        async with open_history(path) as history:
            await space.fill(history)
            with pytest.raises(StorageFull, match=r"history\.db has no free disk space left"):
                await add_until_it_fails(history, acked)
            results = await asyncio.gather(
                *(add(history, "x" * 10_000) for _ in range(50)), return_exceptions=True
            )
            assert {type(result) for result in results} == {StorageFull}
            with pytest.raises(StorageFull):
                await history.save_messages([{"content": "x" * 100_000}], "s")
            assert await texts(history) == acked
            await space.free(history)
            await add(history, "again")
            await history.save_messages([{"content": "again"}], "s")
            assert await texts(history) == [*acked, "again"]
            assert [message.content for message in await history.get_last_messages("s")] == [
                "again"
            ]
        with looking(path, "rw") as connection:
            check_sound(connection)

    async def test_opening_without_space(self, disk: "Disk") -> None:
        await disk.fill(None)
        with pytest.raises(StorageFull):
            await open_history(disk.folder / "history.db")
        await disk.free(None)
        async with open_history(disk.folder / "history.db") as history:
            await add(history, "x")
        await disk.fill(None)
        with pytest.raises(StorageFull, match="32 KiB of free disk space"):
            await open_history(disk.folder / "history.db")
        await disk.free(None)
        async with open_history(disk.folder / "history.db") as history:
            assert await texts(history) == ["x"]

    def test_a_last_page_is_not_space_enough(self, disk: "Disk") -> None:
        """The system writes a part then, and refuses the rest."""
        refused = failure(sqlite3.SQLITE_IOERR_WRITE, "disk I/O error")
        assert system_refusal(refused, disk.folder / "history.db") is None
        disk.remount("size=4k")
        found = system_refusal(refused, disk.folder / "history.db")
        assert type(found) is StorageFull

    async def test_a_disk_without_inodes(self, disk: "Disk") -> None:
        """A rollback journal is a new file. SQLite reports only that it can't be opened."""
        path = disk.folder / "history.db"
        async with open_history(path, journal="delete") as history:
            await add(history, "x")
            status = os.statvfs(disk.folder)
            disk.remount(f"nr_inodes={status.f_files - status.f_ffree}")
            with pytest.raises(StorageFull, match="df -i"):
                await add(history, "refused")
            disk.remount("nr_inodes=100")
            await add(history, "again")
            assert await texts(history) == ["x", "again"]

    def test_an_adoption_on_a_disk_that_becomes_full(self, disk: "Disk") -> None:
        """It is rolled back at once: who moves the file to another disk may leave its journal."""
        path = disk.folder / "history.db"
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("CREATE TABLE history (id TEXT PRIMARY KEY, memory_id, event)")
            rows = ((f"{number:0400}", "m", "ADD") for number in range(200))
            connection.executemany("INSERT INTO history VALUES (?, ?, ?)", rows)
        before = path.read_bytes()
        disk.remount("size=4m")

        def fill(step: str, _: int, __: int) -> None:
            status = os.statvfs(disk.folder)
            used = (status.f_blocks - status.f_bfree) * status.f_bsize
            disk.remount(f"size={used}")

        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA cache_size = 10")
            with pytest.raises(sqlite3.OperationalError, match="full"):
                prepare(connection, path, backup=False, on_progress=fill, copied_rows=50)
            assert list(disk.folder.iterdir()) == [path]
            assert path.read_bytes() == before

    @linux
    def test_a_file_that_may_not_grow(self, tmp_path: Path) -> None:
        processes.run("confined", "limit", tmp_path)


async def add_until_it_fails(history: HistoryManager, acked: list[str | None]) -> None:
    for number in range(200):
        text = str(number) * 10_000
        await add(history, text)
        acked.append(text)


class Disk:
    """A disk of one megabyte, if this process may mount one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
        try:
            self.is_mounted = subprocess.run(command, capture_output=True).returncode == 0
        except FileNotFoundError:
            self.is_mounted = False

    async def fill(self, history: HistoryManager | None) -> None:
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            (self.folder / "ballast").write_bytes(bytes(1 << 21))

    async def free(self, history: HistoryManager | None) -> None:
        (self.folder / "ballast").unlink()

    def remount(self, how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.folder)], check=True)

    def unmount(self) -> None:
        if self.is_mounted:
            subprocess.run(["umount", str(self.folder)], check=True)
            self.is_mounted = False


class Pages:
    """A file with a limited number of pages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def fill(self, history: HistoryManager | None) -> None:
        await self._limit(history, 30)

    async def free(self, history: HistoryManager | None) -> None:
        await self._limit(history, 1 << 30)

    async def _limit(self, history: HistoryManager | None, pages: int) -> None:
        assert isinstance(history, SQLiteHistoryManager)
        assert history.store.pool._writer is not None
        await history.store.pool._writer.execute_fetchall(f"PRAGMA max_page_count = {pages}")


@pytest.mark.subprocess
@linux
class TestReadOnly:
    @pytest.mark.parametrize(
        ("file_mode", "folder_mode", "expected"),
        [
            ("600", "500", "StorageReadOnly"),
            ("400", "500", "StorageReadOnly"),
            ("400", "700", "StorageReadOnly"),
            ("000", "700", "StorageReadOnly"),
        ],
        ids=["folder", "both", "file", "unreadable"],
    )
    def test_files_and_folders_without_write_permission(
        self, file_mode: str, folder_mode: str, expected: str, tmp_path: Path
    ) -> None:
        arguments = (tmp_path, file_mode, folder_mode, expected)
        processes.run("confined", "modes", *arguments, before=BOUND_BY_MODES)

    @pytest.mark.parametrize(
        "name",
        [
            "new/history.db",
            "history.db",
        ],
        ids=["new", "there"],
    )
    async def test_a_read_only_disk(self, disk: "Disk", name: str) -> None:
        path = disk.folder / "history.db"
        await fill(path)
        disk.remount("ro")
        with pytest.raises(StorageReadOnly):
            await open_history(disk.folder / name)
        refused = failure(sqlite3.SQLITE_IOERR_WRITE, "disk I/O error")
        assert type(system_refusal(refused, path)) is StorageReadOnly, "if it is open meanwhile"
        disk.remount("rw")
        async with open_history(path) as history:
            await add(history, "again")
            assert await texts(history, "m1") == ["1", "101", "201"]


@pytest.mark.subprocess
@linux
class TestLocks:
    @pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
    async def test_a_lock_held_too_long_raises_once_for_the_batch(
        self, path: Path, stopped: bool
    ) -> None:
        async with open_history(path, lock_timeout_s=0.5) as history:
            await add(history, "before")
            with processes.started("same_file", "hold", path, "IMMEDIATE") as holder:
                if stopped:
                    os.kill(holder.pid, signal.SIGSTOP)
                calls = [add(history, "refused") for _ in range(300)]
                results = await while_ticking(asyncio.gather(*calls, return_exceptions=True))
                assert {type(result) for result in results} == {StorageLocked}
                assert await texts(history) == ["before"], "readers do not wait"
                stats = (await history.stats()).writer
                assert stats is not None
                assert stats.failed_batches == 1
                with pytest.raises(StorageLocked):
                    await history.reset()
                os.kill(holder.pid, signal.SIGCONT)
            await add(history, "after")
            assert await texts(history) == ["before", "after"]

    async def test_a_lock_released_in_time_is_waited_for(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(errors, "LOCK_SLICE_S", 0)  # SQLite itself does not wait
        async with open_history(path) as history:
            with processes.started("same_file", "hold", path, "IMMEDIATE") as holder:
                os.kill(holder.pid, signal.SIGSTOP)
                call = asyncio.create_task(add(history, "x"))
                for _ in range(50):
                    await asyncio.sleep(0.001)
                assert not call.done()
                os.kill(holder.pid, signal.SIGCONT)
            await call
            assert await texts(history) == ["x"]

    async def test_cancelled_callers_of_a_locked_file(self, path: Path) -> None:
        """They return at once. Queued calls are withdrawn, the batch is written."""
        async with open_history(path) as history:
            with processes.started("same_file", "hold", path, "IMMEDIATE"):
                in_batch = asyncio.create_task(add(history, "in the batch"))
                await taken_into_a_batch(history)
                rest = [asyncio.create_task(add(history, "queued")) for _ in range(20)]
                await asyncio.sleep(0)
                assert await queued(history) == 20
                for call in (in_batch, *rest):
                    call.cancel()
                results = await asyncio.gather(in_batch, *rest, return_exceptions=True)
                assert {type(result) for result in results} == {asyncio.CancelledError}
                assert await queued(history) == 0
            await add(history, "after")
            assert await texts(history) == ["in the batch", "after"]

    async def test_closing_is_bounded_and_every_caller_gets_an_error(self, path: Path) -> None:
        history = await open_history(path, close_timeout_s=0.3, lock_timeout_s=LONG_S)
        with processes.started("same_file", "hold", path, "IMMEDIATE"):
            in_batch = asyncio.create_task(add(history, "in the batch"))
            await taken_into_a_batch(history)
            waiting = asyncio.create_task(add(history, "queued"))
            await asyncio.sleep(0)
            await while_ticking(history.aclose())
            with pytest.raises(CommitUnknown):
                await in_batch
            with pytest.raises(HistoryClosed, match="not written"):
                await waiting
        async with open_history(path) as history:
            assert set(await texts(history)) <= {"in the batch"}


async def taken_into_a_batch(history: HistoryManager) -> None:
    """Return when the call that was just made is no longer queued."""
    for _ in range(100):
        await asyncio.sleep(0)
        if not await queued(history):
            return
    pytest.fail("the writer never took it")


async def queued(history: HistoryManager) -> int:
    stats = (await history.stats()).writer
    assert stats is not None
    return stats.queued_records


class TestDamage:
    """A damaged page raises, is never repaired, and never makes an answer wrong."""

    @pytest.mark.parametrize(
        "name",
        ["history", "sqlite_autoindex_history_1", "messages", "async_history_state", *LEVELS],
    )
    async def test_each_damaged_page_raises_storage_corrupt(self, path: Path, name: str) -> None:
        await fill(path)
        damage = Damage(path, name)
        answers = [await answer(call) for call in calls(path)]
        assert {type(result) for result in answers if result is not None} == {StorageCorrupt}
        damage.check_still_there()

    async def test_undamaged_tables_stay_readable(self, path: Path) -> None:
        await fill(path)
        Damage(path, "messages")
        async with open_history(path) as history:
            assert await texts(history, "m1") == ["1", "101", "201"]
            await history.add_history("m1", None, "new", "UPDATE")
            with pytest.raises(StorageCorrupt, match=r"history\.db is damaged"):
                await history.get_last_messages("s")
            assert await texts(history, "m1") == ["1", "101", "201", "new"]

    async def test_the_first_page_while_open(self, path: Path) -> None:
        """The file is not a database any more, which the next opening finds."""
        await fill(path)
        path.write_bytes(b"\xa5" * 4096 + path.read_bytes()[4096:])
        before = path.read_bytes()
        with pytest.raises(StorageCorrupt, match="not a SQLite database"):
            await open_history(path)
        assert path.read_bytes() == before


async def fill(path: Path) -> None:
    async with open_history(path) as history:
        await history.batch_add_history(
            [
                {"memory_id": f"m{number % 100}", "new_memory": str(number), "event": "UPDATE"}
                for number in range(300)
            ]
        )
        await history.save_messages([{"content": "x"}], "s")


class Damage:
    """The overwritten first page of a table or index."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        with looking(path, "rw") as connection:
            (page,) = connection.execute(
                "SELECT rootpage FROM sqlite_master WHERE name = ?", (name,)
            ).fetchone()
            (self.size,) = connection.execute("PRAGMA page_size").fetchone()
        self.place = (page - 1) * self.size
        with path.open("r+b") as file:
            file.seek(self.place)
            file.write(b"\xa5" * self.size)

    def check_still_there(self) -> None:
        content = self.path.read_bytes()[self.place : self.place + self.size]
        assert content == b"\xa5" * self.size


def calls(path: Path) -> Sequence[Callable[[], Awaitable[None]]]:
    """Calls that use each table. Each opens the file, reads or writes, and checks the answer."""

    async def read() -> None:
        async with open_history(path) as history:
            assert await texts(history, "m1") == ["1", "101", "201"]

    async def write() -> None:
        async with open_history(path) as history:
            await history.add_history("new", None, "x", "ADD", id="new")

    async def messages() -> None:
        async with open_history(path) as history:
            assert [message.content for message in await history.get_last_messages("s")] == ["x"]

    return (read, write, messages)


async def answer(call: Callable[[], Awaitable[None]]) -> StorageError | None:
    try:
        await call()
    except StorageError as error:
        return error
    return None


class TestPaths:
    async def test_a_file_system_without_shared_memory(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """SQLite's dot-file locking has no shared memory, like some network disks."""

        def connect(path: Path, mode: str) -> sqlite3.Connection:
            uri = f"{path.as_uri()}?mode={mode}&vfs=unix-dotfile"
            return sqlite3.connect(uri, uri=True, isolation_level=None)

        monkeypatch.setattr(opening, "connect", connect)
        with pytest.raises(StorageError, match=r"history\.db cannot have a write-ahead log"):
            await open_history(path)

    async def test_a_folder_in_the_place_of_the_log(self, path: Path) -> None:
        await fill(path)
        log = path.with_name("history.db-wal")
        log.mkdir()
        before = path.read_bytes()
        with pytest.raises(StorageError, match=r"history\.db"):
            await open_history(path)
        assert path.read_bytes() == before
        log.rmdir()
        async with open_history(path) as history:
            assert await texts(history, "m1") == ["1", "101", "201"]

    async def test_a_file_in_the_place_of_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / "folder").write_bytes(b"")
        with pytest.raises(StorageError, match="folder"):
            await open_history(tmp_path / "folder" / "history.db")


@pytest.mark.subprocess
@linux
@has_compiler
@pytest.mark.timeout(1_200)
class TestEveryWrite:
    """Each write and sync fails in turn, once or permanently, as on a bad and on a full disk: each
    with `--nightly`, else one in a few."""

    def test_every_write_of_an_opening(self, tmp_path: Path, stride: int) -> None:
        counts = run_failing(tmp_path, "opening", stride, timeout_s=MINUTES_S)
        assert counts["refused-opening"] >= 20 // stride
        assert counts["opened early"] == 2, "until no write is left"

    def test_every_write_of_commits(self, tmp_path: Path, stride: int) -> None:
        """Acked records are there, refused ones are not, unknown ones may be written again."""
        counts = run_failing(tmp_path, "writing", min(stride, 3), timeout_s=MINUTES_S)
        assert counts["wrote"] > 300
        assert counts["refused"] > 30
        assert counts["unknown"] > 5


def failure(code: int, text: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error


async def test_a_prune_counts_the_removals_of_an_attempt_that_reported_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[PruneStep] = []

    def prune_and_fail(*arguments: Any) -> PruneStep:
        tried.append(prune(*arguments))
        if len(tried) < 3:
            raise failure(sqlite3.SQLITE_IOERR_FSYNC, "disk I/O error")
        return tried[-1]

    monkeypatch.setattr(sqlite_store, "prune", prune_and_fail)
    then = "2020-01-01T00:00:00Z"
    async with open_history(path) as history:
        for event in ("ADD", "UPDATE", "DELETE"):
            for memory_id in ("m", f"{event}"):
                await history.add_history(
                    memory_id, None, "x", event, created_at=then, updated_at=then
                )
        report = await history.prune(older_than=timedelta(days=1))
        assert len(tried) == 3
        assert (report.records, report.memories_gone) == (4, 2)
        assert await history.count_history() == 2


class TestRetries:
    """A commit that took effect although the storage reported an error."""

    @pytest.fixture
    def commits(self, monkeypatch: pytest.MonkeyPatch) -> list[sqlite3.Error | None]:
        """The errors of the next commits, after they took effect or, where the system refused to
        write, before."""
        reports: list[sqlite3.Error | None] = []
        real = BatchCommitter.commit

        async def commit(
            committer: BatchCommitter, batch: Sequence[Any], *, is_repeated: bool
        ) -> Any:
            report = reports.pop(0) if reports else None
            refusals = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE)
            if report is not None and report.sqlite_errorcode in refusals:
                raise report
            refused = await real(committer, batch, is_repeated=is_repeated)
            if report is not None:
                raise report
            return refused

        monkeypatch.setattr(BatchCommitter, "commit", commit)
        return reports

    async def test_a_definite_error_of_the_retry_is_not_a_refusal(
        self, path: Path, commits: list[sqlite3.Error | None]
    ) -> None:
        async with open_history(path, lock_timeout_s=0.2) as history:
            full = failure(sqlite3.SQLITE_FULL, "database or disk is full")
            commits += [failure(sqlite3.SQLITE_IOERR_FSYNC, "disk I/O error"), *[full] * 100]
            with pytest.raises(CommitUnknown) as failed:
                await history.add_history("m", None, "x", "ADD", id="a")
            assert failed.value.ids == ("a",)
            commits.clear()
            await history.add_history("m", None, "x", "ADD", id="a")
            assert await texts(history) == ["x"]

    async def test_a_refused_write_is_tried_again_unless_there_is_no_space(
        self, tmp_path: Path, commits: list[sqlite3.Error | None]
    ) -> None:
        """SQLite reports an exhausted quota as any other I/O error."""
        disk = Disk(tmp_path / "disk")
        refused = failure(sqlite3.SQLITE_IOERR_WRITE, "disk I/O error")
        try:
            async with open_history(disk.folder / "history.db", lock_timeout_s=0.1) as history:
                commits += [refused] * 2
                await add(history, "tried again")
                commits += [refused] * 100
                with pytest.raises(StorageError, match="check the disk, its quota") as failed:
                    await add(history, "refused")
                assert type(failed.value) is StorageError
                if disk.is_mounted:
                    await disk.fill(history)
                    left = len(commits)
                    with pytest.raises(StorageFull, match="space or inodes left"):
                        await add(history, "refused")
                    assert len(commits) == left - 1, "it is not tried again"
                    await disk.free(history)
                commits.clear()
                await add(history, "again")
                assert await texts(history) == ["tried again", "again"]
        finally:
            disk.unmount()

    async def test_a_retried_batch_is_written_once_and_in_order(
        self, path: Path, commits: list[sqlite3.Error | None]
    ) -> None:
        async with open_history(path) as history:
            broken = failure(sqlite3.SQLITE_IOERR_FSYNC, "disk I/O error")
            for number in range(3):
                commits += [broken, broken]
                await asyncio.gather(
                    *(
                        history.save_messages(
                            [{"content": f"{number}.{call}.{n}"} for n in range(6)], f"s{call % 2}"
                        )
                        for call in range(6)
                    ),
                    add(history, f"{number} first"),
                    add(history, f"{number} second"),
                )
                for scope, (early, late) in (("s0", (2, 4)), ("s1", (3, 5))):
                    kept = [f"{number}.{early}.{n}" for n in range(2, 6)]
                    kept += [f"{number}.{late}.{n}" for n in range(6)]
                    found = await history.get_last_messages(scope)
                    assert [message.content for message in found] == kept
            assert await texts(history) == [
                f"{number} {which}" for number in range(3) for which in ("first", "second")
            ]
        with closing(sqlite3.connect(path)) as connection:
            check_sound(connection)


async def test_a_function_of_the_thread_may_raise_what_a_future_can_not_hold() -> None:
    connection = await ThreadConnection(lambda: sqlite3.connect(":memory:")).opened()
    try:
        with pytest.raises(RuntimeError, match="the call raised StopIteration") as raised:
            await asyncio.wait_for(connection.run(lambda _: next(iter(()))), LONG_S)
    finally:
        await connection.close()
    assert isinstance(raised.value.__cause__, StopIteration)
