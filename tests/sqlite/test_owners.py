"""Owners, contexts and causes in a file that others use too, or of an earlier version."""

import asyncio
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from mem0.memory.storage import SQLiteManager

from async_history import (
    Event,
    HistoryManager,
    HistoryRecord,
    Owner,
    OwnerConflict,
    check_history,
    open_history,
)
from async_history._core.reading.filters import Filter
from async_history._core.records.recording import INDEXED_CAUSES
from async_history._core.writing.erased_names import until_later
from async_history._sqlite.index import THROUGH_INDEX, levels, owners
from async_history._sqlite.index.levels import TAIL_ROWS
from async_history._sqlite.reading.filters import in_order, parameters, select, sources
from async_history._sqlite.schema.adopt import prepare
from async_history.sqlite import SQLiteHistoryManager
from tests.sqlite.foreign_changes import CHANGES, IN_PLACE, Change, raw, run
from tests.subprocesses.checks import check_index, check_sound, looking
from tests.support.questions import subsets
from tests.support.snapshots import Snapshots

pytestmark = pytest.mark.once

START = datetime(2026, 1, 1, tzinfo=UTC)
ROWS = 700
ALICE = Owner(user_id="alice")
OWNERS = {
    f"m{n}": Owner(user_id=f"u{n % 3}", run_id="r" if n % 2 else None) if n else None
    for n in range(7)
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.db"


def change(number: int) -> dict[str, Any]:
    return {
        "id": f"{number}",
        "memory_id": f"m{number % 7}",
        "new_memory": f"text {number}",
        "event": "ADD",
        "created_at": START + timedelta(minutes=number),
        "actor_id": f"a{number % 3}",
        "context": {"n": number},
        "cause": {"request_id": f"q{number % 50}", "reason": f"why {number % 4}"},
    }


async def fill(history: HistoryManager, first: int, count: int) -> None:
    """Write in batches of many sizes; some records name their memory's owner, some do not."""
    sizes = (1, 3, 40, 200)
    done = 0
    while done < count:
        size = min(sizes[done % 4], count - done)
        changes = [change(first + done + n) for n in range(size)]
        for n, one in enumerate(changes):
            if done < 20 or n % 2:
                one["owner"] = OWNERS[one["memory_id"]]
        await history.batch_add_history(changes)
        done += size


async def everything(history: HistoryManager, **asked: Any) -> list[HistoryRecord]:
    return [record async for record in history.query_history(page_size=5_000, **asked)]


async def check_reads(history: HistoryManager) -> list[HistoryRecord]:
    """Compare every way to find records by owner and cause with a scan of all records."""
    seen = await everything(history)
    by_memory: dict[str, list[HistoryRecord]] = {}
    for record in seen:
        of_memory = by_memory.setdefault(record.memory_id, [])
        of_memory.append(record)
        assert of_memory[0].owner == record.owner
    for user_id, size in (("u0", 5_000), ("u1", 50), ("u2", 500), ("nobody", 5_000)):
        expected = [r for r in seen if r.owner is not None and r.owner.user_id == user_id]
        found = history.query_history(user_id=user_id, page_size=size)
        assert [record async for record in found] == expected, user_id
        newest = history.query_history(user_id=user_id, page_size=size, order="newest")
        assert [record async for record in newest] == expected[::-1]
        assert await history.count_history(user_id=user_id) == len(expected)
        expected = [r for r in expected if r.owner is not None and r.owner.run_id == "r"]
        assert await everything(history, user_id=user_id, run_id="r") == expected
    for number in (3, 17, 49):
        cause = {"request_id": f"q{number}"}
        expected = [r for r in seen if (r.cause or {}).get("request_id") == cause["request_id"]]
        assert await everything(history, cause=cause) == expected
        assert await history.count_history(cause=cause) == len(expected)
    for memory_id in OWNERS:
        read = await history.get_history(memory_id)
        assert [(r, r.owner) for r in read] == [(r, r.owner) for r in by_memory.get(memory_id, [])]
    return seen


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a history that has a gap, an older copy of it, and another history."""
    folder = tmp_path_factory.mktemp("made")

    async def make() -> None:
        async with open_history(folder / "h.db") as history:
            await fill(history, 0, ROWS)
        shutil.copy(folder / "h.db", folder / "older.db")
        async with open_history(folder / "h.db") as history:
            await history.prune(older_than=START + timedelta(minutes=40), keep_last=0)
            await fill(history, ROWS, ROWS)
            await check_reads(history)
        async with open_history(folder / "other.db") as history:
            await fill(history, 5, ROWS)

    asyncio.run(make())
    return folder


def fresh(made: Path, folder: Path) -> Path:
    return Path(shutil.copy(made / "h.db", folder / "h.db"))


LOSES_OWNERS = ("archived", "emptied", "emptied, others add")
MIXES_MEMORIES = ("dumped, with other names", "changed")
LOSES_DETAILS = ("newest gone without a trigger", "restored between", "emptied, others add")
OWN_CHANGES: dict[str, Change] = {
    "dropped and made again": run(
        "CREATE TABLE kept AS SELECT * FROM history; DROP TABLE history;"
        "CREATE TABLE history (id TEXT PRIMARY KEY, memory_id TEXT, old_memory TEXT, new_memory"
        " TEXT, event TEXT, created_at DATETIME, updated_at DATETIME, is_deleted INTEGER,"
        " actor_id TEXT, role TEXT); INSERT INTO history SELECT * FROM kept;"
    ),
    "a memory emptied": run("DELETE FROM history WHERE memory_id = 'm3'"),
    "ids changed": run("UPDATE history SET id = id || '+' WHERE rowid % 3 = 0"),
}
OF_TABLES = tuple(name for name in CHANGES if name.split()[0].startswith("async_history"))
BEFORE = {name: one for name, one in CHANGES.items() if name not in OF_TABLES} | OWN_CHANGES


async def check(history: HistoryManager, name: str) -> None:
    seen = await check_reads(history)
    for record in seen:
        if name in LOSES_OWNERS:
            assert record.owner is None, record
        elif name not in MIXES_MEMORIES:
            assert record.owner == OWNERS[record.memory_id], record
        if record.id.isdigit() and name not in LOSES_DETAILS:
            assert record.context == {"n": int(record.id)}


@pytest.mark.parametrize("name", BEFORE)
async def test_a_change_before_opening(name: str, made: Path, tmp_path: Path) -> None:
    path = fresh(made, tmp_path)
    BEFORE[name](path, made)
    async with open_history(path) as history:
        await check(history, name)
        await fill(history, 10**6, 300)
        await check_reads(history)
    with looking(path) as connection:
        check_sound(connection)
        check_index(connection)


@pytest.mark.parametrize("name", IN_PLACE | OWN_CHANGES)
async def test_a_change_while_it_is_open(name: str, made: Path, tmp_path: Path) -> None:
    path = fresh(made, tmp_path)
    async with open_history(path) as history:
        await history.get_history("m1")
        BEFORE[name](path, made)
        if name != "archived":
            await check(history, name)
        await fill(history, 10**6, 300)
        await check_reads(history)
    with looking(path) as connection:
        check_sound(connection)
        check_index(connection)


async def test_a_memory_that_others_emptied_has_no_owner(path: Path) -> None:
    async with open_history(path) as history:
        await history.add_history("m", None, "x", "ADD", owner=ALICE, cause={"run_id": "1"})
        await history.add_history("n", None, "x", "ADD", owner=ALICE)
        with raw(path) as connection:
            connection.execute("DELETE FROM history WHERE memory_id = 'm'")
        assert (await history.add_history("m", None, "y", "ADD")).owner is None
        bob = await history.add_history("m", "y", "z", "UPDATE", owner={"user_id": "bob"})
        assert bob.owner == Owner(user_id="bob")
        assert [r.memory_id for r in await everything(history, user_id="alice")] == ["n"]
        assert await everything(history, cause={"run_id": "1"}) == []
        with raw(path) as connection:
            tables = ("owners", "details", "bereft")
            counts = [
                connection.execute(f"SELECT count(*) FROM async_history_{table}").fetchone()[0]
                for table in tables
            ]
        assert counts == [2, 3, 0]


class TestPlainMem0:
    @pytest.mark.parametrize("many", [1, TAIL_ROWS + 40])
    async def test_its_records_have_the_owner(self, path: Path, many: int) -> None:
        async with open_history(path) as history:
            await history.add_history("m", None, "x", "ADD", owner=ALICE, cause={"run_id": "1"})
            with closing(SQLiteManager(str(path))) as mem0:
                for n in range(many):
                    mem0.add_history("m", "x", f"by mem0 {n}", "UPDATE")
                    mem0.add_history("other", None, f"by mem0 {n}", "ADD")
            for _ in range(2):
                found = await everything(history, user_id="alice")
                assert len(found) == await history.count_history(user_id="alice") == many + 1
                assert {record.owner for record in await history.get_history("m")} == {ALICE}
                assert found == await history.get_history("m")
                seen = await everything(history)
                assert {r.memory_id: r.owner for r in seen} == {"m": ALICE, "other": None}
                latest = await history.add_history("other", None, "y", "UPDATE")
                assert latest.owner is None
            assert (await history.update_history("m", "z")).owner == ALICE

    @pytest.mark.parametrize("is_read_first", [False, True])
    async def test_its_reset_forgets_owners(self, path: Path, is_read_first: bool) -> None:
        async with open_history(path) as history:
            first = await history.add_history("m", None, "x", "ADD", owner=ALICE)
            with closing(SQLiteManager(str(path))) as mem0:
                mem0.reset()
            with closing(SQLiteManager(str(path))) as mem0:
                mem0.add_history("m", None, "y", "ADD")
                mem0.add_history("m", "y", "z", "UPDATE")
            if is_read_first:
                read = await history.get_history("m")
                assert [(r.new_memory, r.owner) for r in read] == [("y", None), ("z", None)]
                assert await everything(history, user_id="alice") == []
            again = await history.add_history("m", "z", "w", "UPDATE", id=first.id)
            assert again.owner is None
            bob = Owner(user_id="bob")
            assert (await history.add_history("m", "w", "v", "UPDATE", owner=bob)).owner == bob
            assert len(await everything(history, user_id="bob")) == 4


async def test_two_writers_give_different_owners(path: Path) -> None:
    """For each memory one owner wins, and the other is refused."""

    async def give(history: HistoryManager, user_id: str) -> set[str]:
        given = await asyncio.gather(
            *(
                history.add_history(f"m{n}", None, "x", "ADD", owner={"user_id": user_id})
                for n in range(150)
            ),
            return_exceptions=True,
        )
        for one in given:
            assert isinstance(one, HistoryRecord | OwnerConflict), one
        return {one.memory_id for one in given if isinstance(one, HistoryRecord)}

    async with open_history(path) as a, open_history(path) as b:
        of_a, of_b = await asyncio.gather(give(a, "a"), give(b, "b"))
        assert not of_a & of_b
        assert len(of_a | of_b) == 150
        for history in (a, b):
            for user_id, mine in (("a", of_a), ("b", of_b)):
                found = await everything(history, user_id=user_id)
                assert {record.memory_id for record in found} == mine
                assert len(found) == len(mine)


async def test_a_writers_remembered_owners_may_be_outdated(path: Path) -> None:
    async with open_history(path) as history, open_history(path) as other:
        await history.add_history("m", None, "x", "ADD", owner=ALICE)
        assert (await history.add_history("m", "x", "y", "UPDATE")).owner == ALICE
        await other.reset()
        assert (await history.add_history("m", None, "x", "ADD")).owner is None
        await other.add_history("m", "x", "y", "UPDATE", owner={"user_id": "bob"})
        assert (await history.add_history("m", "y", "z", "UPDATE")).owner == Owner(user_id="bob")
        with pytest.raises(OwnerConflict):
            await history.add_history("m", "z", "z", "UPDATE", owner=ALICE)
        records = [{"memory_id": f"n{n % 30}", "event": "UPDATE"} for n in range(60)]
        await history.batch_add_history([{**one, "owner": ALICE} for one in records])
        await other.prune(older_than=datetime.now(UTC) + timedelta(days=1), keep_last=0)
        written = await history.batch_add_history(records)
        assert {record.owner for record in written} == {None}
        assert await everything(history, user_id="alice") == []


@pytest.mark.parametrize("is_erased", [False, True])
@pytest.mark.parametrize("others", range(1, 4))
async def test_a_removed_owners_number_is_given_again(
    path: Path, others: int, *, is_erased: bool
) -> None:
    """By a writer that has not seen the owners with higher numbers: all are found afterwards."""
    async with open_history(path) as one, open_history(path) as other:
        await one.add_history("first", None, "tea", "ADD", owner={"user_id": "ann"})
        for number in range(others + 1):
            user = {"user_id": f"u{number}"}
            await other.add_history(f"m{number}", None, "tea", "ADD", owner=user, created_at=START)
        await other.batch_add_history(  # so that all are indexed
            [{"memory_id": "plain", "new_memory": f"{n}", "event": "ADD"} for n in range(ROWS)]
        )
        if is_erased:
            await other.erase(user_id="u0", reason="asked", vacuum=False)
        else:
            await other.add_history("m0", "tea", None, "DELETE", updated_at=START)
            await other.prune(older_than=START + timedelta(days=1), keep_last=1)
        await until_later(datetime.now(UTC))
        await one.add_history("new", None, "mate", "ADD", owner={"user_id": "ann"})
        later = await other.add_history("new", "mate", "milk", "UPDATE")
        assert later.owner == Owner(user_id="ann")
        with pytest.raises(OwnerConflict):
            await other.add_history("new", "milk", "rum", "UPDATE", owner={"user_id": "eve"})
        assert await one.count_history(user_id="ann") == 3
        assert not (await one.check()).problems
        report = await other.erase(user_id="ann", reason="asked", vacuum=False)
        assert report.records == 3


@pytest.fixture
def colliding_keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make many memories and values share each key."""
    caches = (levels.memory_key, levels.value_key, owners.owner_entry)
    for cache in caches:
        cache.cache_clear()
    key = levels._key
    monkeypatch.setattr(levels, "_key", lambda stored: key(stored) % 3 << 40)
    for name in INDEXED_CAUSES:  # whose keys are computed without `_key`
        monkeypatch.setitem(owners._CAUSE_KEYS, name, partial(levels.value_key, f"cause {name}"))
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.usefixtures("colliding_keys")
async def test_memories_and_owners_that_share_a_key(path: Path) -> None:
    async with open_history(path) as history:
        await fill(history, 0, ROWS)
        seen = await check_reads(history)
        assert len(seen) == ROWS
        assert {r.memory_id: r.owner for r in seen} == OWNERS
        with pytest.raises(OwnerConflict):
            await history.add_history("m1", None, "x", "UPDATE", owner={"user_id": "u2"})
        await history.prune(older_than=START + timedelta(minutes=ROWS - 3), keep_last=0)
        seen = await check_reads(history)
        assert [r.id for r in seen] == [str(ROWS - 3 + n) for n in range(3)]
        assert (await history.add_history("m1", None, "x", "ADD")).owner is None


ERASURES: dict[str, dict[str, Any]] = {
    "owner": {"user_id": "u1"},
    "owner's scope": {"run_id": "r"},
    "memories": {"memory_ids": ["m0", "m3", "m4"]},
    "actor": {"actor_id": "a"},
    "records": {"record_ids": [str(n) for n in range(0, ROWS, 9)]},
}


@pytest.mark.parametrize("kind", ERASURES)
@pytest.mark.usefixtures("colliding_keys")
async def test_an_erasure_keeps_entries_that_share_a_key(kind: str, path: Path) -> None:
    """A record's memory, scopes and causes may have the same key, and so one entry for all."""
    async with open_history(path) as history:
        changes = [{**change(n), "actor_id": "ab"[n % 2]} for n in range(ROWS)]
        for one in changes:
            one["owner"] = OWNERS[one["memory_id"]]
        await history.batch_add_history(changes)
        report = await history.erase(**ERASURES[kind], reason="asked", vacuum=False)
        assert report.records > 0
        seen = await check_reads(history)
        assert [r.id for r in seen] == [str(n) for n in range(ROWS)]
        for user_id in ("u0", "u1", "u2"):
            owned = [r async for r in history.query_history(user_id=user_id, page_size=7)]
            assert owned == [r for r in seen if r.owner is not None and r.owner.user_id == user_id]
        for memory_id in OWNERS:
            last = await history.memory_at(memory_id, START + timedelta(days=1))
            assert last == [r for r in seen if r.memory_id == memory_id][-1]
        assert not (await history.check()).problems
        await history.erase(**ERASURES[kind], reason="again", vacuum=False)
        await history.erase(user_id="u2", reason="asked", vacuum=False)
        assert len(await check_reads(history)) == ROWS
        assert not (await history.check()).problems


async def test_an_owner_given_late_holds_for_many_records(path: Path) -> None:
    records = 70_000
    async with open_history(path) as history:
        for _ in range(0, records, 10_000):
            await history.batch_add_history(
                [{"memory_id": f"m{n % 10 > 6}", "event": "UPDATE"} for n in range(10_000)]
            )
        await history.add_history("mFalse", None, "x", "UPDATE", owner=ALICE)
        expected = records * 7 // 10 + 1
        assert await history.count_history(user_id="alice") == expected
        pages = history.query_history(user_id="alice", page_size=9_000)
        found = [(record.memory_id, record.owner) async for record in pages]
        assert found == [("mFalse", ALICE)] * expected
        other = await history.get_history("mTrue")
        assert {record.owner for record in other} == {None}
    with looking(path) as connection:
        check_index(connection)


def version_before(path: Path) -> None:
    """Make a file without owners as the earlier version would have made it."""
    with raw(path) as connection:
        connection.executescript(
            "DROP TRIGGER async_history_owner_bereft; DROP TRIGGER async_history_details_deleted;"
            "DROP TRIGGER async_history_details_renamed; DROP TABLE async_history_owners;"
            "DROP TABLE async_history_details; DROP TABLE async_history_bereft;"
            "ALTER TABLE async_history_state DROP COLUMN owned_through;"
            "UPDATE async_history_state SET version = 5;"
        )


@pytest.fixture
async def old(path: Path) -> Path:
    async with open_history(path) as history:
        await history.batch_add_history(
            [{"memory_id": f"m{n % 3}", "event": "ADD", "new_memory": str(n)} for n in range(100)]
        )
    version_before(path)
    return path


async def test_a_file_of_the_earlier_version_is_read_unchanged(old: Path) -> None:
    before = old.read_bytes()
    async with open_history(old, migrate=False) as history:
        assert isinstance(history, SQLiteHistoryManager)
        seen = await everything(history)
        assert len(seen) == 100
        assert {(r.owner, r.context, r.cause) for r in seen} == {(None, None, None)}
        assert [r.owner for r in await history.get_history("m1")] == [None] * 33
        assert await everything(history, user_id="alice") == []
        assert await history.count_history(cause={"run_id": "1"}) == 0
    assert old.read_bytes() == before


async def test_a_file_that_must_be_indexed_is_read_unchanged(made: Path, tmp_path: Path) -> None:
    path = fresh(made, tmp_path)
    CHANGES["dumped"](path, made)
    async with open_history(path, migrate=False) as history:
        await check(history, "dumped")


@pytest.mark.faults
@pytest.mark.parametrize(
    "is_old",
    [
        pytest.param(True, id="of the version before"),
        pytest.param(False, id="rebuilt", marks=pytest.mark.nightly),
    ],
)
def test_killed_at_every_statement(is_old: bool, tmp_path: Path) -> None:
    live = tmp_path / "live"
    live.mkdir()
    path = live / "h.db"

    async def make() -> None:
        async with open_history(path) as history:
            await fill(history, 0, 100)

    asyncio.run(make())
    if is_old:
        version_before(path)
    else:
        with raw(path) as connection:
            connection.execute("DELETE FROM history WHERE rowid % 2 = 0 OR memory_id = 'm3'")
            connection.execute("VACUUM")
    snapshots = Snapshots(live, tmp_path)
    with raw(path) as connection:
        connection.set_trace_callback(snapshots.take)
        prepare(connection, path)
        connection.set_trace_callback(None)
    assert len(snapshots.taken) > 20
    for folder in (*snapshots.taken, live):
        path = folder / "h.db"
        with raw(path) as connection:
            prepare(connection, path)
            check_sound(connection)
            check_index(connection)
            rows = connection.execute(
                "SELECT history.memory_id, owner.owner, detail.context FROM history"
                " LEFT JOIN async_history_details AS detail ON detail.id = history.id"
                " LEFT JOIN async_history_owners AS owner ON owner.number = detail.owner"
            ).fetchall()
            (owned,) = connection.execute("SELECT count(*) FROM async_history_owners").fetchone()
        assert owned == (0 if is_old else 5)
        for memory_id, owner, context in rows:
            wanted = None if is_old else OWNERS[memory_id]
            assert owner == owners.owner_entry(wanted).text
            assert (context is None) == is_old


SCOPES = (("agent_id", "a"), ("app_id", "x"), ("run_id", "r"), ("user_id", "u1"))
CAUSES = ((), (("request_id", "q1"),), (("reason", "r"), ("trace_id", "q1")))
OTHERS: dict[str, Any] = {
    "memory_ids": ("m1", "m2"),
    "actor_id": "a",
    "role": "user",
    "event": Event.UPDATE,
    "since": START,
    "until": START,
}


@pytest.mark.parametrize(
    "others_at_once", [1, pytest.param(len(OTHERS), marks=pytest.mark.nightly)]
)
@pytest.mark.parametrize("order", ["oldest", "newest"])
async def test_each_query_uses_the_index(order: Any, others_at_once: int, path: Path) -> None:
    nothing: dict[str, Any] = dict.fromkeys(("text", *OTHERS))
    async with open_history(path) as history:
        assert isinstance(history, SQLiteHistoryManager)
        columns = history.store.stored_reader.columns
        statements: dict[str, dict[str, Any]] = {}
        for owner, cause, names in product(subsets(SCOPES), CAUSES, subsets(OTHERS)):
            if not (owner or cause) or len(names) > others_at_once:
                continue
            others = nothing | {name: OTHERS[name] for name in names}
            wanted = Filter(**others, order=order, owner=owner, cause=cause)
            given = {**parameters(wanted), "limit": 10}
            for source in sources(wanted, THROUGH_INDEX):
                statements[select("count(*)", source, wanted, THROUGH_INDEX)] = given
            for page in in_order(columns, wanted, THROUGH_INDEX):
                statements[page] = given
        for sql, given in statements.items():
            plan = [row[3] for row in await history.store.fetch(f"EXPLAIN QUERY PLAN {sql}", given)]
            assert any("async_history_settled" in line and "memory=?" in line for line in plan)
            for line in plan:
                assert "AUTOMATIC" not in line, plan
                assert not line.startswith(("SCAN history", "SCAN tail")), plan


async def test_erased_texts_are_nowhere_in_the_file(path: Path) -> None:
    async with open_history(path) as history:
        await fill(history, 0, 300)
        secrets: dict[str, Any] = {
            "context": {"secret": "context-4711"},
            "cause": {"request_id": "cause-4711"},
        }
        for size in (1, 30, 60):
            await history.batch_add_history(
                [{"memory_id": "s", "event": "ADD", "owner": ALICE, **secrets} for _ in range(size)]
            )
        await history.add_history("s", None, None, "UPDATE", **secrets)
        assert await history.count_history(cause={"request_id": "cause-4711"}) == 92
        report = await history.erase(memory_ids=["s"], reason="asked", vacuum=False)
        assert report.records == 92
        assert await history.count_history(cause={"request_id": "cause-4711"}) == 0
        found = await everything(history, user_id="alice")
        assert [(r.owner, r.context, r.cause) for r in found] == [(ALICE, None, None)] * 92
        for file in path.parent.iterdir():
            # Not only the digits, which may be in an id.
            assert not re.search(rb"(context|cause)-4711", file.read_bytes()), file
        await check_reads(history)


async def test_a_pruned_memory_leaves_no_owner_and_no_entry(path: Path) -> None:
    async with open_history(path) as history:
        await fill(history, 0, 300)
        await history.prune(older_than=START + timedelta(days=9), keep_last=0)
    with closing(sqlite3.connect(path)) as connection:
        for table in ("owners", "details", "bereft"):
            assert connection.execute(f"SELECT count(*) FROM async_history_{table}").fetchone() == (
                0,
            )
        for level in levels.LEVELS:
            rows = connection.execute(f"SELECT count(*) FROM {level} WHERE memory >= 0")
            assert rows.fetchone() == (0,)


@pytest.mark.parametrize(
    ("condition", "what"),
    [
        ("memory = {user}", "can't be found by owner"),
        ("memory = {cause}", "can't be found by cause"),
        ("memory >= 0 AND position < -(1 << 62)", "can't be found by owner"),
    ],
)
async def test_a_check_finds_missing_entries(condition: str, what: str, path: Path) -> None:
    async with open_history(path) as history:
        await fill(history, 0, 300)
    assert (await check_history(str(path))).problems == ()
    missing = condition.format(
        user=levels.value_key("user_id", "u1"), cause=owners.cause_key("request_id", "q7")
    )
    with raw(path) as connection:
        for level in levels.LEVELS:
            connection.execute(f"DELETE FROM {level} WHERE {missing}")
    (problem,) = (await check_history(str(path))).problems
    assert what in problem
    assert (await check_history(str(path), repair=True)).problems == ()
    async with open_history(path) as history:
        seen = await check_reads(history)
        assert {record.memory_id: record.owner for record in seen} == OWNERS
