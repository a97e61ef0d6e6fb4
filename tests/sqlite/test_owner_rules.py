"""Triggers, conflict clauses and indexes of a file's owner: a call is stored whole or refused."""

import asyncio
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from async_history import HistoryManager, Owner, open_history
from tests.subprocesses.checks import check_index, check_levels, looking
from tests.support.outcomes import outcome

pytestmark = pytest.mark.once

COLUMNS = (
    "id TEXT PRIMARY KEY {}, memory_id TEXT, old_memory TEXT, new_memory TEXT, event TEXT,"
    " created_at DATETIME, updated_at DATETIME, is_deleted INTEGER, actor_id TEXT, role TEXT"
)
RULES = {
    rule: f"CREATE TRIGGER owner {when} INSERT ON history WHEN new.memory_id = 'bad'"
    f" BEGIN SELECT RAISE({rule}); END"
    for when, rule in (
        ("BEFORE", "IGNORE"),
        ("BEFORE", "ABORT, 'no'"),
        ("AFTER", "FAIL, 'no'"),
        ("BEFORE", "ROLLBACK, 'no'"),
    )
} | {"index": "CREATE INDEX owner ON history (json_extract(new_memory, '$.a'))"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "h.db"


def make(path: Path, script: str = "", conflict: str = "") -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(f"CREATE TABLE history ({COLUMNS.format(conflict)}); {script}")


def record(memory_id: str, text: str = "{}", **more: Any) -> dict[str, Any]:
    text = "no JSON" if memory_id == "bad" else text
    return {"memory_id": memory_id, "new_memory": text, "event": "ADD", **more}


def count(path: Path) -> int:
    with looking(path) as connection:
        ((rows,),) = connection.execute("SELECT count(*) FROM history")
    return int(rows)


@pytest.mark.parametrize("rule", RULES)
async def test_a_refused_record_does_not_affect_the_others(rule: str, path: Path) -> None:
    make(path, RULES[rule])
    async with open_history(path) as history:
        assert await outcome(history.batch_add_history([record("bad")])) == "StorageRefused"
        call = [record("g1"), record("g2"), record("bad"), record("g3")]
        assert await outcome(history.batch_add_history(call)) == "StorageRefused"
        assert count(path) == 0
        many = [record(f"n{n}") for n in range(700)]
        calls = [[record("n")], [record("bad")], many, [record("n"), record("bad")], [record("n")]]
        outcomes = await asyncio.gather(*(outcome(history.batch_add_history(c)) for c in calls))
        assert outcomes == ["ok", "StorageRefused", "ok", "StorageRefused", "ok"]
        assert count(path) == 702
        assert len(await history.get_history("n")) == 2
    with looking(path) as connection:
        check_index(connection)


OF_OWNERS = (
    "CREATE TRIGGER owner BEFORE INSERT ON async_history_owners WHEN new.memory_id = 'bad'"
    " BEGIN SELECT RAISE(ABORT, 'no'); END"
)


@pytest.mark.parametrize("rule", [*RULES.values(), OF_OWNERS])
async def test_a_refused_call_leaves_nothing_for_the_others(rule: str, path: Path) -> None:
    """Neither the owner of a memory that others write to, nor the memory's number."""
    async with open_history(path) as history:
        with closing(sqlite3.connect(path)) as other:
            other.execute(rule)
        await history.add_history("old", None, "{}", "ADD", owner={"user_id": "o"})
        refused = [record("m", owner={"user_id": "u"}), record("bad", owner={"user_id": "u"})]
        calls = [refused, [record("m")], [record("n", owner={"user_id": "w"})], refused]
        outcomes = await asyncio.gather(*(outcome(history.batch_add_history(c)) for c in calls))
        assert outcomes == ["StorageRefused", "ok", "ok", "StorageRefused"]
        assert (await history.add_history("m", "{}", "{}", "UPDATE")).owner is None
        assert {one.owner for one in await history.get_history("m")} == {None}
        assert await history.count_history(user_id="u") == 0
        assert await history.count_history(user_id="w") == 1
        given = await history.add_history("m", "{}", "{}", "UPDATE", owner={"user_id": "v"})
        assert given.owner == Owner(user_id="v")
    with looking(path) as connection:
        check_index(connection)


@pytest.mark.parametrize("clause", ["REPLACE", "IGNORE", "FAIL", "ROLLBACK"])
async def test_a_repeated_id_conflicts_under_any_conflict_clause(clause: str, path: Path) -> None:
    make(path, conflict=f"ON CONFLICT {clause}")
    async with open_history(path) as history:
        await history.add_history("m", None, "first", "ADD", id="x")
        call = [record("m", "a"), record("m", "other", id="x"), record("m", "b")]
        assert await outcome(history.batch_add_history(call)) == "IdConflict"
        assert [one.new_memory for one in await history.get_history("m")] == ["first"]


@pytest.mark.parametrize(
    ("body", "memory_id"),
    [
        ("UPDATE history SET memory_id = lower(memory_id) WHERE rowid = new.rowid", "m"),
        (
            "INSERT INTO history (id, memory_id, event)"
            " SELECT new.id || '+', 'log', 'ADD' WHERE new.memory_id <> 'log'",
            "log",
        ),
    ],
)
@pytest.mark.parametrize("size", [1, 40, 600])
async def test_triggers_that_change_or_add_rows(
    body: str, memory_id: str, size: int, path: Path
) -> None:
    make(path, f"CREATE TRIGGER owner AFTER INSERT ON history BEGIN {body}; END")
    async with open_history(path) as history:
        for _ in range(3):
            await history.batch_add_history([record("M") for _ in range(size)])
            await check_found(history, path, memory_id)
    with looking(path) as connection:
        check_index(connection)


@pytest.mark.parametrize(
    "rule",
    [
        "BEFORE INSERT ON history BEGIN SELECT RAISE(IGNORE)",
        "AFTER INSERT ON history BEGIN DELETE FROM history WHERE id = new.id",
    ],
)
async def test_a_trigger_that_comes_while_the_file_is_open(rule: str, path: Path) -> None:
    async with open_history(path) as history:
        for n in range(3):
            await history.add_history("m", None, f"before {n}", "ADD")
        with closing(sqlite3.connect(path)) as other:
            other.execute(f"CREATE TRIGGER owner {rule}; END")
            assert (
                await outcome(history.add_history("m", None, "left out", "ADD")) == "StorageRefused"
            )
            other.execute("DROP TRIGGER owner")
            await history.add_history("m", None, "after", "ADD")
        texts = [one.new_memory for one in await history.get_history("m")]
        assert texts == ["before 0", "before 1", "before 2", "after"]


@pytest.mark.parametrize("body", ["RAISE(IGNORE)", "RAISE(ABORT, 'no')"])
async def test_messages_that_a_trigger_leaves_out(body: str, path: Path) -> None:
    async with open_history(path) as history:
        with closing(sqlite3.connect(path)) as other:
            other.execute(
                "CREATE TRIGGER owner BEFORE INSERT ON messages WHEN new.content = 'no'"
                f" BEGIN SELECT {body}; END"
            )
        calls = [
            history.save_messages([{"role": "user", "content": text} for text in texts], scope)
            for scope, texts in (("s", ["a"]), ("t", ["b", "no"]), ("s", ["no"]), ("s", ["c"]))
        ]
        outcomes = await asyncio.gather(*map(outcome, calls))
        assert outcomes == ["ok", "StorageRefused", "StorageRefused", "ok"]
        assert [one.content for one in await history.get_last_messages("s")] == ["a", "c"]
        assert await history.get_last_messages("t") == []


@pytest.mark.parametrize("owner", [None, {"user_id": "u"}])
async def test_a_record_that_a_trigger_keeps_from_pruning_is_still_found(
    owner: dict[str, str] | None, path: Path
) -> None:
    """By its memory and by its owner, also if it has no time, and in a step with others."""
    async with open_history(path) as history:
        for _ in range(3):
            await history.batch_add_history(
                [record(memory_id, owner=owner) for memory_id in ("kept", *map(str, range(100)))]
            )
        with closing(sqlite3.connect(path)) as other:
            other.execute("UPDATE history SET created_at = NULL WHERE rowid % 150 = 102")
            other.execute(
                "CREATE TRIGGER owner BEFORE DELETE ON history WHEN old.memory_id = 'kept'"
                " BEGIN SELECT RAISE(IGNORE); END"
            )
            other.commit()
        report = await history.prune(older_than=timedelta(0), keep_last=0)
        assert (report.records, report.memories_gone) == (300, 100)
        await check_found(history, path, "kept")
        assert await history.count_history(user_id="u") == (3 if owner else 0)
    with looking(path) as connection:
        check_index(connection)
        check_levels(connection)


async def check_found(history: HistoryManager, path: Path, memory_id: str) -> None:
    with looking(path) as connection:
        expected = connection.execute(
            "SELECT id FROM history WHERE memory_id = ? ORDER BY rowid", (memory_id,)
        ).fetchall()
    assert [(one.id,) for one in await history.get_history(memory_id)] == expected
    assert expected
