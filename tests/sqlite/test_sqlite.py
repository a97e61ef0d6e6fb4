"""SQLite alone: the file, its log, readers and index, and plain mem0 on the same file."""

import asyncio
import dataclasses
import random
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import current_thread
from typing import Any

import pytest
from mem0.memory.storage import SQLiteManager

from async_history import (
    CursorGone,
    Durability,
    HistoryManager,
    InvalidInput,
    MigrationError,
    StorageCorrupt,
    StorageError,
    StorageMissing,
    StorageRefused,
    open_history,
)
from async_history._core.concurrency.threads import run_to_completion
from async_history._core.operations.operations import entries_at_their_end
from async_history._core.writing.wakeups import WAKEUP_BATCH_MIN, WakeupScheduler
from async_history._sqlite.connecting.errors import has_log_reset_fault
from async_history._sqlite.index.levels import LEVELS, POSITIONS, STEP, TAIL_ROWS, memory_key
from async_history._sqlite.opening import LONGEST_LOG_BYTES
from async_history._sqlite.operations import file_log
from async_history._sqlite.rows import LONGEST_PACKED, MOST_PACKED
from async_history.sqlite import SQLiteHistoryManager
from tests.subprocesses.checks import check_index, check_levels

MADE_AT = "2026-11-21T10:00:00.000000+00:00"


@contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    """A separate connection in autocommit mode."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.db"


async def texts(history: HistoryManager, memory_id: str = "m") -> list[str | None]:
    return [record.new_memory for record in await history.get_history(memory_id)]


def counted_statements(history: HistoryManager, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which every later SELECT is added."""
    assert isinstance(history, SQLiteHistoryManager)
    fetch = history.store.pool.fetch
    fetched: list[str] = []

    async def noting(sql: str, parameters: Any) -> Any:
        fetched.append(sql)
        return await fetch(sql, parameters)

    monkeypatch.setattr(history.store.pool, "fetch", noting)
    return fetched


class TestFile:
    async def test_a_new_file_is_for_its_owner_and_gets_missing_folders(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "some" / "where" / "history.db"
        async with open_history(path) as history:
            await history.add_history("m", None, "x", "ADD")
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.with_name("history.db-wal").stat().st_mode) == 0o600
        assert [file.name for file in path.parent.iterdir()] == ["history.db"]

    @pytest.mark.parametrize(("durability", "synchronous"), [("full", 2), ("normal", 1)])
    async def test_log_and_durability(
        self, path: Path, durability: Durability, synchronous: int
    ) -> None:
        async with open_history(path, durability=durability) as history:
            assert isinstance(history, SQLiteHistoryManager)
            writing = history.store.pool._writer
            assert writing is not None
            for pragma, value in (("journal_mode", "wal"), ("synchronous", synchronous)):
                ((found,),) = await writing.execute_fetchall(f"PRAGMA {pragma}")
                assert found == value

    async def test_many_reads_at_once_share_statements(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with open_history(path) as history:
            statements = counted_statements(history, monkeypatch)
            await asyncio.gather(*(history.get_history(str(n)) for n in range(100)))
        assert len(statements) < 10

    @pytest.mark.parametrize(
        ("callers", "times"), [(1, 0), (WAKEUP_BATCH_MIN // 2, 0), (WAKEUP_BATCH_MIN, 1), (512, 1)]
    )
    async def test_a_large_commit_reports_that_it_has_begun(
        self, path: Path, callers: int, times: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        threads: list[str] = []
        monkeypatch.setattr(
            WakeupScheduler, "commit_has_begun", lambda _: threads.append(current_thread().name)
        )
        async with open_history(path) as history:
            await asyncio.gather(
                *(history.add_history("m", None, str(n), "ADD") for n in range(callers))
            )
        assert len(threads) == times
        assert "MainThread" not in threads

    @pytest.mark.once
    @pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16le"])
    async def test_shared_reads_return_what_each_would_alone(
        self, path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever others have stored, and however much."""
        stored: dict[str, list[Any]] = {
            "texts": [
                "",
                "'",
                '"',
                "\\u0000",
                "\1\x1f\x7f",
                "ä🙂\u2028",
                '{"a": [1]}',
                "null",
                None,
            ],
            "many": [f"text {n}" for n in range(MOST_PACKED - 9)],
            "more": [f"text {n}" for n in range(3 * MOST_PACKED)],
            "long": ["x" * 5 * LONGEST_PACKED],
            "NUL": ["a\0b"],
            "blobs": ["text", b"\xff\0", b"text"],
            "whole": [7, 2**63 - 1, -(2**63)],
            "numbers": [0.1, 1e300, 1732147200.1234567],
            "endless": [float("inf")],
        }
        with raw(path) as connection:
            connection.execute(f"PRAGMA encoding = '{encoding}'")
            connection.execute(
                "CREATE TABLE history (id TEXT PRIMARY KEY, memory_id TEXT, old_memory TEXT,"
                " new_memory, event TEXT, created_at DATETIME, updated_at DATETIME,"
                " is_deleted INTEGER, actor_id TEXT, role TEXT)"
            )
            connection.executemany(
                "INSERT INTO history (id, memory_id, new_memory, event, updated_at)"
                " VALUES (?, ?, ?, 'UPDATE', ?)",
                [
                    (f"{name} {n}", name, one, one if type(one) is float else MADE_AT)
                    for name, of_memory in stored.items()
                    for n, one in enumerate(of_memory)
                ],
            )
        async with open_history(path) as history:
            alone = {name: await history.get_history(name) for name in [*stored, "nobody"]}
            assert {name: len(found) for name, found in alone.items()} == {
                name: len(stored.get(name, ())) for name in alone
            }
            statements = counted_statements(history, monkeypatch)
            for many in ([name, "texts"] for name in alone):
                statements.clear()
                found = await asyncio.gather(*map(history.get_history, many))
                assert repr(found) == repr([alone[name] for name in many])
                goes_together = many[0] in ("texts", "many", "NUL", "whole", "nobody")
                assert len(statements) == (1 if goes_together else 2)

    async def test_broken_text_does_not_fail_other_reads(self, path: Path) -> None:
        async with open_history(path) as history:
            for memory_id in ("broken", "m"):
                await history.add_history(memory_id, None, "text", "ADD")
            with raw(path) as connection:
                connection.execute(
                    "UPDATE history SET new_memory = CAST(x'c3' AS TEXT) WHERE memory_id = 'broken'"
                )
            broken, found = await asyncio.gather(
                history.get_history("broken"), texts(history), return_exceptions=True
            )
            assert isinstance(broken, StorageError)
            assert found == ["text"]

    async def test_user_version_belongs_to_the_files_owner(self, path: Path) -> None:
        with raw(path) as connection:
            connection.execute("PRAGMA user_version = 77")
            connection.execute("CREATE TABLE theirs (x)")
        async with open_history(path) as history:
            await history.add_history("m", None, "x", "ADD")
            await history.reset()
        with raw(path) as connection:
            assert connection.execute("PRAGMA user_version").fetchone() == (77,)
            assert connection.execute("SELECT count(*) FROM theirs").fetchone() == (0,)

    @pytest.mark.parametrize("content", [None, b""], ids=["missing", "empty"])
    async def test_no_file_is_made_if_create_is_false(
        self, path: Path, content: bytes | None
    ) -> None:
        if content is not None:
            path.write_bytes(content)
        for migrate in (True, False):
            with pytest.raises(StorageMissing, match=r"history\.db"):
                await open_history(path, create=False, migrate=migrate)
        assert path.exists() == (content is not None)
        assert content is None or path.read_bytes() == content

    async def test_a_file_that_is_not_a_database_is_refused(self, path: Path) -> None:
        path.write_bytes(b"no database at all " * 500)
        before = path.read_bytes()
        for migrate in (True, False):
            with pytest.raises(StorageCorrupt, match="not a SQLite database"):
                await open_history(path, migrate=migrate)
        assert path.read_bytes() == before
        assert len(list(path.parent.iterdir())) == 1

    async def test_a_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError):
            await open_history(tmp_path)

    async def test_options_are_checked(self, path: Path) -> None:
        with pytest.raises(InvalidInput, match="durability"):
            open_history(path, durability="none")  # type: ignore[arg-type]
        with pytest.raises(InvalidInput, match="has no option 'speed'"):
            open_history(path, speed="high")  # type: ignore[call-arg]
        with pytest.raises(InvalidInput, match="queue_records"):
            await open_history(path, queue_records=0)

    @pytest.mark.parametrize(
        ("version", "faulty"),
        [
            ((3, 6, 23), False),
            ((3, 7, 0), True),
            ((3, 40, 1), True),
            ((3, 44, 6), False),
            ((3, 50, 7), False),
            ((3, 51, 2), True),
            ((3, 51, 3), False),
        ],
    )
    def test_versions_of_sqlite_with_the_wal_reset_fault(
        self, version: tuple[int, ...], faulty: bool
    ) -> None:
        assert has_log_reset_fault(version) is faulty

    async def test_a_sqlite_that_is_too_old_is_refused(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 31, 1))
        for place in (path, "memory://"):
            with pytest.raises(StorageError, match=r"3\.32 or later"):
                await open_history(place)

    async def test_stats_have_sizes_and_warnings(self, path: Path) -> None:
        async with open_history(path) as history:
            await history.add_history("m", None, "x", "ADD")
            stats = await history.stats()
            assert stats.store == str(path)
            assert stats.file_bytes > 0
            assert stats.wal_bytes > 0
            worried = any("WAL-reset" in warning for warning in stats.warnings)
            assert worried is has_log_reset_fault(sqlite3.sqlite_version_info)
            path.rename(path.with_suffix(".moved"))
            stats = await history.stats()
            removed = next(warning for warning in stats.warnings if warning.code == "file-removed")
            assert "was removed" in removed
            assert removed.severity == "critical"
            assert dataclasses.asdict(stats)["warnings"] == stats.warnings

    @pytest.mark.once
    async def test_the_log_stays_short(self, path: Path) -> None:
        """A lone writer's log wraps around early, that of many callers late."""
        megabyte = 1024 * 1024
        async with open_history(path) as history:
            for _ in range(300):
                await history.add_history("m", None, "x" * 20_000, "UPDATE")
            assert 3 * megabyte < (await history.stats()).wal_bytes < 5 * megabyte
            for _ in range(10):
                many = (history.add_history("m", None, "x" * 20_000, "UPDATE") for _ in range(100))
                await asyncio.gather(*many)
            assert 14 * megabyte < (await history.stats()).wal_bytes < 20 * megabyte

    @pytest.mark.once
    async def test_a_log_that_only_grows_is_warned_of(self, path: Path) -> None:
        """While a reader uses it, it can't be copied into the file and restarted."""

        async def is_warned_of(history: HistoryManager) -> bool:
            warnings = (await history.stats()).warnings
            return ("log-grows", "warning") in [(one.code, one.severity) for one in warnings]

        async with open_history(path) as history:
            await history.add_history("m", None, "x", "ADD")
            assert not await is_warned_of(history)
            with raw(path) as reader:
                reader.execute("BEGIN")
                reader.execute("SELECT count(*) FROM history").fetchall()
                while path.with_name("history.db-wal").stat().st_size <= LONGEST_LOG_BYTES:
                    await history.batch_add_history(
                        [{"memory_id": "m", "new_memory": "x" * 1_000_000, "event": "ADD"}] * 5
                    )
                assert await is_warned_of(history)
                reader.execute("COMMIT")
            for _ in range(3):  # copies the log, restarts it, and truncates it
                await history.add_history("m", None, "x", "UPDATE")
            assert not await is_warned_of(history)


class TestUrls:
    @pytest.mark.parametrize(
        "url",
        ["{0}", "sqlite:///{0}", "sqlite+aiosqlite:///{0}", "SQLite:///{0}"],
    )
    async def test_absolute_spellings(self, path: Path, url: str) -> None:
        async with open_history(url.format(path)) as history:
            await history.add_history("m", None, "x", "ADD")
        assert path.exists()

    async def test_relative_and_escaped(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for url, name in (
            ("sqlite:///a.db", "a.db"),
            ("b c?.db", "b c?.db"),
            ("sqlite:///d%20e%3F%23.db", "d e?#.db"),
        ):
            async with open_history(url):
                assert (tmp_path / name).exists()

    @pytest.mark.parametrize("url", ["memory://", "sqlite://", "sqlite:///:memory:", ":memory:"])
    async def test_in_memory(self, url: str, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.chdir(tmp_path)
        async with open_history(url) as history, open_history(url) as another:
            await history.add_history("m", None, "x", "ADD")
            assert await another.get_history("m") == [], "each is a history of its own"
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "url",
        ["", "ftp://x/y", "sqlite://host/file.db", "sqlite:///a.db?mode=ro", "a\0b", 7],
    )
    def test_other_schemes_are_refused(self, url: Any) -> None:
        with pytest.raises(InvalidInput):
            open_history(url)


class TestReaders:
    async def test_readers_never_wait_for_the_writer(self, path: Path) -> None:
        async with open_history(path) as history:
            await history.add_history("m", None, "x", "ADD")
            with raw(path) as other:
                other.execute("BEGIN IMMEDIATE")
                write = asyncio.create_task(history.add_history("m", None, "y", "UPDATE"))
                assert await texts(history) == ["x"]
                assert [r.new_memory async for r in history.query_history()] == ["x"]
                assert await history.get_last_messages("s") == []
                assert not write.done()
                other.execute("ROLLBACK")
            await write
            assert await texts(history) == ["x", "y"]

    async def test_in_memory_no_reader_sees_an_open_transaction(self) -> None:
        async with open_history("memory://") as history:
            batch = [{"memory_id": "m", "event": "ADD"} for _ in range(2_000)]
            write = asyncio.create_task(history.batch_add_history(batch))
            seen = set()
            while not write.done():
                seen.add(len(await history.get_history("m")))
            await write
            assert seen <= {0, 2_000}


class TestIndex:
    """Three levels act as one index: all records of a memory are found, in order."""

    async def test_lookups_use_the_index(self, path: Path) -> None:
        async with open_history(path):
            pass
        with raw(path) as connection:
            plan = connection.execute(
                f"EXPLAIN QUERY PLAN SELECT * FROM history WHERE memory_id = :memory_id"
                f" AND rowid IN ({POSITIONS}) ORDER BY rowid",
                {"memory_id": "m", "memory": memory_key("m")},
            ).fetchall()
        steps = [step for *_, step in plan]
        for level in LEVELS:
            assert any(f"{level} USING PRIMARY KEY (memory=?)" in step for step in steps)
        assert not any(step.startswith("SCAN history") for step in steps)

    @pytest.mark.once
    async def test_entries_move_down_the_levels_and_none_is_lost(self, path: Path) -> None:
        rows = 40 * STEP
        async with open_history(path) as history:
            for start in range(0, rows, 5_000):
                await history.batch_add_history(
                    [
                        {"memory_id": f"m{n % 1_000}", "new_memory": str(n), "event": "UPDATE"}
                        for n in range(start, min(start + 5_000, rows))
                    ]
                )
            for memory in (0, 1, 499, 999):
                assert await texts(history, f"m{memory}") == [
                    str(n) for n in range(memory, rows, 1_000)
                ]
        with raw(path) as connection:
            counts = [
                connection.execute(f"SELECT count(*) FROM {level} WHERE memory >= 0").fetchone()[0]
                for level in LEVELS
            ]
            entries = connection.execute(
                " UNION ALL ".join(
                    f"SELECT memory, position FROM {level} WHERE memory >= 0" for level in LEVELS
                )
            ).fetchall()
            expected = connection.execute("SELECT memory_id, rowid FROM history").fetchall()
        assert sum(counts) == rows
        assert counts[0] <= 16 * STEP
        assert all(counts), "every level is in use"
        assert sorted(entries) == sorted((memory_key(m), rowid) for m, rowid in expected)

    async def test_single_records_are_indexed_together(self, path: Path) -> None:
        """A single record writes only its row, until there are enough rows to index."""
        async with open_history(path) as history:
            with raw(path) as connection:

                def reach() -> tuple[int, int]:
                    """Return how far the index reaches, and how many entries it has."""
                    ((through,),) = connection.execute(
                        "SELECT indexed_through FROM async_history_state"
                    )
                    levels = " UNION ALL ".join(
                        f"SELECT 1 FROM {level} WHERE memory >= 0" for level in LEVELS
                    )
                    return through, len(connection.execute(levels).fetchall())

                for n in range(1, TAIL_ROWS):
                    await history.add_history(f"m{n % 7}", None, str(n), "UPDATE")
                    assert reach() == (0, 0)
                    check_index(connection)
                await history.add_history("m0", None, "the last", "UPDATE")
                assert reach() == (TAIL_ROWS, TAIL_ROWS)
                await history.add_history("m0", None, "a tail", "UPDATE")
                many = [{"memory_id": "m1", "new_memory": "c", "event": "UPDATE"}] * 100
                await history.batch_add_history(many)
                assert reach() == (TAIL_ROWS + 101, TAIL_ROWS + 101), "the tail was indexed too"
                check_index(connection)

    @pytest.mark.once
    async def test_batches_of_every_size_among_rows_of_others(self, path: Path) -> None:
        """Random batches, rows of others, removals and renames: no lookup misses a record."""
        rng = random.Random(5)  # noqa: S311 - random choices
        async with open_history(path) as history:
            with raw(path) as connection:
                for turn in range(75):
                    match rng.choice(["ours", "ours", "ours", "theirs", "newest", "renamed"]):
                        case "ours":
                            count = rng.choice([1, 1, 2, 7, 8, 9, 33, 130, 513])
                            await history.batch_add_history(
                                [
                                    {"memory_id": f"m{rng.randrange(9)}", "event": "UPDATE"}
                                    for _ in range(count)
                                ]
                            )
                            check_levels(connection)
                        case "theirs":
                            connection.executemany(
                                "INSERT INTO history (id, memory_id, event) VALUES (?, ?, 'ADD')",
                                [
                                    (f"{turn} {n}", f"m{rng.randrange(9)}")
                                    for n in range(rng.choice([1, 3, 63, 64, 65, 200]))
                                ],
                            )
                        case "newest":
                            connection.execute(
                                "DELETE FROM history WHERE rowid >"
                                " (SELECT max(rowid) FROM history) - ?",
                                (rng.randint(1, 90),),
                            )
                        case _:
                            connection.execute(
                                "UPDATE history SET memory_id = 'm1' WHERE rowid ="
                                " (SELECT max(rowid) FROM history) - ?",
                                (rng.randint(0, 90),),
                            )
                    check_index(connection)

    async def test_memories_that_share_a_key(self, path: Path) -> None:
        """No two such names are known, so one's entry is given the other's key."""
        async with open_history(path) as history:
            records = [await history.add_history(m, None, m, "ADD") for m in ("a", "b")]
            with raw(path) as connection:
                for level in LEVELS:
                    connection.executemany(
                        f"INSERT INTO {level} VALUES (?, ?)",
                        [(memory_key("a"), 2), (memory_key("b"), 1)],
                    )
            for record in records:
                asked = record.memory_id
                assert await texts(history, asked) == [asked]
                assert [r async for r in history.query_history(memory_id=asked)] == [record]
                await history.batch_add_history(
                    [{"memory_id": asked, "event": "UPDATE"}], if_latest=record
                )

    @pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16le"])
    async def test_odd_ids_of_others(self, path: Path, encoding: str) -> None:
        """Blobs, numbers, NULLs and broken text as memory ids do not disturb other records."""
        with raw(path) as connection:
            connection.execute(f"PRAGMA encoding = '{encoding}'")
            connection.execute(
                "CREATE TABLE history (id TEXT PRIMARY KEY, memory_id, old_memory TEXT,"
                " new_memory TEXT, event TEXT, created_at DATETIME, updated_at DATETIME,"
                " is_deleted INTEGER, actor_id TEXT, role TEXT)"
            )
            connection.executemany(
                "INSERT INTO history (id, memory_id, new_memory, event) VALUES (?, ?, ?, 'ADD')",
                [("1", b"\xff\xfe", "a"), ("2", 7, "b"), ("3", None, "c"), ("4", "é", "d")],
            )
            connection.execute(
                "INSERT INTO history (id, memory_id, event) VALUES ('5', CAST(x'c3' AS TEXT), 'X')"
            )
        async with open_history(path) as history:
            assert await texts(history, "é") == ["d"]
            await history.add_history("é", "d", "e", "UPDATE")
            assert await texts(history, "é") == ["d", "e"]


class TestOtherPrograms:
    async def test_plain_mem0_reads_our_records(self, path: Path) -> None:
        async with open_history(path) as history:
            record = await history.add_history("m", None, "x", "ADD", actor_id="a", role="user")
            await history.save_messages(
                [{"role": "user", "content": str(n)} for n in range(12)], "scope"
            )
            with closing(SQLiteManager(str(path))) as mem0:
                assert mem0.get_history("m") == [record.as_dict()]
                kept = [message.as_dict() for message in await history.get_last_messages("scope")]
                assert mem0.get_last_messages("scope") == kept
                assert [message["content"] for message in kept] == [str(n) for n in range(2, 12)]

    async def test_records_of_plain_mem0_are_read_and_indexed(self, path: Path) -> None:
        async with open_history(path) as history:
            await history.add_history("m", None, "ours 1", "ADD")
            with closing(SQLiteManager(str(path))) as mem0:
                mem0.add_history("m", "ours 1", "mem0 1", "UPDATE")
                assert await texts(history) == ["ours 1", "mem0 1"], "read although not indexed"
                await history.add_history("m", "mem0 1", "ours 2", "UPDATE")
                mem0.batch_add_history(
                    [{"memory_id": "m", "new_memory": f"mem0 {n}", "event": "X"} for n in (2, 3)]
                )
                await history.batch_add_history(
                    [{"memory_id": "m", "new_memory": "ours 3", "event": "UPDATE"}]
                )
                mem0.save_messages([{"role": "user", "content": "from mem0"}], "s")
                await history.save_messages([{"role": "user", "content": "from us"}], "s")
            assert await texts(history) == [
                *("ours 1", "mem0 1", "ours 2", "mem0 2", "mem0 3", "ours 3"),
            ]
            assert [m.content for m in await history.get_last_messages("s")] == [
                *("from mem0", "from us"),
            ]
        with raw(path) as connection:
            check_levels(connection)

    async def test_plain_mem0_resets_an_open_file(self, path: Path) -> None:
        async with open_history(path) as history:
            await history.add_history("m", None, "before", "ADD")
            with closing(SQLiteManager(str(path))) as mem0:
                mem0.reset()
                assert await history.get_history("m") == []
                assert await history.get_last_messages("s") == []
                await history.add_history("m", None, "after", "ADD")
                assert await texts(history) == ["after"]
                assert [r["new_memory"] for r in mem0.get_history("m")] == ["after"]
                mem0.reset()
                await history.save_messages([{"role": "user", "content": "after"}], "s")
                await history.batch_add_history([{"memory_id": "m", "event": "ADD"}] * 700)
                assert len(await history.get_history("m")) == 700
        with raw(path) as connection:
            check_levels(connection)

    async def test_rowids_that_are_used_again(self, path: Path) -> None:
        async with open_history(path) as history:
            for n in range(4):
                await history.add_history(f"m{n}", None, str(n), "ADD")
            with raw(path) as other:
                other.execute("DELETE FROM history WHERE memory_id IN ('m2', 'm3')")
                other.executemany(
                    "INSERT INTO history (id, memory_id, new_memory, event)"
                    " VALUES (?, ?, ?, 'ADD')",
                    [("a", "m9", "9"), ("b", "m0", "0b"), ("c", "m9", "9b")],
                )
                other.execute("UPDATE history SET memory_id = 'm7' WHERE memory_id = 'm1'")
            for _ in range(2):
                assert await texts(history, "m9") == ["9", "9b"]
                assert await texts(history, "m0") == ["0", "0b"]
                assert await texts(history, "m7") == ["1"]
                for gone in ("m1", "m2", "m3"):
                    assert await texts(history, gone) == []
                await history.add_history("new", None, "x", "ADD")

    async def test_vacuum_and_foreign_schema_changes(self, path: Path) -> None:
        async with open_history(path) as history:
            for n in range(10):
                await history.add_history(f"m{n % 2}", None, str(n), "UPDATE")
            with raw(path) as other:
                other.execute("DELETE FROM history WHERE new_memory = '4'")
                other.execute("VACUUM")
                other.execute("CREATE INDEX theirs ON history (actor_id)")
            assert await texts(history, "m0") == ["0", "2", "6", "8"]
            await history.add_history("m0", None, "10", "UPDATE")
            assert await texts(history, "m0") == ["0", "2", "6", "8", "10"]
        with raw(path) as connection:
            check_levels(connection)

    async def test_a_cursor_whose_record_has_moved(self, path: Path) -> None:
        async with open_history(path) as history:
            for n in range(4):
                await history.add_history("m", None, str(n), "UPDATE")
            pages = [page async for page in history.query_history(page_size=3).pages()]
            with raw(path) as other:
                other.execute("UPDATE history SET rowid = rowid + 10")  # VACUUM may, too
            with pytest.raises(CursorGone):
                [r async for r in history.query_history(after=pages[0].cursor)]

    async def test_a_trigger_of_the_files_owner_refuses_one_record_alone(self, path: Path) -> None:
        async with open_history(path) as history:
            await history.add_history("m", None, "x", "ADD")
            with raw(path) as other:
                other.execute(
                    "CREATE TRIGGER rule BEFORE INSERT ON history WHEN new.role = 'nobody'"
                    " BEGIN SELECT RAISE(ABORT, 'nobody may write'); END"
                )
            results = await asyncio.gather(
                *(
                    history.add_history(
                        "m", None, str(n), "UPDATE", role="nobody" if n == 7 else None
                    )
                    for n in range(20)
                ),
                return_exceptions=True,
            )
            (refused,) = [r for r in results if isinstance(r, BaseException)]
            assert isinstance(refused, StorageRefused)
            assert "nobody may write" in str(refused)
            assert await texts(history) == ["x", *(str(n) for n in range(20) if n != 7)]

    async def test_a_file_from_a_newer_version_is_refused(self, path: Path) -> None:
        async with open_history(path) as history:
            await history.add_history("m", None, "x", "ADD")
        with raw(path) as other:
            other.execute("UPDATE async_history_state SET version = 99")
        before = path.read_bytes()
        for migrate in (True, False):
            with pytest.raises(MigrationError, match="99"):
                await open_history(path, migrate=migrate)
        assert path.read_bytes() == before


class TestWithoutMigration:
    async def test_an_old_file_is_read_and_not_changed(self, path: Path) -> None:
        with raw(path) as connection:
            connection.execute(
                "CREATE TABLE history (id TEXT PRIMARY KEY, memory_id TEXT, prev_value TEXT,"
                " new_value TEXT, event TEXT, timestamp DATETIME, is_deleted INTEGER)"
            )
            connection.executemany(
                "INSERT INTO history VALUES (?, 'm', ?, ?, ?, ?, 0)",
                [
                    ("1", None, "tea", "ADD", "2024-07-01 10:00:00.000001"),
                    ("2", "tea", "mate", "UPDATE", "2024-07-02 10:00:00.000001"),
                ],
            )
        before = path.read_bytes()
        async with open_history(path, create=False, migrate=False) as history:
            assert await texts(history) == ["tea", "mate"]
            many = await asyncio.gather(texts(history), texts(history, "nobody"))
            assert list(many) == [["tea", "mate"], []]
            found = [r async for r in history.query_history(event="UPDATE", memory_id="m")]
            assert [r.old_memory for r in found] == ["tea"]
            assert await history.get_last_messages("s") == []
            assert (await history.stats()).writer is None
            for call in (
                history.add_history("m", None, "x", "ADD"),
                history.save_messages([{"role": "user"}], "s"),
                history.reset(),
            ):
                with pytest.raises(MigrationError, match="migrate=True"):
                    await call
        assert path.read_bytes() == before
        assert [file.name for file in path.parent.iterdir()] == ["history.db"]
        async with open_history(path) as history:
            assert await texts(history) == ["tea", "mate"]

    async def test_an_old_file_whose_history_is_dropped_meanwhile(self, path: Path) -> None:
        with raw(path) as connection:
            connection.execute(
                "CREATE TABLE history (id TEXT PRIMARY KEY, memory_id TEXT, prev_value TEXT,"
                " new_value TEXT, event TEXT, timestamp DATETIME, is_deleted INTEGER)"
            )
            async with open_history(path, create=False, migrate=False) as history:
                connection.execute("DROP TABLE history")
                assert await texts(history) == []
                assert isinstance(history, SQLiteHistoryManager)
                assert await history.store.stored_reader.histories(["m", "n"]) == {"m": [], "n": []}

    async def test_an_adopted_file_is_written_as_usual(self, path: Path) -> None:
        async with open_history(path, migrate=False) as history:
            await history.add_history("m", None, "made", "ADD")
        async with open_history(path, migrate=False, create=False) as history:
            await history.add_history("m", None, "opened", "UPDATE")
            assert await texts(history) == ["made", "opened"]

    async def test_missing_times_come_from_the_record_before(self, path: Path) -> None:
        """A DELETE of mem0 1.x has no dates. It came after the record before it, that is all."""
        with closing(SQLiteManager(str(path))) as mem0:
            mem0.add_history("m", None, "x", "ADD", created_at="2025-01-01T10:00:00-07:00")
            mem0.add_history("m", "x", "y", "UPDATE", updated_at="2025-01-02T10:00:00-07:00")
            mem0.add_history("m", "y", None, "DELETE", is_deleted=1)
            mem0.add_history("n", "y", None, "DELETE", is_deleted=1)
        async with open_history(path) as history:
            *_, update, delete = await history.get_history("m")
            assert delete.occurred_at == update.occurred_at
            assert delete.updated_at is None
            assert (await history.get_history("n"))[0].occurred_at is None
            assert update.occurred_at is not None
            found = history.query_history(since=update.occurred_at)
            assert [r.event async for r in found] == ["UPDATE", "DELETE"]


@pytest.mark.parametrize("count", [1, 2, 64, 65, 512, 513])
async def test_the_log_takes_any_number_of_entries(tmp_path: Path, count: int) -> None:
    path = tmp_path / "history.db"
    begun_at = "2026-11-20T12:00:00.000000+00:00"
    each = [(f"id{n}", begun_at, f"a{n}" if n % 2 else None, "{}") for n in range(count)]

    def enter() -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            entries = entries_at_their_end("restore", each, records=1)
            run_to_completion(file_log(connection).enter(entries))

    async with open_history(path) as history:
        await asyncio.to_thread(enter)
        logged = {one.id: one.actor_id for one in await history.operations()}
    assert logged == {operation_id: actor_id for operation_id, _, actor_id, _ in each}
