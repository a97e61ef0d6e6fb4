"""The blocking manager: mem0's calls and answers, on any thread, until any kind of exit."""

import asyncio
import gc
import inspect
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockBuster

from async_history import (
    CommitUnknown,
    HistoryClosed,
    HistoryError,
    InvalidInput,
    StorageCorrupt,
    StorageLocked,
    WrongLoop,
    open_history,
)
from async_history.blocking import BlockingHistoryManager
from tests.conftest import stores, url_of
from tests.subprocesses.processes import run_source
from tests.support.legacy_files import plain_mem0
from tests.support.patience import LONG_S, SOON_S

Open = Callable[..., BlockingHistoryManager]
THREAD = "async_history blocking"


@pytest.fixture(params=stores("file", "memory", "null", "postgres"))
def store(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(store: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return url_of(store, request, tmp_path)


@pytest.fixture
def opened() -> Iterator[Open]:
    """A function that opens a manager. What a test leaves open is closed after it."""
    all_of_them: list[BlockingHistoryManager] = []

    def open_one(*arguments: Any, **options: Any) -> BlockingHistoryManager:
        all_of_them.append(BlockingHistoryManager(*arguments, **options))
        return all_of_them[-1]

    yield open_one
    for history in all_of_them:
        history.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.db"


def in_threads(work: Callable[[int], None], count: int) -> None:
    """Run work in new threads, and raise the error of any of them."""
    with ThreadPoolExecutor(count) as executor:
        for done in [executor.submit(work, n) for n in range(count)]:
            done.result(LONG_S)


LoopThreads = Callable[[], list[threading.Thread]]


@pytest.fixture
def loop_threads() -> LoopThreads:
    """A function that returns the loops' threads that the test has started.

    That of a manager that an earlier test dropped may be about to end.
    """
    before = set(threading.enumerate())
    return lambda: [
        thread for thread in threading.enumerate() if thread.name == THREAD and thread not in before
    ]


def texts(history: BlockingHistoryManager, memory_id: str) -> list[str]:
    return [record["new_memory"] for record in history.get_history(memory_id)]


def tables(connection: sqlite3.Connection | None) -> set[str]:
    assert connection is not None
    sql = "SELECT name FROM sqlite_master WHERE name IN ('history', 'messages')"
    return {name for (name,) in connection.execute(sql)}


class TestInPlaceOfMem0s:
    @pytest.mark.subprocess
    @pytest.mark.skipif("MEM0_TESTS" not in os.environ, reason="MEM0_TESTS names no checkout")
    def test_mem0s_own_tests_pass(self, tmp_path: Path) -> None:
        """mem0's package ships no tests: MEM0_TESTS is the folder `tests` of a checkout."""
        file = Path(os.environ["MEM0_TESTS"], "memory", "test_storage.py")
        ours = Path(__file__).parents[2]
        environment = {"MEM0_DIR": str(tmp_path), "MEM0_TELEMETRY": "False"}
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-p", "tests.subprocesses.in_mem0s_place"),
                *(str(file), "--noconftest", "--rootdir", str(tmp_path), "-c", os.devnull),
            ],
            env={**os.environ, **environment, "PYTHONPATH": str(ours)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=LONG_S,
        )
        assert done.returncode == 0, done.stdout
        assert " passed" in done.stdout

    @pytest.mark.parametrize(
        "name",
        [
            *("__init__", "add_history", "batch_add_history", "get_history", "save_messages"),
            *("get_last_messages", "reset", "close"),
        ],
    )
    def test_methods_have_mem0s_parameters(self, name: str) -> None:
        def shape(owner: type) -> list[tuple[str, Any, Any]]:
            parameters = inspect.signature(getattr(owner, name)).parameters.values()
            named = [p for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
            return [(p.name, p.kind, p.default) for p in named]

        theirs, ours = shape(plain_mem0().SQLiteManager), shape(BlockingHistoryManager)
        assert ours[: len(theirs)] == theirs
        more = [(name, kind, default) for name, kind, default in ours[len(theirs) :]]
        assert all(kind is inspect.Parameter.KEYWORD_ONLY for _, kind, _ in more)
        assert all(default is None for *_, default in more)

    def test_the_same_calls_give_the_same_answers(self, opened: Open, tmp_path: Path) -> None:
        start = datetime.now(UTC)

        def answers(manager: Any) -> list[Any]:
            def at(second: int) -> str:
                return (start + timedelta(seconds=second)).isoformat()

            record: dict[str, Any] = {"memory_id": "n", "event": "ADD", "id": "?", "hash": "?"}
            got: list[Any] = [
                manager.get_history("nobody's"),
                manager.add_history("m", None, "tea", "ADD", created_at=at(0), is_deleted=0),
                manager.add_history(
                    memory_id="m",
                    old_memory="tea",
                    new_memory="mate",
                    event="UPDATE",
                    created_at=at(0),
                    updated_at=at(1),
                    actor_id="anna",
                    role="user",
                ),
                manager.add_history(
                    "m", "mate", None, "DELETE", created_at=at(0), updated_at=at(2), is_deleted=1
                ),
                manager.batch_add_history(
                    [record | {"created_at": at(n), "new_memory": str(n)} for n in range(3)]
                ),
                manager.batch_add_history([]),
                manager.save_messages([], ""),
                manager.get_last_messages("s"),
                manager.save_messages(
                    [{"role": "user", "content": "hello", "name": None, "more": 1}], "s"
                ),
                manager.save_messages([{"role": "assistant", "content": "hi", "name": "bot"}], "s"),
                *(manager.get_history(memory) for memory in "mn"),
                *(manager.get_last_messages("s", limit=limit) for limit in (0, 1, 10)),
                manager.get_last_messages("s", 1),
                manager.get_last_messages("another's"),
                manager.connection.execute("SELECT count(*) FROM history").fetchall(),
                manager.db_path is paths[-1],
                manager.close(),
                manager.connection,
            ]
            for answer in got:
                for row in answer if isinstance(answer, list) else ():
                    if isinstance(row, dict):
                        row.pop("id", None)
                        if "content" in row:
                            assert row.pop("created_at")
            return got

        paths = [str(tmp_path / "plain.db")]
        expected = answers(plain_mem0().SQLiteManager(paths[-1]))
        paths.append(str(tmp_path / "ours.db"))
        assert answers(opened(paths[-1])) == expected

    @pytest.mark.parametrize("place", ["history.db", ":memory:"])
    def test_the_connection_shows_what_is_stored(
        self, opened: Open, tmp_path: Path, place: str
    ) -> None:
        db_path = place if place == ":memory:" else str(tmp_path / place)
        history = opened(db_path)
        assert history.db_path == db_path

        def shown(sql: str) -> list[Any]:
            assert history.connection is not None
            return history.connection.execute(sql).fetchall()

        plain = plain_mem0().SQLiteManager(":memory:")
        for table in ("history", "messages"):
            columns = f"SELECT name FROM pragma_table_info('{table}')"
            assert shown(columns) == plain.connection.execute(columns).fetchall()
        plain.close()
        for n in range(3):
            history.add_history("m", None, str(n), "UPDATE", is_deleted=n % 2)
            found = shown("SELECT id, new_memory, is_deleted FROM history")
            assert [row[1:] for row in found] == [(str(k), k % 2) for k in range(n + 1)]
            assert len({row[0] for row in found}) == n + 1

    @pytest.mark.once
    def test_many_records_one_by_one(self, opened: Open, path: Path) -> None:
        history = opened(path)
        for n in range(1000):
            history.add_history(f"m{n}", None, f"memory {n}", "ADD")
        assert history.connection is not None
        assert history.connection.execute("SELECT count(*) FROM history").fetchone() == (1000,)
        assert texts(history, "m7") == ["memory 7"]

    def test_a_manager_reads_what_an_earlier_one_wrote(self, opened: Open, path: Path) -> None:
        first = opened(path)
        first.add_history("m", None, "x", "ADD")
        written = first.get_history("m")
        first.close()
        assert opened(path).get_history("m") == written

    def test_an_old_file_of_six_columns(self, opened: Open, path: Path) -> None:
        with closing(sqlite3.connect(path)) as old, old:
            old.execute(
                "CREATE TABLE history (id TEXT PRIMARY KEY, memory_id TEXT, old_memory TEXT, "
                "new_memory TEXT, event TEXT, created_at DATETIME)"
            )
            old.execute("INSERT INTO history VALUES ('1', 'm', 'o', 'n', 'ADD', '2025-01-01')")
        (record,) = opened(path).get_history("m")
        assert record["id"] == "1"
        assert record["actor_id"] is None
        assert record["is_deleted"] is False

    def test_the_default_is_in_memory(self, opened: Open) -> None:
        history = opened()
        assert history.db_path == ":memory:"
        history.add_history("m", None, "x", "ADD")
        assert texts(history, "m") == ["x"]


class TestEveryStore:
    def test_it_keeps_what_it_is_given(self, opened: Open, url: str, store: str) -> None:
        history = opened(url)
        history.add_history("m", None, "x", "ADD")
        history.batch_add_history([{"memory_id": "m", "event": "DELETE", "is_deleted": 1}])
        history.save_messages([{"role": "user", "content": str(n)} for n in range(12)], "s")
        events = [record["event"] for record in history.get_history("m")]
        assert events == ([] if store == "null" else ["ADD", "DELETE"])
        assert [m["content"] for m in history.get_last_messages("s")] == list(
            map(str, range(2, 12))
        )
        assert (history.connection is None) == (store in ("null", "postgres"))

    def test_a_reset_leaves_nothing_and_the_next_write_makes_the_tables_again(
        self, opened: Open, url: str, store: str
    ) -> None:
        history = opened(url)
        for text in ("before", "after"):
            history.reset()
            if store == "file":
                assert history.connection is not None
                assert tables(history.connection) == set()
            assert history.get_history("m") == []
            assert history.get_last_messages("s") == []
            history.reset()
            history.reset()
            history.add_history("m", None, text, "ADD")
            history.save_messages([{"role": "user", "content": text}], "s")
            if history.connection is not None:
                assert tables(history.connection) == {"history", "messages"}
            assert texts(history, "m") == ([] if store == "null" else [text])
            assert [m["content"] for m in history.get_last_messages("s")] == [text]

    def test_twenty_threads_through_ten_resets_and_a_close(self, opened: Open, url: str) -> None:
        """Every call returns as if it were the only one, or raises HistoryClosed."""
        history = opened(url)
        begun = threading.Barrier(21)
        closed: list[int] = []

        def write(name: int) -> None:
            begun.wait()
            try:
                while True:
                    history.add_history(f"m{name}", None, "x", "ADD")
                    history.save_messages([{"role": "user", "content": "x"}], f"s{name}")
                    history.get_history(f"m{name}")
                    history.get_last_messages(f"s{name}")
            except HistoryClosed:
                assert history._thread.is_closed, "a reset does not close it"
                closed.append(name)

        with ThreadPoolExecutor(20) as executor:
            writers = [executor.submit(write, n) for n in range(20)]
            begun.wait()
            for _ in range(10):
                history.reset()
            history.close()
            for writer in writers:
                writer.result(LONG_S)
        assert sorted(closed) == list(range(20))


class TestThreads:
    @pytest.mark.parametrize("store", stores("file", "memory", "postgres"))
    def test_twenty_threads_each_read_what_they_wrote(self, opened: Open, url: str) -> None:
        history = opened(url)

        def write(name: int) -> None:
            for n in range(25):
                history.add_history(f"m{name}", None, str(n), "UPDATE")
            assert texts(history, f"m{name}") == list(map(str, range(25)))

        in_threads(write, 20)

    def test_records_acknowledged_after_a_reset_stay(self, opened: Open, path: Path) -> None:
        history = opened(path)
        acked: set[str] = set()
        go_on = threading.Event()
        go_on.set()

        def write(name: int) -> None:
            n = 0
            while go_on.is_set():
                since = len(resets)
                history.add_history(f"m{name}", None, f"{name}.{n}", "ADD")
                if since == 10:
                    acked.add(f"{name}.{n}")
                n += 1

        resets: list[None] = []
        with ThreadPoolExecutor(8) as executor:
            writers = [executor.submit(write, n) for n in range(8)]
            for _ in range(10):
                history.reset()
                resets.append(None)
            while len(acked) < 20:
                history.get_history("m0")
            go_on.clear()
            for writer in writers:
                writer.result(LONG_S)
        found = {text for n in range(8) for text in texts(history, f"m{n}")}
        assert acked <= found

    def test_several_managers_of_one_file(self, opened: Open, path: Path) -> None:
        """They also open a new file at the same time."""

        def use(name: int) -> None:
            ready.wait()
            history = opened(path)
            for n in range(20):
                history.add_history(f"m{name}", None, str(n), "UPDATE")
            assert texts(history, f"m{name}") == list(map(str, range(20)))
            history.close()

        ready = threading.Barrier(6)
        in_threads(use, 6)

    def test_two_managers_that_reset_one_file(self, opened: Open, path: Path) -> None:
        one, other = opened(path), opened(path)
        for n in range(5):
            one.reset()
            other.add_history("m", None, f"other's {n}", "ADD")
            assert texts(one, "m") == [f"other's {n}"]
            other.reset()
            assert texts(one, "m") == []
            one.add_history("m", None, f"one's {n}", "ADD")
            assert texts(other, "m") == [f"one's {n}"]

    def test_the_connection_works_on_any_thread(self, opened: Open, path: Path) -> None:
        history = opened(path)
        history.add_history("m", None, "x", "ADD")
        counts: list[Any] = []

        def read(_: int) -> None:
            assert history.connection is not None
            counts.append(history.connection.execute("SELECT count(*) FROM history").fetchone())

        in_threads(read, 4)
        assert counts == [(1,)] * 4
        connection = history.connection
        assert connection is history.connection
        assert connection is not None
        for setting, value in (("wal_autocheckpoint", 0), ("busy_timeout", 30_000)):
            assert connection.execute(f"PRAGMA {setting}").fetchone() == (value,)

    def test_its_own_loop_thread_is_refused(self, opened: Open, path: Path) -> None:
        history = opened(path)

        async def on_the_loop(_: object) -> None:
            with pytest.raises(WrongLoop, match="own loop thread"):
                history.get_history("m")
            history.close()  # can't wait, and does not

        history._call(on_the_loop)
        history.close()
        with pytest.raises(HistoryClosed):
            history.get_history("m")


class TestLoops:
    def test_calls_within_a_running_loop(
        self, url: str, blocking_calls: BlockBuster, request: pytest.FixtureRequest
    ) -> None:
        """It blocks the loops, as mem0's manager does: it must not wait for them."""
        blocking_calls.deactivate()
        request.addfinalizer(blocking_calls.activate)

        async def use() -> None:
            history = BlockingHistoryManager(url)
            history.add_history("m", None, "x", "ADD")
            await asyncio.gather(
                *(asyncio.to_thread(history.add_history, "m", None, str(n), "ADD") for n in "123")
            )
            kept.append(len(history.get_history("m")))
            history.reset()
            history.save_messages([{"role": "user", "content": "x"}], "s")
            assert len(history.get_last_messages("s")) == 1
            used.append(history)

        kept: list[int] = []
        used: list[BlockingHistoryManager] = []
        for _ in range(2):
            asyncio.run(asyncio.wait_for(use(), LONG_S))
        assert kept in ([4, 4], [0, 0])
        for history in used:
            history.get_history("m")
            history.close()

    def test_nothing_blocks_the_managers_own_loop(self, url: str, opened: Open) -> None:
        """The tests' guard against blocking calls watches that loop's thread too."""
        history = opened(url)
        history.add_history("m", None, "x", "ADD")
        assert history.connection is None or tables(history.connection)
        history.reset()
        history.get_history("m")


@pytest.mark.subprocess
class TestForks:
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
    @pytest.mark.parametrize("ending", ["os._exit(refused)", "sys.exit(refused)"])
    def test_a_forked_child_is_refused_and_ends(self, path: Path, ending: str) -> None:
        done = run_source(
            f"""
            import os, sys, threading, warnings
            from async_history import WrongLoop
            from async_history.blocking import BlockingHistoryManager

            warnings.simplefilter("ignore", ResourceWarning)
            history = BlockingHistoryManager(sys.argv[1])
            history.add_history("m", None, "parent", "ADD")
            # A lock that another thread of the parent holds stays locked in the child.
            held, release = threading.Event(), threading.Event()
            def hold():
                with history._lock, history._thread._lock:
                    held.set()
                    release.wait()
            holder = threading.Thread(target=hold)
            holder.start()
            held.wait()
            child = os.fork()
            if not child:
                refused = 0
                for call in (
                    lambda: history.add_history("m", None, "child", "ADD"),
                    lambda: history.batch_add_history([{{"memory_id": "m", "event": "ADD"}}]),
                    lambda: history.get_history("m"),
                    lambda: history.save_messages([{{"role": "user"}}], "s"),
                    lambda: history.get_last_messages("s"),
                    lambda: history.connection,
                    history.reset,
                    history.close,
                ):
                    try:
                        call()
                    except WrongLoop as error:
                        refused += "forked" in str(error)
                del history, call
                {ending}
            release.set()
            holder.join()
            _, status = os.waitpid(child, 0)
            print(os.waitstatus_to_exitcode(status))
            history.add_history("m", None, "parent", "UPDATE")
            print(len(history.get_history("m")), len(history.connection.execute(
                "SELECT * FROM history").fetchall()))
            history.close()
            """,
            str(path),
        )
        assert done.stdout.split() == ["8", "2", "2"], done.stderr


BEGINNING = """
    import atexit, os, signal, sqlite3, sys, threading, time
    from async_history import HistoryError
    from async_history.blocking import BlockingHistoryManager

    history = BlockingHistoryManager(sys.argv[1])
    history.add_history("m", None, "x", "ADD")
    print(time.time(), flush=True)

    class Closing:
        def __del__(self, close=history.close):
            close()
"""
EXITS = {
    "unclosed": "",
    "closed at exit": "atexit.register(history.close)",
    "closed by a finalizer": 'sys.modules["kept to the end"] = Closing()',
    "interrupted": "os.kill(os.getpid(), signal.SIGINT)",
    "an error": "raise SystemExit(3)",
    "in a daemon thread": """
        def forever():
            try:
                while True:
                    history.add_history("n", None, "x", "ADD")
            except HistoryError:
                pass
        threading.Thread(target=forever, daemon=True).start()
        while not history.get_history("n"):
            pass
    """,
    "in a thread that is waited for": """
        def fifty():
            threading.main_thread().join()
            for n in range(50):
                history.add_history("n", None, str(n), "UPDATE")
            print(len(history.get_history("n")), flush=True)
        threading.Thread(target=fifty).start()
    """,
    "after a reset": 'history.reset(); history.add_history("m", None, "x", "ADD")',
    "while the file is locked": """
        sys.modules["kept to the end"] = Closing()
        other = sqlite3.connect(sys.argv[1], isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        def stuck():
            try:
                history.add_history("n", None, "x", "ADD")
            except HistoryError:
                pass
        threading.Thread(target=stuck, daemon=True).start()
        while not history._store._running:
            pass
    """,
}


@pytest.mark.subprocess
class TestExit:
    @pytest.mark.parametrize(
        ("place", "ending"),
        [
            *(("file", ending) for ending in EXITS),
            *(("memory", ending) for ending in ("unclosed", "interrupted", "in a daemon thread")),
        ],
    )
    def test_a_program_that_does_not_close_ends_within_two_seconds(
        self, path: Path, ending: str, place: str
    ) -> None:
        done = run_source(
            textwrap.dedent(BEGINNING) + textwrap.dedent(EXITS[ending]),
            str(path) if place == "file" else ":memory:",
        )
        ended = time.time()
        begun, *printed = done.stdout.split()
        codes = {"an error": 3, "interrupted": -signal.SIGINT}
        assert done.returncode == codes.get(ending, 0), done.stderr
        assert printed == (["50"] if ending == "in a thread that is waited for" else [])
        assert done.stderr == "" or ending == "interrupted"
        assert ended - float(begun) < SOON_S
        if place == "file":
            in_order = not path.with_name("history.db-wal").exists()
            assert in_order or ending == "while the file is locked"
            with closing(sqlite3.connect(path)) as connection:
                kept = connection.execute("SELECT count(*) FROM history WHERE memory_id = 'm'")
                assert kept.fetchone() == (1,)

    @pytest.mark.postgres
    def test_a_program_that_does_not_close_a_postgres_history_ends(
        self, request: pytest.FixtureRequest, tmp_path: Path
    ) -> None:
        done = run_source(
            """
            import sys
            from async_history.blocking import BlockingHistoryManager
            history = BlockingHistoryManager(sys.argv[1])
            history.add_history("m", None, "x", "ADD")
            """,
            url_of("postgres", request, tmp_path),
        )
        assert (done.returncode, done.stderr) == (0, "")


class TestClosing:
    def test_closing_twice_and_from_many_threads(
        self, url: str, opened: Open, loop_threads: LoopThreads
    ) -> None:
        history = opened(url)
        history.add_history("m", None, "x", "ADD")
        in_threads(lambda _: history.close(), 10)
        history.close()
        assert history.connection is None
        for call in (
            lambda: history.add_history("m", None, "x", "ADD"),
            lambda: history.batch_add_history([{"memory_id": "m", "event": "ADD"}]),
            lambda: history.get_history("m"),
            lambda: history.save_messages([{"role": "user"}], "s"),
            lambda: history.get_last_messages("s"),
            history.reset,
        ):
            with pytest.raises(HistoryClosed):
                call()
        assert loop_threads() == []
        assert history._store._manager is not None
        assert history._store._manager._closing is not None, "closed in order, not cancelled"

    def test_closing_completes_pending_calls(self, opened: Open, path: Path) -> None:
        """Calls that a lock delays are on disk when close returns, and their callers return."""
        history = opened(path)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with ThreadPoolExecutor(6) as executor:
                calls = [
                    executor.submit(history.add_history, "m", None, str(n), "UPDATE")
                    for n in range(5)
                ]
                while history._store._running < 5:
                    pass
                closing_it = executor.submit(history.close)
                while not history._thread.is_closed:
                    pass
                with pytest.raises(HistoryClosed):
                    history.get_history("m")
                other.execute("COMMIT")
                closing_it.result(LONG_S)
                count = other.execute("SELECT count(*) FROM history").fetchone()
                outcomes = [call.exception(LONG_S) for call in calls]
        assert count == (5,)
        assert outcomes == [None] * 5
        assert not path.with_name("history.db-wal").exists(), "the last connection copied the log"

    def test_closing_a_file_that_stays_locked(self, opened: Open, path: Path) -> None:
        history = opened(path, close_timeout_s=0.05)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with ThreadPoolExecutor(2) as executor:
                call = executor.submit(history.add_history, "m", None, "x", "ADD")
                while not history._store._running:
                    pass
                executor.submit(history.close).result(LONG_S)
                assert isinstance(call.exception(LONG_S), HistoryError)

    def test_closing_fails_a_call_that_does_not_end(self, opened: Open) -> None:
        history = opened()
        history._thread.longest_close_s = 0.05

        async def stuck(_: object) -> None:
            await asyncio.Event().wait()

        with ThreadPoolExecutor(2) as executor:
            call = executor.submit(history._call, stuck)
            while not history._store._running:
                pass
            executor.submit(history.close).result(LONG_S)
            with pytest.raises(CommitUnknown):
                call.result(LONG_S)

    def test_closing_while_the_thread_holds_every_lock(self, opened: Open) -> None:
        """As in a signal handler: it runs on a thread that may hold any lock."""
        history = opened()
        with history._lock, history._thread._lock:
            history.close()

    def test_closing_after_the_loop_thread_died(
        self, opened: Open, caplog: pytest.LogCaptureFixture
    ) -> None:
        history = opened("null://")

        async def die(_: object) -> None:
            raise SystemExit

        with pytest.raises(SystemExit):
            history._call(die)
        history._thread.join()
        with pytest.raises(HistoryClosed):
            history.add_history("m", None, "x", "ADD")
        history.close()
        assert history.connection is None
        assert "the history's loop thread died" in [r.getMessage() for r in caplog.records]

    @pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="this system has no alarms")
    def test_closing_in_a_signal_handler_while_a_call_waits(self, opened: Open, path: Path) -> None:
        history = opened(path)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")

        def at_alarm(*_: object) -> None:
            other.execute("COMMIT")
            history.close()
            closed_in_handler.append(True)

        def alarm(waiting: int) -> None:
            while not history._store._running:
                pass
            signal.pthread_kill(waiting, signal.SIGALRM)

        closed_in_handler: list[bool] = []
        before = signal.signal(signal.SIGALRM, at_alarm)
        alarming = threading.Thread(target=alarm, args=[threading.get_ident()])
        alarming.start()
        try:
            began = time.monotonic()
            history.add_history("m", None, "x", "ADD")
        finally:
            alarming.join()
            signal.signal(signal.SIGALRM, before)
        assert closed_in_handler
        assert time.monotonic() - began < SOON_S
        assert other.execute("SELECT count(*) FROM history").fetchone() == (1,)
        other.close()

    def test_closing_in_a_signal_handler_while_a_call_is_submitted(
        self, opened: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The call that the handler interrupts is not waited for."""
        history = opened()
        history._thread.longest_close_s = LONG_S
        submit = asyncio.run_coroutine_threadsafe

        def interrupted(*arguments: Any) -> Any:
            history.close()
            return submit(*arguments)

        monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", interrupted)
        began = time.monotonic()
        with pytest.raises(HistoryClosed, match="has ended"):
            history.add_history("m", None, "x", "ADD")
        assert time.monotonic() - began < LONG_S

    def test_a_dropped_manager_closes_itself(self, path: Path, loop_threads: LoopThreads) -> None:
        history = BlockingHistoryManager(path)
        history.add_history("m", None, "x", "ADD")
        connection = history.connection
        assert connection is not None
        (thread,) = loop_threads()
        del history
        gc.collect()
        thread.join(LONG_S)
        assert not thread.is_alive()
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connection.execute("SELECT 1")
        assert not path.with_name("history.db-wal").exists()


class TestOpening:
    def test_bad_urls_and_options_are_refused(self, loop_threads: LoopThreads) -> None:
        with pytest.raises(InvalidInput):
            BlockingHistoryManager("oracle://somewhere")
        with pytest.raises(InvalidInput):
            BlockingHistoryManager(":memory:", no_such_option=1)  # type: ignore[call-arg]
        assert loop_threads() == []

    def test_a_file_that_is_not_a_database_is_refused(
        self, path: Path, loop_threads: LoopThreads
    ) -> None:
        path.write_text("not a database, but longer than a header of one hundred bytes" * 5)
        with pytest.raises(StorageCorrupt):
            BlockingHistoryManager(path)
        assert loop_threads() == []

    def test_options_reach_the_backend(self, opened: Open, path: Path) -> None:
        with pytest.raises(InvalidInput, match="durability"):
            opened(path, durability="some")

    def test_a_relative_path_is_resolved_once(
        self, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        history = opened("history.db")
        assert history.db_path == "history.db"
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir(elsewhere)
        history.add_history("m", None, "x", "ADD")
        assert history.connection is not None
        assert history.connection.execute("SELECT count(*) FROM history").fetchone() == (1,)
        history.reset()
        history.add_history("m", None, "y", "ADD")
        assert list(elsewhere.iterdir()) == []


class TestResets:
    def test_a_reset_of_a_locked_file_fails_and_changes_nothing(
        self, opened: Open, path: Path
    ) -> None:
        history = opened(path, lock_timeout_s=0)
        history.add_history("m", None, "x", "ADD")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StorageLocked):
                history.reset()
            other.execute("COMMIT")
        history.add_history("m", "x", "y", "UPDATE")
        assert texts(history, "m") == ["x", "y"]

    def test_the_statement_of_mem0_1s_reset(self, opened: Open, path: Path) -> None:
        """Its Memory.reset runs the SQL itself, while the history is open."""
        history = opened(path)
        history.add_history("m", None, "x", "ADD")
        connection = history.connection
        assert connection is not None
        connection.execute("DROP TABLE IF EXISTS history")
        connection.close()
        again = opened(path)
        assert again.get_history("m") == []
        history.add_history("m", None, "y", "ADD")
        assert texts(again, "m") == ["y"]

    def test_resets_are_seen_by_every_user_of_the_file(self, opened: Open, path: Path) -> None:
        history = opened(path)
        history.add_history("m", None, "x", "ADD")
        plain = plain_mem0().SQLiteManager(str(path))
        history.reset()
        history.add_history("m", None, "y", "ADD")
        plain.add_history("m", None, "z", "UPDATE", created_at="2200-01-01T00:00:00")
        assert texts(history, "m") == ["y", "z"]
        plain.reset()
        assert history.get_history("m") == []
        plain.close()

        async def read_after_a_reset() -> int:
            async with open_history(path) as theirs:
                await asyncio.to_thread(history.reset)
                return len(await theirs.get_history("m"))

        history.add_history("m", None, "x", "ADD")
        assert asyncio.run(read_after_a_reset()) == 0


class TestValues:
    UNSTORABLE = "a\0b\ud800c\udfff\0"

    @pytest.mark.parametrize("store", stores("file", "memory", "postgres"))
    def test_text_that_no_database_stores_is_replaced(
        self, opened: Open, url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        history = opened(url)
        bad, mended = self.UNSTORABLE, "a\ufffdb\ufffdc\ufffd\ufffd"
        caplog.set_level(logging.WARNING, "async_history")
        caplog.clear()
        history.add_history(bad, bad, bad, "UPDATE", actor_id=bad, role=bad)
        assert [(r.levelname, "U+FFFD" in r.getMessage()) for r in caplog.records] == [
            ("WARNING", True)
        ]
        history.batch_add_history([{"memory_id": bad, "event": "ADD", "new_memory": bad}] * 3)
        assert len(caplog.records) == 2
        history.save_messages([{"role": bad, "content": bad, "name": bad}] * 2, bad)
        assert len(caplog.records) == 3
        first, *others = history.get_history(bad)
        names = ("memory_id", "old_memory", "new_memory", "actor_id", "role")
        assert [first[name] for name in names] == [mended] * 5
        assert [other["new_memory"] for other in others] == [mended] * 3
        for message in history.get_last_messages(bad):
            assert [message[name] for name in ("role", "content", "name")] == [mended] * 3
        assert len(caplog.records) == 3
        history.add_history("m", None, "clean, \U0001f375 too", "ADD")
        assert texts(history, "m") == ["clean, \U0001f375 too"]
        assert len(caplog.records) == 3

    def test_times_are_kept_as_given_and_bad_ones_replaced(
        self, opened: Open, caplog: pytest.LogCaptureFixture
    ) -> None:
        history = opened()
        moment = datetime(2026, 11, 20, tzinfo=UTC)
        given: list[Any] = ["2026-11-20T09:41:15-07:00", "2025-01-01 10:00:00.5", moment]
        for time_given in given:
            history.add_history("m", None, "x", "ADD", created_at=time_given)
        assert caplog.records == []
        assert [record["created_at"] for record in history.get_history("m")] == [
            *given[:2],
            "2026-11-20T00:00:00+00:00",
        ]
        unusable: list[Any] = ["yesterday", 1735689600, "20250101", "\0"]
        for value in unusable:
            caplog.clear()
            history.add_history("n", None, "x", "ADD", created_at=value, updated_at=value)
            (warned,) = caplog.records
            assert repr(value)[:40] in warned.getMessage()
        for record in history.get_history("n"):
            assert datetime.fromisoformat(record["created_at"]).tzinfo is not None
            assert record["updated_at"] is None

    def test_numbers_and_flags_are_stored_as_mem0_stores_them(
        self, opened: Open, tmp_path: Path
    ) -> None:
        def answers(manager: Any) -> list[Any]:
            for flag in (0, 1, True, None, 5):
                manager.add_history("m", 1, 2.5, "DELETE", is_deleted=flag, actor_id=True)
            manager.batch_add_history([{"memory_id": 7, "event": "DELETE", "is_deleted": None}])
            found = [*manager.get_history("m"), *manager.get_history(7)]
            names = ("memory_id", "old_memory", "new_memory", "is_deleted", "actor_id")
            rows = [tuple(record[name] for name in names) for record in found]
            manager.close()
            return rows

        expected = answers(plain_mem0().SQLiteManager(str(tmp_path / "plain.db")))
        assert answers(opened(tmp_path / "ours.db")) == expected

    def test_a_refused_call_writes_nothing(self, opened: Open) -> None:
        history = opened()
        calls: list[Callable[[], None]] = [
            lambda: history.add_history("m", None, "x", "NONE"),
            lambda: history.add_history("", None, "x", "ADD"),
            lambda: history.batch_add_history([{"memory_id": "m", "event": "ADD"}, {}]),
            lambda: history.save_messages([{"role": "user"}], ""),
        ]
        for call in calls:
            with pytest.raises(InvalidInput):
                call()
        assert history.get_history("m") == []
