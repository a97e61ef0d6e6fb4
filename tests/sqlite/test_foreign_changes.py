"""Rows, tables, triggers and side tables that come from elsewhere than the index believes.

Each change is made to a file by other means than ours; then every way to find records is held
against a scan of the table.
"""

import asyncio
import re
import shutil
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from async_history import HistoryManager, open_history
from async_history._sqlite import errors, opening
from async_history._sqlite.index.validity import HISTORY_TRIGGERS, INDEX_TABLES, ROWID_LIMIT
from async_history._sqlite.schema import adopt as adoption
from async_history._sqlite.schema.versions import install_statements
from tests.subprocesses.checks import check_index, check_sound, looking

pytestmark = pytest.mark.once

START = datetime(2026, 1, 1, tzinfo=UTC)
ROWS = 1_100
"""More than two spans, so that times are noted too."""
TEN = (
    "id, memory_id, old_memory, new_memory, event, created_at, updated_at, is_deleted,"
    " actor_id, role"
)
ROW = f"""
INSERT OR REPLACE INTO history (rowid, {TEN}) VALUES (?, ?, ?, NULL, ?, 'ADD', ?, NULL, 0, ?, NULL)
"""
SOME_TABLES = tuple(table for table in INDEX_TABLES if table != "async_history_state")


def moment(number: int) -> datetime:
    return START + timedelta(minutes=number)


@contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA cell_size_check = ON")
        yield connection


async def fill(history: HistoryManager, first: int, count: int) -> None:
    await history.batch_add_history(
        [
            {
                "id": f"{number}",
                "memory_id": f"m{number % 7}",
                "new_memory": f"secret {number}",
                "event": "ADD",
                "created_at": moment(number),
                "actor_id": f"a{number % 3}",
            }
            for number in range(first, first + count)
        ]
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a history that has a gap, and `older.db`, an older copy of it."""
    folder = tmp_path_factory.mktemp("made")

    async def make() -> None:
        async with open_history(folder / "h.db") as history:
            await fill(history, 0, ROWS)
            await history.add_history("tail", None, "x", "ADD")
        shutil.copy(folder / "h.db", folder / "older.db")
        async with open_history(folder / "h.db") as history:
            await history.prune(older_than=moment(70), keep_last=0)
            await fill(history, ROWS, ROWS)
        async with open_history(folder / "other.db") as history:
            await fill(history, 5, ROWS)

    asyncio.run(make())
    return folder


# Changes: each takes the file and the folder it came from.

Change = Callable[[Path, Path], None]


def dumped_and_restored(path: Path, made: Path) -> None:
    copy = path.with_name("restored.db")
    with raw(path) as source, raw(copy) as target:
        target.executescript("\n".join(source.iterdump()))
    replace(path, copy)


def dumped_with_other_names(path: Path, made: Path) -> None:
    """No rowid moves between the two dumps; the keys of the memories do."""
    dumped_and_restored(path, made)
    run("UPDATE history SET memory_id = 'm' || (8 - substr(memory_id, 2))")(path, made)
    dumped_and_restored(path, made)


def cloned(path: Path, made: Path) -> None:
    """As `.clone` does it: the schema first, then the rows of each table."""
    copy = path.with_name("cloned.db")
    with raw(path) as source, raw(copy) as target:
        objects = source.execute(
            "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL"
        ).fetchall()
        target.execute("BEGIN")
        for kind, name, sql in sorted(objects, key=lambda one: one[0] != "table"):
            if kind == "trigger":
                continue
            target.execute(sql)
            if kind == "table":
                rows = source.execute(f"SELECT * FROM {name}").fetchall()
                marks = ", ".join("?" * len(rows[0])) if rows else ""
                if rows:
                    target.executemany(f"INSERT INTO {name} VALUES ({marks})", rows)
        for kind, _, sql in objects:
            if kind == "trigger":
                target.execute(sql)
        target.execute("COMMIT")
    replace(path, copy)


def backed_up(path: Path, made: Path) -> None:
    copy = path.with_name("backup.db")
    with raw(path) as source, raw(copy) as target:
        source.backup(target)
    replace(path, copy)


def vacuumed_into(path: Path, made: Path) -> None:
    copy = path.with_name("small.db")
    with raw(path) as connection:
        connection.execute("VACUUM INTO ?", (str(copy),))
    replace(path, copy)


def replace(path: Path, copy: Path) -> None:
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    copy.replace(path)


def run(script: str) -> Change:
    def change(path: Path, made: Path) -> None:
        with raw(path) as connection:
            connection.execute("ATTACH ? AS older", (str(made / "older.db"),))
            connection.execute("ATTACH ? AS other", (str(made / "other.db"),))
            connection.executescript(script)

    change.__name__ = script.split("--")[-1].strip()
    return change


def rebuilt(path: Path, made: Path) -> None:
    """As SQLite's documentation says to change a table, in twelve steps."""
    with raw(path) as connection:
        connection.execute("BEGIN")
        triggers = connection.execute(
            "SELECT sql FROM sqlite_master WHERE type = 'trigger' AND lower(tbl_name) = 'history'"
        ).fetchall()
        connection.execute(
            "CREATE TABLE new_history (id TEXT PRIMARY KEY, memory_id TEXT, old_memory TEXT,"
            " new_memory TEXT, event TEXT, created_at DATETIME, updated_at DATETIME,"
            " is_deleted INTEGER, actor_id TEXT, role TEXT)"
        )
        connection.execute(f"INSERT INTO new_history SELECT {TEN} FROM history ORDER BY id")
        connection.execute("DROP TABLE history")
        connection.execute("ALTER TABLE new_history RENAME TO history")
        for (sql,) in triggers:
            connection.execute(sql)
        connection.execute("COMMIT")


def written_between(path: Path, made: Path) -> None:
    """Rows whose rowids are given: in a gap, before all, over one that is there."""
    with raw(path) as connection:
        for rowid in (-5, 0, 77, 78, ROWS + 5):
            values = (rowid, f"new {rowid}", "m1", "secret", moment(3).isoformat(), "a1")
            connection.execute(ROW, values)


def written_at_the_ends(path: Path, made: Path) -> None:
    with raw(path) as connection:
        for rowid in (ROWID_LIMIT, (1 << 63) - 1, -(1 << 63)):
            values = (rowid, f"new {rowid}", "m1", "secret", moment(3).isoformat(), "a1")
            connection.execute(ROW, values)
        connection.execute(
            f"INSERT INTO history ({TEN}) SELECT 'at random', 'm2',"
            " NULL, 'secret', 'ADD', '2026-01-01', NULL, 0, 'a2', NULL"
        )


def side_table_restored(table: str, source: str) -> Change:
    return run(
        f"DELETE FROM main.{table}; INSERT INTO main.{table} SELECT * FROM {source}.{table}"
        f" -- {table} of {source}"
    )


OTHERS_ADD = (
    f"INSERT INTO history ({TEN}) SELECT id || ' again', {TEN[4:]}"
    " FROM history WHERE rowid % 50 = 0"
)
IN_PLACE: dict[str, Change] = {
    "vacuum": run("VACUUM"),
    "vacuum after removals": run("DELETE FROM history WHERE rowid % 3 = 0; VACUUM"),
    "rebuilt": rebuilt,
    "archived": run("ALTER TABLE history RENAME TO history_2025"),
    "archived, and back": run(
        "ALTER TABLE history RENAME TO away; DELETE FROM away WHERE rowid % 5 = 0;"
        "INSERT INTO away (id, memory_id, new_memory, event) VALUES ('n', 'm1', 'secret', 'ADD');"
        "ALTER TABLE away RENAME TO history"
    ),
    "another table under the name": run(
        "ALTER TABLE history RENAME TO away; CREATE TABLE history (id TEXT PRIMARY KEY, memory_id"
        " TEXT, old_memory TEXT, new_memory TEXT, event TEXT, created_at DATETIME, updated_at"
        " DATETIME, is_deleted INTEGER, actor_id TEXT, role TEXT);"
        "INSERT INTO history SELECT * FROM away WHERE rowid > 100 ORDER BY id"
    ),
    "dropped, made again with our trigger's name": run(
        "CREATE TABLE kept AS SELECT * FROM history ORDER BY id; DROP TABLE history;"
        "CREATE TABLE history (id TEXT PRIMARY KEY, memory_id TEXT, old_memory TEXT, new_memory"
        " TEXT, event TEXT, created_at DATETIME, updated_at DATETIME, is_deleted INTEGER,"
        " actor_id TEXT, role TEXT); INSERT INTO history SELECT * FROM kept;"
        + "".join(
            f"CREATE TRIGGER {name} AFTER DELETE ON history BEGIN SELECT 1; END;"
            for name in HISTORY_TRIGGERS
        )
    ),
    "others add": run(OTHERS_ADD),
    "newest go, others add": run(
        f"DELETE FROM history WHERE rowid > (SELECT max(rowid) - 300 FROM history); {OTHERS_ADD}"
    ),
    "newest replaced without a trigger": run(
        "REPLACE INTO history (rowid, id, memory_id, new_memory, event, actor_id)"
        " SELECT max(rowid), 'x', 'm3', 'secret', 'ADD', 'a2' FROM history"
    ),
    "newest gone without a trigger": run(
        "UPDATE OR REPLACE history SET id = (SELECT id FROM history ORDER BY rowid DESC LIMIT 1)"
        f" WHERE rowid = (SELECT min(rowid) FROM history); {OTHERS_ADD}"
    ),
    "written between": written_between,
    "restored between": run(
        f"INSERT OR IGNORE INTO history (rowid, {TEN}) SELECT rowid, {TEN} FROM older.history"
    ),
    "rows moved": run("UPDATE history SET rowid = rowid + 1000000"),
    "some rows moved": run("UPDATE history SET rowid = -rowid WHERE rowid % 7 = 3"),
    "changed": run(
        "UPDATE history SET memory_id = 'm1' WHERE rowid % 100 = 0;"
        "UPDATE history SET actor_id = 'a1' WHERE rowid % 90 = 0;"
        "UPDATE history SET created_at = '2020-01-01' WHERE rowid % 80 = 0;"
        "UPDATE history SET id = id || '+' WHERE rowid = (SELECT max(rowid) FROM history)"
    ),
    "emptied": run("DELETE FROM history"),
    "emptied, others add": run(
        f"DELETE FROM history; INSERT INTO history SELECT {TEN} FROM older.history"
    ),
}  # fmt: skip
"""Changes that every statement must notice, also where a manager has the file open."""

AT_OPENING: dict[str, Change] = {
    "dumped": dumped_and_restored,
    "dumped, with other names": dumped_with_other_names,
    "cloned": cloned,
    "backed up": backed_up,
    "vacuumed into another": vacuumed_into,
    "a trigger gone for a while": run(
        "DROP TRIGGER async_history_memory_renamed; DROP TRIGGER async_history_row_between;"
        "UPDATE history SET memory_id = 'm1' WHERE rowid % 100 = 0;"
    ),
    "our triggers on another table": run(
        "DROP TRIGGER async_history_last_deleted; CREATE TABLE t (x);"
        "CREATE TRIGGER async_history_last_deleted AFTER DELETE ON t BEGIN SELECT 1; END"
    ),
    "a view of a side table's name": run(
        "DROP TABLE async_history_strays; CREATE VIEW async_history_strays AS SELECT 1 AS position"
    ),
    "the state is gone": run("DELETE FROM async_history_state"),
    "no side tables": run("; ".join(f"DROP TABLE {table}" for table in INDEX_TABLES)),
    "state older": side_table_restored("async_history_state", "older"),
    "state of another file": side_table_restored("async_history_state", "other"),
    "all but the state older": run(
        "; ".join(
            f"DELETE FROM main.{table}; INSERT INTO main.{table} SELECT * FROM older.{table}"
            for table in SOME_TABLES
        )
    ),
    "all of another file": run(
        "; ".join(
            f"DELETE FROM main.{table}; INSERT INTO main.{table} SELECT * FROM other.{table}"
            for table in INDEX_TABLES
        )
    ),
    "written at the ends": written_at_the_ends,
    **{
        f"{table} {how}": change
        for table in SOME_TABLES
        if table != "async_history_strays"
        for how, change in {
            "older": side_table_restored(table, "older"),
            "of another file": side_table_restored(table, "other"),
            "emptied": run(f"DELETE FROM {table}"),
        }.items()
    },
}
CHANGES = IN_PLACE | AT_OPENING


def scanned(path: Path) -> list[dict[str, Any]]:
    with looking(path) as connection:
        connection.row_factory = sqlite3.Row
        rows = connection.execute(
            "SELECT id, memory_id, actor_id, new_memory FROM history ORDER BY rowid"
        )
        return [dict(row) for row in rows]


def ids_by(rows: list[dict[str, Any]], column: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        found[row[column]].append(row["id"])
    return found


async def check_reads(history: HistoryManager, path: Path) -> None:
    """Hold every way to find records against a scan."""
    rows = scanned(path)
    everything = [record async for record in history.query_history(page_size=5_000)]
    assert [record.id for record in everything] == [row["id"] for row in rows]
    of_memories = ids_by(rows, "memory_id")
    for memory_id in {f"m{n}" for n in range(9)} | {"tail"}:
        found = [record.id for record in await history.get_history(memory_id)]
        assert found == of_memories[memory_id], memory_id
    of_actors = ids_by(rows, "actor_id")
    for actor_id in ("a0", "a1", "a2", ""):
        asked = history.query_history(actor_id=actor_id, page_size=5_000)
        assert [record.id async for record in asked] == of_actors[actor_id], actor_id
        assert await history.count_history(actor_id=actor_id) == len(of_actors[actor_id])
    times = [(record.id, at) for record in everything if (at := record.occurred_at) is not None]
    for first, end in ((0, 50), (800, 840), (-(10**7), 10), (2 * ROWS - 50, 10**6)):
        since, until = moment(first), moment(end)
        wanted = [record_id for record_id, at in times if since <= at < until]
        asked = history.query_history(since=since, until=until, page_size=5_000)
        assert [record.id async for record in asked] == wanted, (first, end)


async def check(path: Path) -> None:
    """Open a file, hold all that is done with it against a scan, and look at what is left."""
    before = len(scanned(path)) if has_history(path) else 0
    async with open_history(path) as history:
        await check_reads(history, path)
        assert len(scanned(path)) == before
        await history.add_history("m1", None, "secret", "ADD", actor_id="a1")
        await fill(history, 10**6, 20)
        await history.erase(memory_ids=["m1"], reason="asked", vacuum=False)
        await history.erase(actor_id="a2", reason="asked", vacuum=False)
        rows = scanned(path)
        assert not [r for r in rows if r["memory_id"] == "m1" and r["new_memory"]]
        assert not [r for r in rows if r["actor_id"] == "a2"]
        await check_reads(history, path)
        await history.prune(older_than=moment(900), keep_last=0)
        assert not [
            record
            async for record in history.query_history(page_size=5_000)
            if (at := record.occurred_at) is not None and at < moment(900)
        ]
        await check_reads(history, path)
    with looking(path) as connection:
        check_sound(connection)
        check_index(connection)


def has_history(path: Path) -> bool:
    with looking(path) as connection:
        return bool(
            connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'history'").fetchall()
        )


def fresh(made: Path, folder: Path) -> Path:
    path = folder / "h.db"
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    shutil.copy(made / "h.db", path)
    return path


@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_before_opening(name: str, made: Path, tmp_path: Path) -> None:
    path = fresh(made, tmp_path)
    CHANGES[name](path, made)
    await check(path)


@pytest.mark.parametrize("name", IN_PLACE)
async def test_a_change_while_it_is_open(name: str, made: Path, tmp_path: Path) -> None:
    path = fresh(made, tmp_path)
    async with open_history(path) as history:
        await history.get_history("m1")
        await history.add_history("m2", None, "secret", "ADD", actor_id="a1")
        IN_PLACE[name](path, made)
        if has_history(path):
            await check_reads(history, path)
        await history.add_history("m1", None, "secret", "ADD", actor_id="a1")
        await check_reads(history, path)
        await fill(history, 10**6, 600)
        await check_reads(history, path)
    async with open_history(path) as history:
        await check_reads(history, path)
    with looking(path) as connection:
        check_sound(connection)
        check_index(connection)


@settings(
    max_examples=3,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(names=st.lists(st.sampled_from(sorted(CHANGES)), min_size=2, max_size=4))
@example(names=["dumped", "others add", "dumped"])
@example(names=["newest go, others add", "rows moved", "changed"])
def test_several_changes(names: list[str], made: Path, tmp_path: Path) -> None:
    path = fresh(made, tmp_path)
    for name in names:
        with suppress(sqlite3.Error):  # some can't follow others
            CHANGES[name](path, made)
    asyncio.run(check(path))


def test_the_names_are_those_of_the_numbered_sql() -> None:
    script = ";".join(install_statements())
    tables = set(re.findall(r"CREATE TABLE IF NOT EXISTS (async_history_\w+)", script))
    data = {f"async_history_{name}" for name in ("operations", "owners", "details", "erased")}
    assert tables - data == set(INDEX_TABLES)
    on_history = re.findall(r"CREATE TRIGGER IF NOT EXISTS (\w+)\s[^;]*? ON history\b", script)
    assert set(on_history) == set(HISTORY_TRIGGERS)


async def test_an_actor_of_a_replaced_history_is_left_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where SQLite does not overwrite what it frees; the index still has the actor's entries."""
    connected = errors.connect

    def without_overwriting(*given: Any) -> sqlite3.Connection:
        connection = connected(*given)
        connection.execute("PRAGMA secure_delete = OFF")
        return connection

    for module in (opening, adoption):
        monkeypatch.setattr(module, "connect", without_overwriting)
    path, ann = tmp_path / "h.db", "ann-4711@example.com"
    async with open_history(path) as history:
        await history.batch_add_history(
            [{"memory_id": "m", "event": "ADD", "actor_id": ann} for _ in range(9_000)]
        )
        with raw(path) as connection:
            connection.execute("PRAGMA secure_delete = OFF")
            (table,) = connection.execute(
                "SELECT sql FROM sqlite_master WHERE name = 'history'"
            ).fetchone()
            connection.executescript(f"DROP TABLE history; {table}")
        report = await history.erase(actor_id=ann, reason="asked")
        assert report.remains == ()
        left = [file.name for file in tmp_path.iterdir() if ann.encode() in file.read_bytes()]
        assert left == []
