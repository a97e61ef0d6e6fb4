"""Opening a file that others lock, that a killed writer left unfinished, or by a relative path.

Every connection and every call of each kind of manager meets a lock: it waits until the lock is
released, and never gives up before `lock_timeout_s`.
"""

import asyncio
import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from time import monotonic
from typing import Any, Unpack

import pytest

from async_history import (
    HistoryManager,
    HistoryOptions,
    StorageLocked,
    StorageReadOnly,
    check_history,
    open_history,
)
from async_history._sqlite.connecting import errors, fork, readonly
from async_history.blocking import BlockingHistoryManager
from async_history.sqlite import adopt
from tests.support.legacy_files import MESSAGES, TODAY, V0_0_2
from tests.support.patience import LONG_S

pytestmark = pytest.mark.once

SHORT_S = 0.3
ASKED = 2
"""How often the library finds the file locked before the lock is released."""


# Exclusive locks of others


class Locker:
    """Another user of the file, with an exclusive lock until the library has asked for the file.

    Attributes:
        is_held: whether it has the lock now.
        asked: how often the library found the file locked.
        lets_go_after: the number of times after which it releases the lock, None for never.
    """

    def __init__(self, path: Path, lets_go_after: int | None = ASKED) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self.lets_go_after = lets_go_after
        self.asked = 0

    @property
    def is_held(self) -> bool:
        return self._connection is not None

    def lock(self) -> bool:
        """Lock the file exclusively; return whether no other process has it."""
        connection = sqlite3.connect(
            self._path, isolation_level=None, timeout=0, check_same_thread=False
        )
        try:
            (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
            if mode == "wal":  # others can read a locked file, unless there is no shared index
                connection.execute("PRAGMA locking_mode = EXCLUSIVE")
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("PRAGMA user_version = 1")
                connection.execute("COMMIT")
            else:
                connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            connection.close()
            return False
        self._connection = connection
        return True

    def lock_writers(self) -> None:
        """Take the file's write lock."""
        self._connection = sqlite3.connect(
            self._path, isolation_level=None, check_same_thread=False
        )
        self._connection.execute("BEGIN IMMEDIATE")

    def note(self, error: sqlite3.OperationalError) -> None:
        """Note that the library was refused; release the lock if it has asked often enough."""
        if self.is_held and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
            self.asked += 1
            if self.asked == self.lets_go_after:
                self.release()

    def release(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class Watched(fork.Connection):
    """A connection of the library that tells the test when it is made, and each error.

    Attributes:
        on_made: called before each connection is made.
        on_refused: called with each error of a statement.
    """

    on_made: Callable[[], object]
    on_refused: Callable[[sqlite3.OperationalError], object]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.on_made()
        super().__init__(*arguments, **options)

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        return self._asked(super().execute, *arguments)

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        return self._asked(super().executemany, *arguments)

    def executescript(self, *arguments: Any) -> sqlite3.Cursor:
        return self._asked(super().executescript, *arguments)

    def _asked(self, run: Callable[..., sqlite3.Cursor], *arguments: Any) -> sqlite3.Cursor:
        try:
            return run(*arguments)
        except sqlite3.OperationalError as error:
            self.on_refused(error)
            raise


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> type[Watched]:
    """The class of the library's connections in this test."""

    class OfThisTest(Watched):
        on_made = staticmethod(lambda: None)
        on_refused = staticmethod(lambda error: None)

    monkeypatch.setattr(fork, "Connection", OfThisTest)
    monkeypatch.setattr(errors, "LOCK_SLICE_S", 0)  # SQLite itself does not wait
    return OfThisTest


# Files, and ways to open them


def of_mem0(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        TODAY.build(connection)
        connection.execute(MESSAGES)


def of_old_mem0(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        V0_0_2.build(connection)


def with_log(path: Path) -> None:
    of_mem0(path)
    adopt(path)


def with_journal(path: Path) -> None:
    of_mem0(path)
    adopt(path, journal="delete")


FILES = (of_mem0, of_old_mem0, with_log, with_journal)
Open = Callable[[Path, float], int]
"""Opens a file with a limit for locks; returns how many records it read."""


def open_waiting(path: Path, lock_timeout_s: float, options: HistoryOptions) -> HistoryManager:
    given: HistoryOptions = {**options, "lock_timeout_s": lock_timeout_s}
    return open_history(path, **given)


def opening(**options: Unpack[HistoryOptions]) -> Open:
    async def opened(path: Path, lock_timeout_s: float) -> int:
        async with open_waiting(path, lock_timeout_s, options) as history:
            return await history.count_history()

    return lambda path, lock_timeout_s: asyncio.run(opened(path, lock_timeout_s))


def checking(*, repair: bool) -> Open:
    def check(path: Path, lock_timeout_s: float) -> int:
        checked = check_history(str(path), repair=repair, lock_timeout_s=lock_timeout_s)
        report = asyncio.run(checked)
        assert not report.problems
        return report.records

    return check


def adopting(**options: Any) -> Open:
    def run(path: Path, lock_timeout_s: float) -> int:
        report = adopt(path, lock_timeout_s=lock_timeout_s, **options)
        return report.records or len(TODAY.rows)

    return run


def blocking(path: Path, lock_timeout_s: float) -> int:
    history = BlockingHistoryManager(path, lock_timeout_s=lock_timeout_s)
    try:
        return len(history.get_history("m1")) + len(history.get_history("m2"))
    finally:
        history.close()


WAYS: dict[str, Open] = {
    "open": opening(),
    "open-journal-delete": opening(journal="delete"),
    "open-as-it-is": opening(migrate=False),
    "adopt": adopting(),
    "adopt-dry-run": adopting(dry_run=True),
    "check": checking(repair=False),
    "check-repair": checking(repair=True),
    "blocking": blocking,
}
of_every_way = pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
of_every_file = pytest.mark.parametrize("make", FILES, ids=lambda make: make.__name__)


class TestLocked:
    """Another user has locked the file exclusively."""

    @of_every_file
    @of_every_way
    def test_each_connection_waits(
        self, way: Open, make: Callable[[Path], None], watched: type[Watched], tmp_path: Path
    ) -> None:
        """The file is locked when the library makes its first connection, its second, and so on."""
        make(tmp_path / "made.db")
        met = 0
        for number in itertools.count(1):
            path = tmp_path / f"{number}.db"
            shutil.copy(tmp_path / "made.db", path)
            locker = Locker(path)
            count = itertools.count(1)

            def lock(
                number: int = number, locker: Locker = locker, count: Iterator[int] = count
            ) -> None:
                nonlocal met
                if next(count) == number:
                    met += locker.lock()

            watched.on_made = staticmethod(lock)
            watched.on_refused = staticmethod(locker.note)
            try:
                assert way(path, LONG_S) == len(TODAY.rows)
            finally:
                locker.release()
            if next(count) <= number:
                break
        assert met

    @of_every_file
    @of_every_way
    def test_opening_gives_up_after_lock_timeout_s(
        self, way: Open, make: Callable[[Path], None], watched: type[Watched], tmp_path: Path
    ) -> None:
        make(path := tmp_path / "history.db")
        locker = Locker(path, lets_go_after=None)
        assert locker.lock()
        watched.on_refused = staticmethod(locker.note)
        begun = monotonic()
        try:
            with pytest.raises(StorageLocked, match=r"history\.db"):
                way(path, SHORT_S)
            assert monotonic() - begun >= SHORT_S
            assert locker.asked > ASKED
        finally:
            locker.release()


Call = Callable[[HistoryManager], Awaitable[object]]


async def everything(history: HistoryManager) -> list[str]:
    return [record.id async for record in history.query_history()]


READING: dict[str, Call] = {
    "get": lambda history: history.get_history("m1"),
    "query": everything,
    "count": lambda history: history.count_history(),
    "messages": lambda history: history.get_last_messages("s"),
    "stats": lambda history: history.stats(),
}
WRITING: dict[str, Call] = {
    "add": lambda history: history.add_history("m1", None, "new", "ADD"),
    "batch": lambda history: history.batch_add_history(
        [{"memory_id": f"{n}", "new_memory": "x", "event": "ADD"} for n in range(600)]
    ),
    "update": lambda history: history.update_history("m9", "new"),
    "save": lambda history: history.save_messages([{"role": "user", "content": "x"}], "s"),
    "erase": lambda history: history.erase(memory_ids=["m2"], reason="asked"),
    "reset": lambda history: history.reset(),
}
"""Calls. All of them write if all can read."""
LOCKED: dict[str, tuple[HistoryOptions, dict[str, Call]]] = {
    "wal": ({}, WRITING),
    "delete": ({"journal": "delete"}, WRITING | READING),
    "as-it-is": ({"migrate": False}, READING),
}
CALLS = [
    pytest.param(options, call, id=f"{kind}-{name}")
    for kind, (options, calls) in LOCKED.items()
    for name, call in calls.items()
    if name != "stats"  # uses no database
]


class TestLockedWhileOpen:
    """Another user takes the lock while a manager has the file open."""

    @pytest.mark.parametrize(("options", "call"), CALLS)
    async def test_each_call_waits(
        self, options: HistoryOptions, call: Call, watched: type[Watched], tmp_path: Path
    ) -> None:
        of_mem0(path := tmp_path / "history.db")
        async with open_waiting(path, LONG_S, options) as history:
            locker = Locker(path)
            watched.on_refused = staticmethod(locker.note)
            if not locker.lock():
                locker.lock_writers()
            try:
                await call(history)
                assert locker.asked >= ASKED
            finally:
                locker.release()

    @pytest.mark.parametrize(("options", "call"), CALLS)
    async def test_each_call_gives_up_after_lock_timeout_s(
        self, options: HistoryOptions, call: Call, watched: type[Watched], tmp_path: Path
    ) -> None:
        of_mem0(path := tmp_path / "history.db")
        async with open_waiting(path, SHORT_S, options) as history:
            locker = Locker(path)
            if not locker.lock():
                locker.lock_writers()
            begun = monotonic()
            try:
                with pytest.raises(StorageLocked, match=r"history\.db"):
                    await call(history)
                assert monotonic() - begun >= SHORT_S
            finally:
                locker.release()

    @pytest.mark.parametrize("options", [{"journal": "delete"}, {"migrate": False}], ids=str)
    async def test_a_backup_waits_or_gives_up(
        self, options: HistoryOptions, watched: type[Watched], tmp_path: Path
    ) -> None:
        of_mem0(path := tmp_path / "history.db")
        locker = Locker(path)
        watched.on_refused = staticmethod(locker.note)
        async with open_waiting(path, LONG_S, options) as history:
            assert locker.lock()
            await history.backup(tmp_path / "copy.db")
        async with open_history(tmp_path / "copy.db") as copy:
            assert await copy.count_history() == len(TODAY.rows)
        async with open_waiting(path, SHORT_S, options) as history:
            locker = Locker(path, lets_go_after=None)
            assert locker.lock()
            try:
                with pytest.raises(StorageLocked):
                    await history.backup(tmp_path / "another.db")
            finally:
                locker.release()
        assert not [each for each in tmp_path.iterdir() if "another" in each.name]

    async def test_a_replaced_table_is_opened_again_after_the_lock(
        self, watched: type[Watched], tmp_path: Path
    ) -> None:
        """As after plain mem0's reset: the next write makes new connections."""
        of_mem0(path := tmp_path / "history.db")
        locker = Locker(path)
        async with open_history(path, journal="delete", lock_timeout_s=LONG_S) as history:
            with closing(sqlite3.connect(path)) as connection:
                connection.executescript("DROP TABLE history; DROP TABLE messages;")
            made = itertools.count()
            watched.on_made = staticmethod(lambda: next(made) or locker.lock())
            watched.on_refused = staticmethod(locker.note)
            await history.add_history("m1", None, "after", "ADD")
            assert locker.asked >= ASKED
            assert [record.new_memory for record in await history.get_history("m1")] == ["after"]

    def test_a_blocking_manager_waits_for_lock_timeout_s(
        self, watched: type[Watched], tmp_path: Path
    ) -> None:
        of_mem0(path := tmp_path / "history.db")
        history = BlockingHistoryManager(path, journal="delete", lock_timeout_s=SHORT_S)
        locker = Locker(path, lets_go_after=None)
        calls: list[Callable[[], object]] = [
            lambda: history.add_history("m1", None, "x", "ADD"),
            lambda: history.get_history("m1"),
            history.reset,
        ]
        try:
            assert history.connection is not None
            (waits_ms,) = history.connection.execute("PRAGMA busy_timeout").fetchone()
            assert waits_ms == SHORT_S * 1_000
            for call in calls:
                assert locker.lock()
                begun = monotonic()
                with pytest.raises(StorageLocked):
                    call()
                assert monotonic() - begun >= SHORT_S
                locker.release()
        finally:
            locker.release()
            history.close()


# A killed writer


def kill_a_writer(path: Path) -> None:
    """Change every text in a transaction that reaches the file, and die before the commit."""
    program = f"""
        import os, signal, sqlite3
        connection = sqlite3.connect({str(path)!r}, isolation_level=None)
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE history SET memory_id = 'torn'")
        connection.execute("CREATE TABLE filling (x)")
        connection.executemany("INSERT INTO filling VALUES (?)", [("x" * 4000,)] * 100)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.with_name(f"{path.name}-journal").stat().st_size
    assert b"torn" in path.read_bytes()


@pytest.mark.subprocess
class TestKilledWriter:
    """The file has a hot journal: it can't be read before the transaction is rolled back."""

    @pytest.mark.parametrize(
        "make", [of_mem0, of_old_mem0, with_journal], ids=lambda make: make.__name__
    )
    @of_every_way
    def test_a_killed_transaction_is_rolled_back_however_the_file_is_opened(
        self, way: Open, make: Callable[[Path], None], tmp_path: Path
    ) -> None:
        make(path := tmp_path / "history.db")
        kill_a_writer(path)
        assert way(path, LONG_S) == len(TODAY.rows)
        with closing(sqlite3.connect(path)) as connection:
            ((torn,),) = connection.execute("SELECT sum(memory_id = 'torn') FROM history")
        assert torn == 0

    @pytest.mark.parametrize("options", [{"journal": "delete"}, {"migrate": False}], ids=str)
    @pytest.mark.parametrize("make", [of_mem0, with_journal], ids=lambda make: make.__name__)
    async def test_a_killed_transaction_is_rolled_back_while_a_manager_has_the_file_open(
        self, make: Callable[[Path], None], options: HistoryOptions, tmp_path: Path
    ) -> None:
        await asyncio.to_thread(make, path := tmp_path / "history.db")
        async with open_history(path, **options) as history:
            for call in READING.values():
                await asyncio.to_thread(kill_a_writer, path)
                await call(history)
                assert not await history.get_history("torn")
                assert len(await history.get_history("m1")) == 2
            await asyncio.to_thread(kill_a_writer, path)
            await history.backup(tmp_path / "copy.db")
        async with open_history(tmp_path / "copy.db") as copy:
            assert await copy.count_history() == len(TODAY.rows)
            assert not await copy.get_history("torn")

    def test_a_reader_that_may_not_roll_it_back_gets_an_error(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        with_journal(path := tmp_path / "history.db")
        kill_a_writer(path)
        monkeypatch.setattr(readonly, "has_access", lambda path, mode: mode == os.R_OK)
        for way in ("open-as-it-is", "adopt-dry-run", "check"):
            with pytest.raises(StorageReadOnly, match="a writer that was killed"):
                WAYS[way](path, LONG_S)


# Relative paths


class Folders:
    """Two folders: the one in which a relative path was given, and one that must stay empty."""

    def __init__(self, given: Path, other: Path) -> None:
        self.given = given
        self.other = other

    def leave(self) -> None:
        """Change to the other folder, and check that nothing was made there."""
        os.chdir(self.other)
        assert not list(self.other.iterdir())

    def texts(self) -> list[str]:
        """Return the texts of the file that the relative path named."""
        with closing(sqlite3.connect(self.given / "history.db")) as connection:
            return [text for (text,) in connection.execute("SELECT new_memory FROM history")]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folders]:
    both = Folders(tmp_path / "given", tmp_path / "other")
    both.given.mkdir()
    both.other.mkdir()
    monkeypatch.chdir(both.given)
    yield both
    both.leave()


class TestRelativePath:
    """The program changes its folder between any two steps."""

    @pytest.mark.parametrize("options", [{}, {"journal": "delete"}], ids=str)
    @pytest.mark.parametrize("url", ["history.db", "sqlite:///history.db", Path("history.db")])
    async def test_a_relative_path_of_open_history(
        self, url: str | Path, options: HistoryOptions, folders: Folders
    ) -> None:
        manager = open_history(url, **options)
        folders.leave()
        async with manager as history:
            await history.add_history("m", None, "one", "ADD")
            with closing(sqlite3.connect(folders.given / "history.db")) as connection:
                connection.executescript("DROP TABLE history; DROP TABLE messages;")
            await history.add_history("m", None, "two", "ADD")  # the file is opened again
            assert len(await history.get_history("m")) == 1
            assert (await history.stats()).file_bytes
            await history.erase(memory_ids=["nobody"], reason="asked")
        folders.leave()
        assert folders.texts() == ["two"]

    async def test_a_relative_path_of_a_read_only_command(self, folders: Folders) -> None:
        of_mem0(folders.given / "history.db")
        manager = open_history("history.db", migrate=False)
        folders.leave()
        async with manager as history:
            assert await history.count_history() == len(TODAY.rows)
            os.chdir(folders.given)
            backing_up = history.backup("copy.db", on_progress=lambda *_: folders.leave())
            await backing_up
        folders.leave()
        assert (folders.given / "copy.db").exists()

    async def test_a_relative_path_of_a_check(
        self, folders: Folders, watched: type[Watched]
    ) -> None:
        await asyncio.to_thread(with_log, folders.given / "history.db")
        watched.on_made = staticmethod(folders.leave)
        for repair in (False, True):
            os.chdir(folders.given)
            report = await check_history("history.db", repair=repair)
            assert report.records == len(TODAY.rows)

    def test_a_relative_path_of_an_adoption(self, folders: Folders, watched: type[Watched]) -> None:
        of_old_mem0(folders.given / "history.db")
        watched.on_made = staticmethod(lambda: os.chdir(folders.other))
        for dry_run in (True, False):
            os.chdir(folders.given)
            report = adopt("history.db", dry_run=dry_run)
            assert report.rewritten
        assert report.backup is not None
        assert Path(report.backup).parent == folders.given

    def test_a_relative_path_of_a_blocking_manager(self, folders: Folders) -> None:
        history = BlockingHistoryManager("history.db")
        folders.leave()
        history.add_history("m", None, "one", "ADD")
        assert history.connection is not None
        assert history.connection.execute("SELECT count(*) FROM history").fetchone() == (1,)
        history.reset()
        folders.leave()
        history.add_history("m", None, "two", "ADD")  # another manager
        history.close()
        assert folders.texts() == ["two"]
