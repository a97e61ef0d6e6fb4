"""Indexed causes that somebody changes: queries by cause miss the record, and `check` names it."""

from typing import Any, Final

import asyncpg
import pytest

from async_history import HistoryManager, open_history
from tests.support.keys import ring

pytestmark = [pytest.mark.postgres, pytest.mark.once]

KEYS: Final = ("run_id", "trace_id", "request_id")
CAUSE: Final = {key: f"the {key}" for key in KEYS}


async def fill(history: HistoryManager) -> None:
    await history.add_history("before", None, "tea", "ADD")
    await history.add_history("m", None, "tea", "ADD", cause=CAUSE, owner={"user_id": "ann"})
    await history.add_history("m", "tea", "mate", "UPDATE", cause={"why": "asked"})
    await history.add_history("m", "mate", None, "DELETE", cause={"run_id": "another"})


async def found(history: HistoryManager) -> list[int]:
    return [
        len([one async for one in history.query_history(cause={key: CAUSE[key]})]) for key in KEYS
    ]


CHANGES: Final = (
    *(f"cause_{key} = 1 WHERE memory_id = 'm' AND seq = 2" for key in KEYS),
    *(f"cause_{key} = NULL WHERE memory_id = 'm' AND seq = 2" for key in KEYS),
    "cause_request_id = 7 WHERE memory_id = 'before'",
    "cause = NULL WHERE memory_id = 'm' AND seq = 2",
)


@pytest.mark.parametrize("is_encrypted", [False, True], ids=["clear", "encrypted"])
async def test_a_record_that_is_not_found_by_its_cause(
    url: str, raw: asyncpg.Connection, *, is_encrypted: bool
) -> None:
    options: dict[str, Any] = {"keys": ring("k")} if is_encrypted else {}
    async with open_history(url, **options) as history:
        await fill(history)
        assert not (await history.check()).problems
        for change in CHANGES:
            assert await raw.execute(f"UPDATE history SET {change}") == "UPDATE 1"
            (problem,) = (await history.check()).problems
            assert problem.startswith("Queries by cause go wrong for 1 record,"), change
            _, _, statement = problem.removesuffix(".").partition("mends: ")
            await raw.execute(statement)
            assert not (await history.check()).problems, change
            if not change.startswith("cause = "):
                assert await found(history) == [1, 1, 1], change


async def test_all_records_are_compared(url: str, raw: asyncpg.Connection) -> None:
    """Several are counted, wherever they are."""
    async with open_history(url) as history:
        await history.batch_add_history(
            [
                {"memory_id": "m", "new_memory": "tea", "event": "ADD", "cause": {"run_id": str(n)}}
                for n in range(2_500)
            ]
        )
        assert not (await history.check()).problems
        await raw.execute("UPDATE history SET cause_run_id = NULL WHERE seq % 1000 = 0")
        (problem,) = (await history.check()).problems
        assert problem.startswith("Queries by cause go wrong for 2 records,")


@pytest.mark.parametrize("is_encrypted", [False, True], ids=["clear", "encrypted"])
async def test_a_cause_that_is_not_a_json_object_is_named(
    url: str, raw: asyncpg.Connection, *, is_encrypted: bool
) -> None:
    """All else is still checked: another record's column, and what comes after the causes."""
    options: dict[str, Any] = {"keys": ring("k")} if is_encrypted else {}
    async with open_history(url, **options) as history:
        await fill(history)
        cause, *others = [
            row["cause"] for row in await raw.fetch("SELECT cause FROM history ORDER BY seq")
        ][1:]
        assert cause is not None
        assert len(others) == 2
        await raw.execute("UPDATE history SET cause_run_id = 1 WHERE seq = 4")
        await raw.execute("DELETE FROM owners_state")
        for damage in ("{bad", "[1]", "7", "", '{"a":' * 5_000, r'{"run_id":"\ud800"}'):
            await raw.execute("UPDATE history SET cause = $1 WHERE seq = 2", damage)
            named, indexed, state = (await history.check()).problems
            assert named.startswith("1 record has a cause that is not a JSON object")
            assert named.endswith("seq 2.")
            assert indexed.endswith("WHERE seq = 4.")
            assert "owners_state" in state


async def test_the_first_damaged_causes_are_named(url: str, raw: asyncpg.Connection) -> None:
    async with open_history(url) as history:
        await history.batch_add_history(
            [
                {"memory_id": "m", "new_memory": "tea", "event": "ADD", "cause": {"run_id": str(n)}}
                for n in range(1_100)
            ]
        )
        await raw.execute("UPDATE history SET cause = '{' WHERE seq > 990")
        (problem,) = (await history.check()).problems
    assert problem.startswith("110 records have a cause that is not a JSON object")
    assert problem.endswith("with seq 991, 992, 993, 994, 995, 996, 997, 998, 999, 1000 and more.")
