"""A file that others remove, replace or use while it is open."""

import asyncio
import os
import shutil
import signal
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from async_history import HistoryManager, StorageMissing, open_history
from async_history._sqlite import pool
from tests.subprocesses import processes
from tests.support.moved_files import log_of, move_away, replace_with_a_copy

LATER = datetime(2100, 1, 1, tzinfo=UTC)


def remove(path: Path) -> None:
    path.unlink()


def remove_with_its_log(path: Path) -> None:
    for name in path.parent.glob(f"{path.name}*"):
        name.unlink()


def remove_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def replace_with_another_history(path: Path) -> None:
    other = path.with_name("other.db")
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE history (id TEXT, memory_id TEXT, event TEXT)")
    other.replace(path)


def replace_with_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def empty(path: Path) -> None:
    os.truncate(path, 0)


GONE = [
    empty,
    remove,
    remove_with_its_log,
    remove_folder,
    move_away,
    replace_with_a_copy,
    replace_with_another_history,
    replace_with_a_folder,
]
WRITES: dict[str, Callable[[HistoryManager], Awaitable[object]]] = {
    "add": lambda h: h.add_history("m", None, "lost", "ADD"),
    "add taken id": lambda h: h.add_history("m", None, "lost", "ADD", id="taken"),
    "batch": lambda h: h.batch_add_history(
        [{"memory_id": "m", "event": "ADD", "new_memory": str(n)} for n in range(1_500)]
    ),
    "update": lambda h: h.update_history("m", "lost"),
    "messages": lambda h: h.save_messages([{"role": "user", "content": "lost"}], "scope"),
    "prune": lambda h: h.prune(older_than=LATER),
    "erase": lambda h: h.erase(memory_ids=["m"], reason="asked", vacuum=False),
    "reset": lambda h: h.reset(),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("journal", ["wal", "delete"])
@pytest.mark.parametrize("go", GONE, ids=lambda go: str(go.__name__))
async def test_a_file_that_is_gone_acknowledges_nothing(
    folder: Path, go: Callable[[Path], None], journal: str
) -> None:
    path = folder / "history.db"
    history = await open_history(path, journal=journal)  # type: ignore[arg-type]
    try:
        await history.add_history("m", None, "before", "ADD", id="taken")
        await history.add_history("m", "before", "then", "UPDATE")
        assert {"file-removed", "file-replaced"}.isdisjoint(
            warning.code for warning in (await history.stats()).warnings
        )
        history.require_writable()
        go(path)
        with pytest.raises(StorageMissing):
            history.require_writable()
        for write in WRITES.values():
            with pytest.raises(StorageMissing):
                await write(history)
        there = "removed" if not path.exists() else "replaced"
        codes = [warning.code for warning in (await history.stats()).warnings]
        assert f"file-{there}" in codes
    finally:
        await history.aclose()


async def test_a_missing_log_acknowledges_nothing_and_closing_keeps_earlier_records(
    folder: Path,
) -> None:
    path = folder / "history.db"
    async with open_history(path) as history:
        await history.add_history("m", None, "acked", "ADD")
        log_of(path).unlink()
        for write in WRITES.values():
            with pytest.raises(StorageMissing, match="-wal was removed"):
                await write(history)
        with pytest.raises(StorageMissing, match="-wal was removed"):
            history.require_writable()
    async with open_history(path) as history:
        assert [record.new_memory for record in await history.get_history("m")] == ["acked"]


async def test_writes_resume_when_the_file_is_put_back(folder: Path) -> None:
    path = folder / "history.db"
    async with open_history(path) as history:
        await history.add_history("m", None, "1", "ADD")
        move_away(path)
        with pytest.raises(StorageMissing, match="was removed"):
            await history.add_history("m", None, "2", "UPDATE")
        path.with_name("archived.db").rename(path)
        history.require_writable()
        await history.add_history("m", None, "3", "UPDATE")
    async with open_history(path, create=False) as history:
        assert [record.new_memory for record in await history.get_history("m")] == ["1", "3"]


async def test_a_file_that_is_gone_before_the_first_write(folder: Path) -> None:
    """The first write opens it for writing."""
    path = folder / "history.db"
    await (await open_history(path)).aclose()
    async with open_history(path, migrate=False) as history:
        history.require_writable()
        move_away(path)
        with pytest.raises(StorageMissing):
            history.require_writable()
        with pytest.raises(StorageMissing):
            await history.add_history("m", None, "lost", "ADD")


async def test_closing_a_replaced_file_leaves_the_new_ones_log(folder: Path) -> None:
    path = folder / "history.db"
    old = await open_history(path)
    await old.add_history("m", None, "old", "ADD")
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").rename(f"{folder / 'old.db'}{suffix}")
    async with open_history(path) as new:
        await new.add_history("m", None, "1", "ADD")
        await old.aclose()
        assert log_of(path).exists()
        await new.add_history("m", None, "2", "UPDATE")
    async with open_history(path) as new:
        assert [record.new_memory for record in await new.get_history("m")] == ["1", "2"]


class TestInUse:
    """Warnings that a SQLite with the WAL-reset fault may lose commits."""

    @pytest.fixture(autouse=True)
    def has_fault(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pool, "has_log_reset_fault", lambda version: True)

    async def test_another_manager_of_the_process_is_warned_of(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = folder / "history.db"
        async with open_history(path):
            assert "in use" not in caplog.text
            async with open_history(path):
                assert "in use elsewhere, in this process" in caplog.text
                assert "several managers or event loops" in caplog.text
            async with open_history(path):
                assert caplog.text.count("in use elsewhere") == 1  # once in a process

    async def test_another_loop_of_the_process_is_warned_of(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Also a connection of sqlite3 itself, such as plain mem0's."""
        path = folder / "history.db"

        async def open_and_close() -> None:
            async with open_history(path):
                pass

        async with open_history(path):
            await asyncio.to_thread(asyncio.run, open_and_close())
        assert "in use elsewhere, in this process" in caplog.text
        caplog.clear()
        pool.warn_of_use.cache_clear()
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("SELECT * FROM history").fetchall()
            await open_and_close()
        assert "in use elsewhere, in this process" in caplog.text

    @pytest.mark.subprocess
    @pytest.mark.skipif(os.name == "nt", reason="asks for POSIX locks")
    async def test_another_process_is_warned_of_until_it_is_killed(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = folder / "history.db"
        async with open_history(path) as history:
            await history.add_history("m", None, "x", "ADD")
        with processes.started("holding_open", path) as other:
            async with open_history(path):
                assert "in use elsewhere, by another process" in caplog.text
            caplog.clear()
            pool.warn_of_use.cache_clear()
            other.send_signal(signal.SIGKILL)
            other.wait()
            assert log_of(path).exists()
            async with open_history(path) as history:
                assert "in use" not in caplog.text
                assert len(await history.get_history("m")) == 2
            other.returncode = 0  # as `started` expects of a program that was not killed

    async def test_a_sqlite_without_the_fault_warns_of_nothing(
        self, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pool, "has_log_reset_fault", lambda version: False)
        async with open_history(folder / "history.db"), open_history(folder / "history.db"):
            assert "in use" not in caplog.text
