"""Changes that others make to a file: every way to find records is compared with a scan."""

import asyncio
import re
import shutil
import sqlite3
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from async_history import HistoryManager, open_history
from async_history._sqlite import opening
from async_history._sqlite.connecting import errors
from async_history._sqlite.index.validity import HISTORY_TRIGGERS, INDEX_TABLES
from async_history._sqlite.schema import adopt as adoption
from async_history._sqlite.schema.versions import install_statements
from tests.sqlite.foreign_changes import CHANGES, IN_PLACE, ROWS, moment, raw
from tests.subprocesses.checks import check_index, check_sound, looking

pytestmark = pytest.mark.once


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
    """A folder with a history that has a gap, an older copy of it, and another history."""
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
    """Compare every way to find records with a scan."""
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
    """Open a file, use it in every way, compare with a scan, and check the file."""
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
        with suppress(sqlite3.Error):  # some changes can't follow others
            CHANGES[name](path, made)
    asyncio.run(check(path))


def test_tables_and_triggers_are_those_of_the_numbered_sql() -> None:
    script = ";".join(install_statements())
    tables = set(re.findall(r"CREATE TABLE IF NOT EXISTS (async_history_\w+)", script))
    data = {f"async_history_{name}" for name in ("operations", "owners", "details", "erased")}
    assert tables - data == set(INDEX_TABLES)
    on_history = re.findall(r"CREATE TRIGGER IF NOT EXISTS (\w+)\s[^;]*? ON history\b", script)
    assert set(on_history) == set(HISTORY_TRIGGERS)


async def test_an_erased_actor_of_a_replaced_history_is_in_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If SQLite does not overwrite freed pages: the index still had the actor's entries."""
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
