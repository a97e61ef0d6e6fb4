"""Backups: consistent during writes, whole or absent, and equivalent to the file."""

import asyncio
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mem0.memory.storage import SQLiteManager

from async_history import (
    HistoryManager,
    InvalidInput,
    Message,
    OwnerConflict,
    StorageError,
    open_history,
)
from async_history._core.operations.progress import Progress
from async_history._sqlite import backup as backup_module
from async_history._sqlite.schema.adopt import is_prepared
from async_history.sqlite import SQLiteHistoryManager
from tests.support.patience import LONG_S

pytestmark = pytest.mark.once


def sqlite(history: HistoryManager) -> SQLiteHistoryManager:
    assert isinstance(history, SQLiteHistoryManager)
    return history


async def back_up_slowly(
    history: SQLiteHistoryManager, path: Path, on_progress: Progress | None = None
) -> None:
    """Back up page by page."""
    await history.store.back_up(path, on_progress, pages=1)


def texts_in(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = connection.execute("SELECT new_memory FROM history ORDER BY rowid")
        return [text for (text,) in rows]


def state_of(path: Path) -> tuple[str, bool]:
    """Return the journal mode, and whether every record is indexed."""
    with closing(sqlite3.connect(path)) as connection:
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        return mode, is_prepared(connection)


async def load(
    history: SQLiteHistoryManager, acked: "asyncio.Queue[str]", stop: asyncio.Event
) -> None:
    async def one(number: int) -> None:
        count = 0
        while not stop.is_set():
            text = f"{number} {count}"
            await history.add_history(f"m{number}", None, text, "ADD")
            acked.put_nowait(text)
            count += 1

    await asyncio.gather(*(one(number) for number in range(20)))


async def test_a_backup_has_owners_contexts_and_causes(tmp_path: Path) -> None:
    ann: dict[str, Any] = {"user_id": "ann"}
    async with sqlite(open_history(tmp_path / "history.db")) as history:
        for event in ("ADD", "UPDATE"):
            more: dict[str, Any] = {"context": {"n": event}, "cause": {"request_id": event}}
            await history.add_history("m", None, "x", event, owner=ann, **more)
        before = await history.get_history("m")
        await history.backup(tmp_path / "copy.db")
    async with open_history(tmp_path / "copy.db", create=False) as copied:
        assert await copied.get_history("m") == before
        for asked, found in (
            (ann, before),
            ({"cause": {"request_id": "ADD"}}, before[:1]),
            ({"user_id": "bob"}, []),
        ):
            assert [one async for one in copied.query_history(**asked)] == found
        with pytest.raises(OwnerConflict):
            await copied.add_history("m", "x", "y", "UPDATE", owner={"user_id": "bob"})


@pytest.mark.parametrize("store", ["file", "memory"])
async def test_a_backup_has_every_acked_record_and_can_be_opened(
    store: str, tmp_path: Path
) -> None:
    url = "memory://" if store == "memory" else str(tmp_path / "history.db")
    async with sqlite(open_history(url)) as history:
        acked: asyncio.Queue[str] = asyncio.Queue()
        before: set[str] = set()
        stop = asyncio.Event()
        loading = asyncio.create_task(load(history, acked, stop))
        await history.save_messages([Message("user", "hello")], "scope")
        for number in range(5):
            before |= {await acked.get() for _ in range(2_000)}
            await history.backup(tmp_path / f"{number}.db")
            there = texts_in(tmp_path / f"{number}.db")
            assert before <= set(there)
            assert len(set(there)) == len(there)
            for task in range(20):  # one moment of the history: no writer's records have a gap
                counts = [int(t.split()[1]) for t in there if t.startswith(f"{task} ")]
                assert counts == list(range(len(counts)))
        stop.set()
        await loading
        assert not loading.cancelled()
    assert sorted(path.name for path in tmp_path.iterdir() if "unfinished" in path.name) == []
    async with open_history(tmp_path / "4.db") as copy:
        assert [m.content for m in await copy.get_last_messages("scope")] == ["hello"]
        assert len(await copy.get_history("m7")) > 0
        await copy.add_history("m7", None, "more", "UPDATE")


async def test_a_backup_is_indexed_and_configured_like_the_file(tmp_path: Path) -> None:
    async with sqlite(open_history(tmp_path / "history.db")) as history:
        await history.batch_add_history([{"memory_id": "m", "event": "ADD"}] * 2_000)
        pages = [page async for page in history.query_history(page_size=900).pages()]
        await history.backup(tmp_path / "copy.db")
    copy = tmp_path / "copy.db"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("copy")] == ["copy.db"]
    assert await asyncio.to_thread(state_of, copy) == ("delete", True), "no need to index again"
    async with open_history(copy) as again:
        late = [record async for record in again.query_history(after=pages[0].cursor)]
        assert len(late) == 1_100, "cursors continue in a copy"


async def test_an_index_that_was_behind_is_not_trusted(tmp_path: Path) -> None:
    path, copy = tmp_path / "history.db", tmp_path / "copy.db"
    async with sqlite(open_history(path)) as history:
        await history.add_history("m", None, "x", "ADD")
        plain = SQLiteManager(str(path))
        plain.reset()
        plain.close()
        plain = SQLiteManager(str(path))
        plain.add_history("n", None, "y", "ADD")
        plain.close()
        await history.backup(copy)
        await history.add_history("n", "y", "z", "UPDATE")  # notices what mem0 did
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE another (one)")
        await history.backup(tmp_path / "other.db")
    for name in ("copy.db", "other.db"):
        assert await asyncio.to_thread(state_of, tmp_path / name) == ("delete", False)
    async with open_history(copy) as again:
        assert [record.new_memory for record in await again.get_history("n")] == ["y"]


async def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    async with sqlite(open_history(tmp_path / "history.db")) as history:
        for name in ("there", "link", "history.db"):
            with pytest.raises(InvalidInput, match="exists"):
                await history.backup(tmp_path / name)
        for nothing in ("", "a\0b", None):
            with pytest.raises(InvalidInput, match="path must be"):
                await history.backup(nothing)  # type: ignore[arg-type]
        with pytest.raises(StorageError):
            await history.backup(tmp_path / "no folder" / "copy.db")
    assert (tmp_path / "there").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


async def test_a_backup_reports_its_progress(tmp_path: Path) -> None:
    reported: list[tuple[int, int]] = []
    async with sqlite(open_history(tmp_path / "history.db")) as history:
        await history.batch_add_history([{"memory_id": "m", "event": "ADD"}] * 500)
        await back_up_slowly(
            history, tmp_path / "copy.db", lambda done, total: reported.append((done, total))
        )
    pages = (tmp_path / "copy.db").stat().st_size // 4096
    assert reported == [*((n, pages) for n in range(1, pages + 1)), (pages, pages)]


async def test_of_two_backups_to_one_name_one_succeeds(tmp_path: Path) -> None:
    async with sqlite(open_history(tmp_path / "history.db")) as history:
        await history.add_history("m", None, "x", "ADD")
        done = await asyncio.gather(
            *(history.backup(tmp_path / "copy.db") for _ in range(5)), return_exceptions=True
        )
    assert sorted(type(one).__name__ for one in done) == ["InvalidInput"] * 4 + ["NoneType"]
    assert texts_in(tmp_path / "copy.db") == ["x"]


@pytest.mark.parametrize("store", ["file", "memory"])
async def test_a_cancelled_backup_leaves_nothing(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on = threading.Event(), threading.Event()

    class AskedLate(threading.Event):
        def is_set(self) -> bool:
            reached.set()
            assert go_on.wait(LONG_S)
            return super().is_set()

    monkeypatch.setattr(backup_module, "Event", AskedLate)
    folder = tmp_path / "copies"
    folder.mkdir()
    url = "memory://" if store == "memory" else str(tmp_path / "history.db")
    async with sqlite(open_history(url)) as history:
        await history.batch_add_history([{"memory_id": "m", "event": "ADD"}] * 500)
        backing_up = asyncio.create_task(back_up_slowly(history, folder / "copy.db"))
        await asyncio.to_thread(reached.wait, LONG_S)
        assert [path.name for path in folder.iterdir()] != []
        backing_up.cancel()
        await asyncio.sleep(0)
        backing_up.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await backing_up
        assert list(folder.iterdir()) == []
        await back_up_slowly(history, folder / "copy.db")
        assert len(texts_in(folder / "copy.db")) == 500


async def test_a_backup_while_plain_mem0_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0

    class Counting(threading.Event):
        def is_set(self) -> bool:
            nonlocal steps
            steps += 1
            return super().is_set()

    monkeypatch.setattr(backup_module, "Event", Counting)
    path = tmp_path / "history.db"
    async with sqlite(open_history(path)) as history:
        await history.batch_add_history([{"memory_id": "m", "event": "ADD"}] * 5_000)
        acked = 0
        stop, more = threading.Event(), threading.Semaphore(0)

        def write() -> None:
            nonlocal acked
            plain = SQLiteManager(str(path))
            while not stop.is_set():
                plain.add_history("plain", None, str(acked), "UPDATE")
                acked += 1
                more.release()
            plain.close()

        writing = asyncio.create_task(asyncio.to_thread(write))
        for number in range(3):
            await asyncio.to_thread(lambda: [more.acquire() for _ in range(20)])
            before = acked
            steps = 0
            await back_up_slowly(history, tmp_path / f"{number}.db")
            size = (tmp_path / f"{number}.db").stat().st_size
            assert steps <= size // 4096 + 10, (
                "each page once: no write makes the backup begin again"
            )
            there = texts_in(tmp_path / f"{number}.db")[5_000:]
            assert there == [str(n) for n in range(len(there))]
            assert len(there) >= before
        stop.set()
        await writing


@pytest.mark.subprocess
async def test_a_killed_backup_leaves_no_copy(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from async_history import open_history\n"
        "from async_history._sqlite import backup\n"
        "class Slow(backup.Event):\n"
        "    def is_set(self):\n"
        "        print('page', flush=True)\n"
        "        sys.stdin.readline()\n"
        "        return super().is_set()\n"
        "backup.Event = Slow\n"
        "async def main():\n"
        "    async with open_history(sys.argv[1]) as history:\n"
        "        await history.store.back_up(Path(sys.argv[2]), None, pages=1)\n"
        "asyncio.run(main())\n"
    )
    path, copy = tmp_path / "history.db", tmp_path / "copy.db"
    async with open_history(path) as history:
        await history.batch_add_history(
            [{"memory_id": "m", "event": "ADD", "new_memory": "x" * 500}] * 5_000
        )
    for pages in (1, 20, 200):
        with subprocess.Popen(
            [sys.executable, "-c", program, str(path), str(copy)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for _ in range(pages):  # the backup waits for the test after each step
                process.stdin.write(b"\n")
                assert process.stdout.readline() == b"page\n"
            process.send_signal(signal.SIGKILL)
        assert not copy.exists()
    async with sqlite(open_history(path)) as history:
        await history.backup(copy)
    assert len(texts_in(copy)) == 5_000


async def test_an_old_file_is_copied_unchanged(tmp_path: Path) -> None:
    old = tmp_path / "old.db"
    with closing(sqlite3.connect(old)) as connection, connection:
        connection.execute("CREATE TABLE history (id TEXT PRIMARY KEY, memory_id TEXT, event TEXT)")
        connection.execute("INSERT INTO history VALUES ('1', 'm', 'ADD')")
    before = old.read_bytes()
    async with sqlite(open_history(old, migrate=False)) as history:
        await history.backup(tmp_path / "copy.db")
    assert old.read_bytes() == before
    async with open_history(tmp_path / "copy.db", migrate=False) as copy:
        assert [record.id for record in await copy.get_history("m")] == ["1"]
