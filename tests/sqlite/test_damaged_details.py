"""Owners, contexts and causes that another program damaged: all else can be read and removed."""

import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from async_history import HistoryManager, check_history, open_history

pytestmark = pytest.mark.once

NO_OBJECTS = {
    "BLOB": "x'ff00'",
    "BLOB of JSON": "CAST('{}' AS BLOB)",
    "not JSON": "'{oops'",
    "JSON5": "'{user_id:1}'",
    "empty": "''",
    "list": "'[1]'",
    "number": "'12'",
    "null": "'null'",
    "integer": "7",
    "too large": "1e999",
    "not UTF-8": "CAST(x'7bff7d' AS TEXT)",
    "text that is not UTF-8": """CAST('{"user_id":"' || x'ff' || '"}' AS TEXT)""",
    "surrogate": r"""'{"user_id":"\ud800","run_id":"\ud800"}'""",
    "too deep": f"'{'[' * 3_000}'",
}
NO_OWNERS = {
    "other values": """'{"user_id":{"a":1},"run_id":[1]}'""",
    "number that is too large": """'{"user_id":1e999}'""",
    "NUL": r"""'{"user_id":"a\u0000b"}'""",
}
DAMAGED = [
    *[(column, value) for column in ("owner", "cause", "context") for value in NO_OBJECTS],
    *[("owner", value) for value in NO_OWNERS],
]


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        for statement in statements:
            file.execute(statement)


def added(name: str) -> dict[str, Any]:
    return {
        "memory_id": name,
        "new_memory": f"{name} likes tea",
        "event": "ADD",
        "owner": {"user_id": name},
        "cause": {"run_id": name, "reason": name},
        "context": {"of": name},
    }


async def damaged_file(path: Path, column: str, value: str, *, is_indexed: bool) -> None:
    """Damage what belongs to the memory `damaged`, one of three, and outdate the index."""
    async with open_history(path) as history:
        await history.batch_add_history([added(name) for name in ("ann", "damaged", "bob")])
    which = "memory_id = 'damaged'"
    if column == "owner":
        change(path, f"UPDATE async_history_owners SET owner = {value} WHERE {which}")
    else:
        whose = f"id = (SELECT id FROM history WHERE {which})"
        change(path, f"UPDATE async_history_details SET {column} = {value} WHERE {whose}")
    if not is_indexed:
        change(path, "CREATE TABLE others (a)")  # so the index must be rebuilt


async def found(history: HistoryManager, **filters: Any) -> list[str]:
    return [record.memory_id async for record in history.query_history(**filters)]


@pytest.mark.parametrize("is_indexed", [True, False])
@pytest.mark.parametrize(("column", "damage"), DAMAGED)
async def test_one_damaged_value_makes_nothing_else_unreadable(
    column: str, damage: str, is_indexed: bool, tmp_path: Path
) -> None:
    path = tmp_path / "history.db"
    value = (NO_OBJECTS | NO_OWNERS)[damage]
    await damaged_file(path, column, value, is_indexed=is_indexed)
    async with open_history(path) as history:
        named = (await history.check()).problems
        assert len(named) == 1
        assert f"{column} that can't be read, such as" in named[0]
        for filters in (
            {"user_id": "bob"},
            {"cause": {"run_id": "bob"}},
            {"cause": {"reason": "bob"}},  # has no index
            {"memory_id": "bob", "user_id": "bob"},
        ):
            assert await found(history, **filters) == ["bob"]
        await history.update_history("ann", "ann likes coffee")
        await history.batch_add_history([added("carl")] * 20)
        assert await history.count_history(user_id="carl") == 20
    assert (await check_history(str(path))).problems == named


@pytest.mark.parametrize("removal", ["erase", "prune"])
@pytest.mark.parametrize(("column", "damage"), DAMAGED)
async def test_what_has_a_damaged_value_can_be_removed(
    column: str, damage: str, removal: str, tmp_path: Path
) -> None:
    path = tmp_path / "history.db"
    value = (NO_OBJECTS | NO_OWNERS)[damage]
    await damaged_file(path, column, value, is_indexed=True)
    async with open_history(path) as history:
        if removal == "erase":
            erasure = await history.erase(memory_ids=["damaged"], reason="asked for it")
            assert erasure.records == 1
        else:
            pruned = await history.prune(older_than=timedelta(0), keep_last=0)
            assert pruned.records == 3
        # An erased record keeps its owner.
        assert bool((await history.check()).problems) is (removal == "erase" and column == "owner")
    with closing(sqlite3.connect(path)) as file:
        left = "SELECT count(*) FROM history WHERE new_memory = 'damaged likes tea'"
        assert file.execute(left).fetchone() == (0,)


async def test_an_index_of_utf16_is_rebuilt(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    change(path, "PRAGMA encoding = 'UTF-16le'", "CREATE TABLE first (a)")
    async with open_history(path) as history:
        await history.batch_add_history([added("äöü")])
    change(path, "CREATE TABLE others (a)")
    async with open_history(path) as history:
        assert await found(history, user_id="äöü") == ["äöü"]
        assert await found(history, cause={"run_id": "äöü"}) == ["äöü"]
        assert (await history.check()).problems == ()
        await history.erase(user_id="äöü", reason="asked for it")
        assert await found(history, user_id="äöü") == []
        assert (await history.check()).problems == ()
