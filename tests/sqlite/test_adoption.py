"""Every old file is adopted with all its content, or stays exactly as it was."""

import asyncio
import logging
import os
import random
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from async_history import Erasure, HistoryOptions, StoreOperation, open_history
from async_history._core.records.records import COLUMNS
from async_history._sqlite.connecting.errors import LOCK_SLICE_S, wait_for_lock
from async_history._sqlite.index.levels import LEVELS, TAIL_ROWS, memory_key
from async_history._sqlite.schema.adopt import (
    AdoptionReport,
    adopt,
    check_version,
    compatibility_view,
    is_prepared,
    prepare,
)
from async_history._sqlite.schema.versions import VERSION
from async_history.errors import MigrationError, StorageCorrupt, StorageLocked, StorageMissing
from tests.subprocesses.checks import check_index, check_levels
from tests.support.legacy_files import (
    CONVERSATION,
    MESSAGES,
    OLD_LAYOUTS,
    TODAY,
    TS,
    V0_0_2,
    V0_0_10,
    Layout,
    Row,
    build,
    insert,
    plain_mem0,
)
from tests.support.snapshots import Snapshots

pytestmark = pytest.mark.once

TEN = ", ".join(COLUMNS)


@contextmanager
def opened(
    path: Path, factory: type[sqlite3.Connection] = sqlite3.Connection
) -> Iterator[sqlite3.Connection]:
    """Open a file as the SQLite manager does."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=LOCK_SLICE_S, factory=factory)
    with closing(connection):
        wait_for_lock(lambda: connection.execute("PRAGMA journal_mode = WAL"), 30)
        yield connection


def records(connection: sqlite3.Connection, columns: str = TEN) -> list[Row]:
    return connection.execute(f"SELECT {columns} FROM history ORDER BY rowid").fetchall()


def tables(connection: sqlite3.Connection) -> set[str]:
    rows = connection.execute(
        """SELECT name FROM sqlite_master WHERE type = 'table'
        AND name NOT LIKE 'async_history_%' AND name NOT LIKE 'sqlite_%'"""
    )
    return {name for (name,) in rows}


def check_prepared(connection: sqlite3.Connection) -> None:
    """Check that the state is right, and that the index has exactly the existing rows."""
    assert is_prepared(connection)
    union = " UNION ALL ".join(
        f"SELECT memory, position FROM {level} WHERE memory >= 0" for level in LEVELS
    )
    expected = connection.execute("SELECT memory_id, rowid FROM history").fetchall()
    assert sorted(connection.execute(union)) == sorted((memory_key(m), r) for m, r in expected)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def backups(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if ".before-adoption" in file.name]


def as_is(path: Path) -> list[Row]:
    """Read a file without changing it."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        if (select := compatibility_view(connection)) is not None:
            connection.execute(f"CREATE TEMP VIEW history AS {select}")
        return records(connection, f"rowid, {TEN}")


# What is read after an adoption


@pytest.mark.parametrize("name", OLD_LAYOUTS)
def test_every_old_layout_is_read_unchanged_and_in_order(name: str, tmp_path: Path) -> None:
    layout = OLD_LAYOUTS[name]
    path = build(tmp_path / "history.db", "PRAGMA user_version = 7;" + MESSAGES, layout)
    unchanged = as_is(path)
    with opened(path) as connection:
        insert(connection, "messages", [("1", "user_id=u", "user", "hello", None, "2025")])
        report = prepare(connection, path)
        assert records(connection) == list(layout.today)
        assert records(connection, f"rowid, {TEN}") == unchanged
        assert tables(connection) == {"history", "messages"}
        assert connection.execute("SELECT content FROM messages").fetchall() == [("hello",)]
        assert connection.execute("PRAGMA user_version").fetchone() == (7,)
        check_prepared(connection)
        assert prepare(connection, path) == AdoptionReport(path=str(path), done=True)
    with opened(path) as connection:
        check_prepared(connection)
    assert report.records == len(layout.today)
    assert report.sources == (f"{layout.table} ({layout.label})",)
    assert report.left_out_columns == layout.left_out
    assert [str(copy) for copy in backups(tmp_path)] == [report.backup]


def test_todays_layout_is_only_indexed(tmp_path: Path) -> None:
    path = build(tmp_path / "history.db", MESSAGES, TODAY)
    with opened(path) as connection:
        connection.execute("UPDATE history SET rowid = rowid * 10")
        rows = records(connection, "rowid, *")
        report = prepare(connection, path)
        assert records(connection, "rowid, *") == rows
        check_prepared(connection)
    assert report.done
    assert not report.rewritten
    assert report.records == len(rows)
    assert not backups(tmp_path)


@pytest.mark.parametrize("key", ["id TEXT PRIMARY KEY", "id VARCHAR(36) NOT NULL UNIQUE"])
def test_ten_columns_in_any_order_are_todays_layout(key: str, tmp_path: Path) -> None:
    others = ", ".join(reversed(COLUMNS[1:]))
    path = build(tmp_path / "history.db", f"CREATE TABLE History ({others}, {key})")
    with opened(path) as connection:
        assert not prepare(connection, path).rewritten
        check_prepared(connection)


@pytest.mark.parametrize(
    ("key", "index"),
    [
        ("id TEXT", ""),
        ("id INTEGER PRIMARY KEY", ""),
        ("id TEXT", "CREATE INDEX by_id ON History (id)"),
        ("id TEXT", "CREATE UNIQUE INDEX by_id ON History (id) WHERE is_deleted"),
        ("id TEXT", "CREATE UNIQUE INDEX by_id ON History (id, memory_id)"),
    ],
)
def test_ten_columns_without_a_key_of_text_are_rewritten(
    key: str, index: str, tmp_path: Path
) -> None:
    others = ", ".join(COLUMNS[1:])
    path = build(tmp_path / "history.db", f"CREATE TABLE History ({key}, {others}); {index}")
    with opened(path) as connection:
        connection.execute("INSERT INTO history (id, memory_id, event) VALUES (5, 'm', 'ADD')")
        assert prepare(connection, path).rewritten
        connection.execute("INSERT INTO history (id) VALUES ('text')")
        assert records(connection, "id") == [("5",), ("text",)]


@pytest.mark.parametrize("where", ["file", "memory"])
def test_an_empty_database_is_set_up(where: str, tmp_path: Path) -> None:
    path = tmp_path / "history.db" if where == "file" else None
    with closing(sqlite3.connect(path or ":memory:", isolation_level=None)) as connection:
        assert not is_prepared(connection)
        report = prepare(connection, path)
        check_prepared(connection)
        assert tables(connection) == {"history", "messages"}
        assert report == AdoptionReport(path=str(path) if path else None, done=True)
    assert not backups(tmp_path)


def test_a_rewritten_table_is_the_same_as_a_new_one(tmp_path: Path) -> None:
    found = []
    for number, layouts in enumerate([(), (V0_0_2,)]):
        path = build(tmp_path / f"{number}.db", "", *layouts)
        with opened(path) as connection:
            prepare(connection, path)
            columns = connection.execute("PRAGMA table_info(history)").fetchall()
            ours = connection.execute(
                "SELECT type, name FROM sqlite_master WHERE name <> 'history' ORDER BY 2"
            ).fetchall()
            found.append((columns, ours))
    assert found[0] == found[1]


def test_columns_without_a_place_are_named_and_kept_in_the_backup(tmp_path: Path) -> None:
    script = """
    CREATE TABLE audit (id);
    CREATE TABLE history (id TEXT PRIMARY KEY, memory_id, event, new_memory, new_value, mood);
    INSERT INTO history VALUES ('1', 'm', 'ADD', 'kept', 'lost', 'good');
    CREATE INDEX by_mood ON history (mood);
    CREATE TRIGGER audits AFTER INSERT ON history BEGIN INSERT INTO audit VALUES (new.id); END;
    CREATE VIEW recent AS SELECT id FROM history;
    """
    path = build(tmp_path / "history.db", script)
    with opened(path) as connection:
        report = prepare(connection, path)
        assert records(connection, "new_memory") == [("kept",)]
        assert connection.execute("SELECT id FROM recent").fetchall() == [("1",)]
        assert connection.execute("PRAGMA legacy_alter_table").fetchone() == (0,)
    assert report.left_out_columns == ("history.new_value", "history.mood")
    assert report.left_out_objects == ("index by_mood", "trigger audits")
    assert report.backup is not None
    for name in (*report.left_out_columns, *report.left_out_objects, report.backup):
        assert name in report.outcome()
    with closing(sqlite3.connect(report.backup)) as connection:
        assert connection.execute("SELECT new_value, mood FROM history").fetchall() == [
            ("lost", "good")
        ]


# Leftovers of interrupted migrations

PARTLY_COPIED = Layout(
    "mem0 0.1.100 or later",
    TODAY.sql,
    (
        ("a2", "m1", None, None, "UPDATE", None, None, 0, None, None),
        ("a1", "m1", None, None, "DELETE", None, None, 1, None, None),
        ("new", "m9", None, "since", "ADD", "2026-01-01T00:00:00Z", None, 0, None, None),
    ),
    (),
)
EMPTY = Layout("mem0 0.1.100 or later", TODAY.sql, (), ())


@pytest.mark.parametrize(
    ("leftovers", "history", "expected"),
    [
        ({"old_history": V0_0_2}, None, V0_0_2.today),
        ({"history_old": V0_0_10}, None, V0_0_10.today),
        ({"history_old": V0_0_10}, EMPTY, V0_0_10.today),
        ({"history_old": V0_0_10}, TODAY, V0_0_10.today + TODAY.today),
        ({"old_history": V0_0_2, "history_old": V0_0_10}, None, V0_0_2.today + V0_0_10.today),
        (
            {"old_history": V0_0_2, "history_old": V0_0_10, "memory_history": TS},
            CONVERSATION,
            V0_0_2.today + V0_0_10.today + TS.today + CONVERSATION.today,
        ),
        ({"history_old": V0_0_2}, V0_0_2, V0_0_2.today),
        ({"old_history": V0_0_2}, PARTLY_COPIED, V0_0_2.today + PARTLY_COPIED.rows[-1:]),
        (
            {"old_history": PARTLY_COPIED},
            V0_0_2,
            (*V0_0_2.today[1:], *PARTLY_COPIED.rows[-1:], V0_0_2.today[0]),
        ),
    ],
)
def test_leftovers_of_interrupted_migrations_are_merged(
    leftovers: dict[str, Layout],
    history: Layout | None,
    expected: tuple[Row, ...],
    tmp_path: Path,
) -> None:
    path = build(tmp_path / "history.db", "", *([history] if history else []), **leftovers)
    unchanged = as_is(path)
    with opened(path) as connection:
        report = prepare(connection, path)
        assert records(connection) == list(expected)
        assert records(connection, f"rowid, {TEN}") == unchanged
        assert tables(connection) == {"history", "messages"}
        check_prepared(connection)
        assert not prepare(connection, path).rewritten
    assert report.records == len(expected)
    assert len(backups(tmp_path)) == 1


def test_empty_leftovers_are_dropped_without_a_copy(tmp_path: Path) -> None:
    empty = dict.fromkeys(("old_history", "history_old", "memory_history"), EMPTY)
    path = build(tmp_path / "history.db", "", TODAY, **empty)
    assert len(as_is(path)) == len(TODAY.rows)
    with opened(path) as connection:
        report = prepare(connection, path)
        assert not report.rewritten
        assert tables(connection) == {"history", "messages"}
        check_prepared(connection)
    assert not backups(tmp_path)


texts = st.sampled_from([None, "tea", "TEA", "", "7", "007", "7.0"])
places = st.lists(
    st.tuples(
        st.sampled_from(["old_history", "history_old", "history"]),
        st.one_of(st.none(), st.sampled_from(["1", "2", "3"])),
        st.tuples(*[texts] * 3),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(places, st.booleans())
def test_records_in_any_tables_are_merged_or_refused(
    placed: list[tuple[str, str | None, tuple[str | None, ...]]], has_key: bool
) -> None:
    names = ("old_history", "history_old", "history")
    expected: dict[str, list[str | None]] = {}
    agreed = True
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for name in names:
            connection.execute(
                f"""CREATE TABLE {name} (id TEXT, memory_id TEXT, old_memory TEXT, event TEXT,
                {"UNIQUE (id)" if has_key else "role TEXT"})"""
            )
            seen = set()
            row = 0
            for _, given_id, values in (place for place in placed if place[0] == name):
                if has_key and given_id in seen:
                    continue
                seen.add(given_id)
                row += 1
                connection.execute(
                    f"INSERT INTO {name} (id, memory_id, old_memory, event) VALUES (?, ?, ?, ?)",
                    (given_id, *values),
                )
                record = expected.setdefault(given_id or f"{name}-row-{row}", list(values))
                agreed &= all(
                    a is None or b is None or a == b for a, b in zip(record, values, strict=True)
                )
                record[:] = [b if a is None else a for a, b in zip(record, values, strict=True)]
                if given_id is None:
                    seen.discard(None)
        if agreed:
            prepare(connection, None)
            assert records(connection, "id, memory_id, old_memory, event") == [
                (key, *values) for key, values in expected.items()
            ]
            check_prepared(connection)
        else:
            with pytest.raises(MigrationError, match="more than once, with different values"):
                prepare(connection, None)


# Refused files


class Refused(NamedTuple):
    script: str
    match: str


REFUSED = {
    "view": Refused("CREATE VIEW history AS SELECT 1 AS id", "history is a view"),
    "virtual": Refused("CREATE VIRTUAL TABLE history USING fts5(id)", "is a virtual table"),
    "foreign": Refused("CREATE TABLE history (id, url, event)", "id, url, event, but no memory_id"),
    "no event": Refused("CREATE TABLE history (id, memory_id)", "but no event"),
    "no rowid": Refused(
        "CREATE TABLE history (id TEXT PRIMARY KEY, memory_id, event) WITHOUT ROWID", "no rowid"
    ),
    "leftover": Refused(
        "CREATE TABLE old_history (id, url)", "old_history has the columns id, url"
    ),
    "messages": Refused("CREATE TABLE messages (id, text)", "messages has the columns id, text"),
    "messages view": Refused("CREATE VIEW messages AS SELECT 1", "messages is a view"),
    "conflict": Refused(
        """
        CREATE TABLE history_old (id, memory_id, event);
        CREATE TABLE history (id, memory_id, event);
        INSERT INTO history_old VALUES ('x', 'm', 'ADD'), ('y', 'm', 'ADD');
        INSERT INTO history VALUES ('x', NULL, 'ADD'), ('y', 'other', 'ADD');
        """,
        "the record y is there more than once",
    ),
    "newer": Refused(
        f"""
        CREATE TABLE async_history_state (one, version, schema_version, indexed_through);
        INSERT INTO async_history_state VALUES (1, {VERSION + 1}, 1, 0);
        """,
        f"version {VERSION + 1}, this async_history knows {VERSION}; upgrade",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_an_unknown_layout_is_refused_and_not_changed(mode: str, name: str, tmp_path: Path) -> None:
    script, match = REFUSED[name]
    path = build(tmp_path / "history.db", f"PRAGMA journal_mode = {mode};{script}")
    before = files(tmp_path)
    for dry_run in (True, False):
        with pytest.raises(MigrationError, match=match) as refused:
            adopt(path, dry_run=dry_run)
        assert str(path) in str(refused.value)
        assert "Nothing was changed." in str(refused.value)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        with pytest.raises(MigrationError, match=match):
            prepare(connection, path)
        with pytest.raises(MigrationError, match=match):
            compatibility_view(connection)
    assert files(tmp_path) == before


def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    with opened(path) as connection:
        check_version(connection)
        prepare(connection, path)
        check_version(connection)
        connection.execute("UPDATE async_history_state SET version = ?", (VERSION + 1,))
        with pytest.raises(MigrationError, match="upgrade async_history"):
            check_version(connection)
        with pytest.raises(MigrationError, match="upgrade async_history"):
            prepare(connection, path)


def test_a_file_of_an_older_version_is_migrated(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    with opened(path) as connection:
        prepare(connection, path)
        connection.execute("UPDATE async_history_state SET version = ?", (VERSION - 1,))
        assert not is_prepared(connection)
        prepare(connection, path)
        check_prepared(connection)


def logged(
    path: Path, **options: Unpack[HistoryOptions]
) -> tuple[list[Erasure], list[StoreOperation]]:
    """Open a file; return its erasures and operations."""

    async def ask() -> tuple[list[Erasure], list[StoreOperation]]:
        async with open_history(path, **options) as history:
            return await history.erasures(), await history.operations()

    return asyncio.run(ask())


def test_the_log_of_erasures_becomes_one_of_operations(tmp_path: Path) -> None:
    """Read unchanged before that, and moved in the transaction that migrates the file."""
    path = tmp_path / "history.db"
    logged(path)
    with opened(path) as connection:
        connection.executescript("""
            DROP TABLE async_history_operations;
            CREATE TABLE async_history_erasures (
                id TEXT PRIMARY KEY, begun_at TEXT NOT NULL, finished_at TEXT,
                reason TEXT NOT NULL, memory_ids TEXT NOT NULL, actor_sha256 TEXT,
                records INTEGER NOT NULL DEFAULT 0, messages INTEGER NOT NULL DEFAULT 0
            );
            INSERT INTO async_history_erasures VALUES
                ('1', '2026-01-01T00:00:00.000000+00:00', '2026-01-02T00:00:00.000000+00:00',
                 'asked', '["m", "n"]', NULL, 2, 3),
                ('2', '2026-01-03T00:00:00.000000+00:00', NULL, 'left', '[]', 'digest', 0, 0);
            UPDATE async_history_state SET version = 6;
        """)
    before, _ = logged(path, migrate=False)
    assert [one.memory_ids for one in before] == [("m", "n"), ()]
    assert [one.actor_sha256 for one in before] == [None, "digest"]
    assert [one.finished_at is None for one in before] == [False, True]
    assert (before[0].records, before[0].messages) == (2, 3)
    erasures, (*_, last) = logged(path)
    assert erasures == before
    assert (last.kind, last.state) == ("migrate", "finished")
    assert last.arguments == {"from_version": 6, "to_version": VERSION}
    with opened(path) as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        assert "async_history_erasures" not in names
        check_prepared(connection)


def test_an_adoption_is_logged_and_a_new_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with opened(path) as connection:
        connection.executescript("""
            CREATE TABLE history (
                id TEXT PRIMARY KEY, memory_id TEXT, prev_value TEXT, new_value TEXT, event TEXT,
                timestamp DATETIME, is_deleted INTEGER
            );
            INSERT INTO history VALUES ('1', 'm', NULL, 'x', 'ADD', '2024-01-01 00:00:00.0', 0);
        """)
    _, (one,) = logged(path)
    assert (one.kind, one.records, one.state) == ("adopt", 1, "finished")
    assert one.arguments == {"tables": ["history (mem0 0.0.2)"], "rewritten": True}
    assert logged(path) == ([], [one])
    assert logged(tmp_path / "new.db") == ([], [])


def test_a_missing_file_and_a_file_of_another_kind_raise_typed_errors(tmp_path: Path) -> None:
    path = tmp_path / "encrypted.db"
    path.write_bytes(bytes(range(256)) * 16)
    before = files(tmp_path)
    with pytest.raises(StorageCorrupt, match="is not a SQLite database"):
        adopt(path)
    with pytest.raises(StorageMissing):
        adopt(tmp_path / "missing.db")
    assert files(tmp_path) == before


def test_a_lock_is_waited_for_no_longer_than_lock_timeout_s(tmp_path: Path) -> None:
    path = build(tmp_path / "history.db", "", V0_0_2)
    with opened(path) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageLocked, match=r"history\.db is locked"):
            adopt(path, lock_timeout_s=0)
    assert not backups(tmp_path)


# The copy, the space, the report


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_a_dry_run_changes_nothing(mode: str, tmp_path: Path) -> None:
    path = build(tmp_path / "history.db", f"PRAGMA journal_mode = {mode}", CONVERSATION)
    before = files(tmp_path)
    planned = adopt(path, dry_run=True)
    assert files(tmp_path) == before
    assert "2 records of history (mem0's conversation branch) would be" in planned.outcome()
    done = adopt(path)
    assert (planned.done, done.done) == (False, True)
    assert "2 records of history (mem0's conversation branch) were" in done.outcome()
    assert done.left_out_columns == planned.left_out_columns == ("history.conversation_id",)
    assert "is used as it is" in adopt(path).outcome()


def test_a_dry_run_leaves_the_log_of_an_open_file_alone(tmp_path: Path) -> None:
    path = build(tmp_path / "history.db", "", V0_0_2)
    with opened(path) as other:
        other.execute("INSERT INTO history (id, memory_id, event) VALUES ('z', 'm', 'ADD')")
        before = files(tmp_path)
        assert adopt(path, dry_run=True).records == len(V0_0_2.rows) + 1
        assert files(tmp_path).keys() == before.keys()
        assert path.read_bytes() == before["history.db"]


def test_a_dry_run_leaves_the_log_of_a_killed_process_alone(tmp_path: Path) -> None:
    path = build(tmp_path / "history.db", "", V0_0_2)
    killed = tmp_path / "killed"
    killed.mkdir()
    with opened(path) as other:
        other.execute("INSERT INTO history (id, memory_id, event) VALUES ('z', 'm', 'ADD')")
        for name in ("history.db", "history.db-wal"):
            shutil.copy(tmp_path / name, killed / name)
    before = files(killed)
    assert adopt(killed / path.name, dry_run=True).records == len(V0_0_2.rows) + 1
    assert {name: files(killed)[name] for name in before} == before


def test_the_backup_is_the_old_file_and_readable_by_its_owner_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = build(tmp_path / "history ?#%.db", "PRAGMA journal_mode = WAL", V0_0_2)
    (tmp_path / "history ?#%.db.before-adoption.unfinished").write_text("of a killed process")
    steps: list[tuple[str, int, int]] = []
    with caplog.at_level(logging.INFO, "async_history"):
        report = adopt(path, on_progress=lambda *step: steps.append(step))
    assert [record.getMessage() for record in caplog.records] == [report.outcome()]
    (copy,) = backups(tmp_path)
    assert report.backup == str(copy)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    with closing(sqlite3.connect(f"{copy.as_uri()}?mode=ro", uri=True)) as connection:
        assert connection.execute("SELECT * FROM history").fetchall() == list(V0_0_2.rows)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert len(list(tmp_path.iterdir())) == 2, "no log next to the copy"
    assert [step for step, _, _ in steps] == ["backup", "copy", "verify", "verify"]
    assert all(done == total for step, done, total in steps if step != "verify")


def test_the_backup_can_be_turned_off(tmp_path: Path) -> None:
    path = build(tmp_path / "history.db", "", V0_0_2)
    assert adopt(path, backup=False).backup is None
    assert not backups(tmp_path)
    assert [row[1:] for row in as_is(path)] == list(V0_0_2.today)


def test_too_little_space_is_an_error_before_any_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build(tmp_path / "history.db", "", V0_0_2)
    before = files(tmp_path)
    needed = path.stat().st_size * 9 // 2 + (1 << 20)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    for dry_run in (True, False):
        with pytest.raises(MigrationError, match=rf"needs {needed:,} bytes .* {needed - 1:,} are"):
            adopt(path, dry_run=dry_run)
    assert files(tmp_path) == before
    adopt(path, backup=False)


def test_the_required_space_is_enough(tmp_path: Path) -> None:
    path = build(tmp_path / "history.db", "", CONVERSATION)
    with opened(path) as connection:
        connection.execute(
            """
            WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 20000)
            INSERT INTO history (id, memory_id, new_memory, event)
            SELECT hex(randomblob(16)), hex(randomblob(16)), hex(zeroblob(40)), 'ADD' FROM n
            """
        )
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        size = path.stat().st_size
        prepare(connection, path)
        taken = sum(file.stat().st_size for file in tmp_path.iterdir()) - size
    assert size * 2 < taken < size * 9 // 2


def test_a_backup_that_cannot_be_made_stops_the_adoption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build(tmp_path / "history.db", "", V0_0_2)

    def fails(*_: object) -> None:
        raise PermissionError("no rights")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(MigrationError, match=r"it could not be copied first \(no rights\)"):
        adopt(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT * FROM history").fetchall() == list(V0_0_2.rows)
    assert not backups(tmp_path)


@pytest.mark.parametrize("failing", ["backup", "copy", "verify"])
def test_a_failure_at_any_step_leaves_the_old_file_unchanged(failing: str, tmp_path: Path) -> None:
    path = build(tmp_path / "history.db", "", V0_0_10, history_old=V0_0_2)

    def fails(step: str, _: int, __: int) -> None:
        if step == failing:
            raise KeyboardInterrupt

    with opened(path) as connection:
        with pytest.raises(KeyboardInterrupt):
            prepare(connection, path, on_progress=fails)
        assert not connection.in_transaction
        assert connection.execute("SELECT * FROM history").fetchall() == list(V0_0_10.rows)
        assert connection.execute("SELECT * FROM history_old").fetchall() == list(V0_0_2.rows)
        assert tables(connection) == {"history", "history_old"}
    assert not backups(tmp_path)
    adopt(path)


class NumericCopy(sqlite3.Connection):
    """Makes the table of copied records with a column that does not keep texts such as 007."""

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if "CREATE TABLE main.async_history_adopting" in sql:
            assert "old_memory TEXT" in sql
            sql = sql.replace("old_memory TEXT", "old_memory INTEGER")
        return super().execute(sql, *parameters)


def test_a_rewrite_that_differs_is_discarded(tmp_path: Path) -> None:
    path = build(tmp_path / "history.db", "", V0_0_2)
    with opened(path, NumericCopy) as connection:
        connection.execute("UPDATE history SET prev_value = '007' WHERE id = 'a2'")
        with pytest.raises(MigrationError, match=r"of 3 records, 2 were .* and a2 was not"):
            prepare(connection, path)
        assert records(connection, "prev_value") == [(None,), ("007",), ("likes coffee",)]


def test_long_tables_are_copied_in_parts(tmp_path: Path) -> None:
    path = build(tmp_path / "history.db", "", V0_0_2)
    seen: list[int] = []
    with opened(path) as connection:
        connection.execute("DELETE FROM history")
        numbers = [n * n - 50 for n in range(22)]
        for number in numbers:
            connection.execute(
                "INSERT INTO history (rowid, id, memory_id, event) VALUES (?, ?, 'm', 'ADD')",
                (number, f"id {number}"),
            )
        prepare(connection, path, on_progress=lambda _, done, __: seen.append(done), copied_rows=7)
        assert records(connection, "rowid, id") == [(n, f"id {n}") for n in numbers]
    assert seen[-6:] == [7, 14, 21, 22, 0, 22]


# Other users of the same file


def test_plain_mem0_works_on_an_adopted_file(tmp_path: Path) -> None:
    path = build(tmp_path / "history.db", "", V0_0_2)
    adopt(path)
    manager = plain_mem0().SQLiteManager(str(path))
    with opened(path) as connection, closing(manager):
        assert is_prepared(connection), "opening changes nothing"
        assert sorted(manager.get_history("m1")[0]) == sorted(COLUMNS)
        assert [entry["new_memory"] for entry in manager.get_history("m1")] == [
            "likes coffee",
            "likes tea",
            None,
        ], "mem0 sorts by created_at"
        manager.add_history("m2", None, "theirs", "ADD", created_at="2026-01-01T00:00:00Z")
        manager.save_messages([{"role": "user", "content": "hi"}], "user_id=u")
        assert is_prepared(connection), "a few rows may wait to be indexed"
        for number in range(TAIL_ROWS):
            manager.add_history("m3", None, str(number), "ADD")
        assert not is_prepared(connection)
        assert not prepare(connection, path).rewritten
        check_prepared(connection)
        assert records(connection, "new_memory")[-TAIL_ROWS - 1] == ("theirs",)

        manager.reset()
        assert not is_prepared(connection)
        assert compatibility_view(connection) is not None
        prepare(connection, path)
        check_prepared(connection)
        assert records(connection) == []

        manager.reset()
        with closing(plain_mem0().SQLiteManager(str(path))) as another:
            another.add_history("m1", None, "after", "ADD")
        assert prepare(connection, path).records == 1
        check_prepared(connection)
    assert len(backups(tmp_path)) == 1


def test_removals_and_renames_by_others_are_noticed(tmp_path: Path) -> None:
    path = build(tmp_path / "history.db", "", TODAY)
    adopt(path)
    with opened(path) as connection, closing(sqlite3.connect(path)) as other:
        for change in (
            "DELETE FROM history WHERE id = 't2'",
            "DELETE FROM history WHERE id = 't1'",
            "INSERT INTO history (id, memory_id) VALUES ('again', 'm9')",
            "UPDATE history SET memory_id = 'm8' WHERE id = 'again'",
            "DELETE FROM history",
        ):
            with other:
                other.execute(change)
            prepare(connection, path)
            assert is_prepared(connection)
            check_levels(connection)
            check_index(connection)


def test_vacuum_keeps_the_rowids_and_the_index_is_rebuilt(tmp_path: Path) -> None:
    path = build(tmp_path / "history.db", "", TODAY)
    with opened(path) as connection, closing(sqlite3.connect(path)) as other:
        prepare(connection, path)
        connection.execute("DELETE FROM history WHERE rowid = 2")
        prepare(connection, path)
        rows = records(connection, "rowid, *")
        schema = connection.execute("PRAGMA schema_version").fetchone()
        other.execute("VACUUM")
        assert records(connection, "rowid, *") == rows
        assert connection.execute("PRAGMA schema_version").fetchone() != schema
        assert not is_prepared(connection)
        assert not prepare(connection, path).rewritten
        check_prepared(connection)


def forked(child: Callable[[], None]) -> int:
    """Run something in a child process, and return the child's id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        child()
        status = 0
    finally:
        os._exit(status)


def ending(pid: int) -> int:
    """Wait for a child: its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


@pytest.mark.faults
@pytest.mark.parametrize(
    ("layouts", "expected"),
    [
        ({"history_old": V0_0_2, "history": V0_0_10}, V0_0_2.today + V0_0_10.today),
        ({"history": CONVERSATION}, CONVERSATION.today),
        ({"history": TODAY}, TODAY.today),
    ],
    ids=["merged", "rewritten", "indexed"],
)
def test_killed_at_every_statement(
    layouts: dict[str, Layout],
    expected: tuple[Row, ...],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """With --nightly at every statement; else at every fourth, from a random first one."""
    every = 1 if request.config.getoption("--nightly") else 4
    live = tmp_path / "live"
    live.mkdir()
    path = build(live / "history.db", "PRAGMA journal_mode = WAL", **layouts)
    snapshots = Snapshots(live, tmp_path, every=every, skip=random.randrange(every))  # noqa: S311 - random choices
    with opened(path) as connection:
        connection.set_trace_callback(snapshots.take)
        prepare(connection, path, on_progress=snapshots.take)
        connection.set_trace_callback(None)
    assert len(snapshots.taken) > 20 // every
    for folder in (*snapshots.taken, live):
        path = folder / "history.db"
        with opened(path) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            report = prepare(connection, path)
            assert report.rewritten == (folder != live and TODAY not in layouts.values())
            assert records(connection) == list(expected)
            assert tables(connection) == {"history", "messages"}
            check_prepared(connection)
        assert not list(folder.glob("*.unfinished*"))


def test_a_file_adopted_while_waiting_is_not_adopted_again(tmp_path: Path) -> None:
    path = build(tmp_path / "history.db", "", V0_0_2)

    def adopt_first(statement: str) -> None:
        if statement == "BEGIN IMMEDIATE":
            connection.set_trace_callback(None)
            adopt(path)

    with opened(path) as connection:
        connection.set_trace_callback(adopt_first)
        assert prepare(connection, path) == AdoptionReport(path=str(path), done=True)
        assert not connection.in_transaction
        check_prepared(connection)


@pytest.mark.subprocess
@needs_fork
def test_eight_processes_at_once_adopt_a_file_once(tmp_path: Path) -> None:
    path = build(tmp_path / "history.db", "", V0_0_10, history_old=V0_0_2)
    start, go = os.pipe()

    def process() -> None:
        os.close(go)
        os.read(start, 1)
        with opened(path) as connection:
            prepare(connection, path)
            assert is_prepared(connection)

    children = [forked(process) for _ in range(8)]
    os.close(start)
    os.close(go)
    assert [ending(child) for child in children] == [0] * 8
    with opened(path) as connection:
        assert records(connection) == list(V0_0_2.today + V0_0_10.today)
        check_prepared(connection)
    assert len(backups(tmp_path)) == 1
