"""How PostgreSQL runs the statements of a ledger."""

from typing import Any

import pytest

from async_history._postgres.ledger import ServerLedger
from async_history._postgres.transaction import BY_INDEX
from async_history.postgres import PostgresHistoryManager
from tests.ledger.ledgers import OWNER, opened

pytestmark = [pytest.mark.postgres, pytest.mark.once]


def ledger_of(history: PostgresHistoryManager) -> ServerLedger:
    ledger = getattr(history.store, "ledger", None)
    assert isinstance(ledger, ServerLedger)
    return ledger


async def test_counting_does_not_read_records_by_memory(url: str, owner: Any) -> None:
    """That reads a page for each record, in random order."""
    plans: dict[str, str] = {}

    async def fetch(sql: str, *arguments: Any) -> Any:
        lines = await owner.fetch(f"EXPLAIN {sql}", *arguments)
        plans[sql] = "\n".join(line for (line,) in lines)
        return await owner.fetch(sql, *arguments)

    async with opened(url) as history:
        for number in range(30):
            await history.add_history(f"m{number % 10}", None, "tea", "ADD", owner=OWNER)
        async with owner.transaction():
            await owner.execute(BY_INDEX)
            counts = await ledger_of(history).attestation.tables(fetch).counts()
    assert counts == (30, 10, 0, 0, 0)
    (plan,) = [plan for sql, plan in plans.items() if "DISTINCT history.memory_id" in sql]
    assert "history" in plan
    assert "history_memory" not in plan


async def test_lines_are_read_from_the_first_record_to_the_last(url: str, owner: Any) -> None:
    """The two are found by their ids, the ones in between in the order of recording."""
    async with opened(url) as history:
        await history.add_history("m", None, "tea", "ADD", id="only")
        ledger = ledger_of(history)
        plans: list[str] = []

        async def fetch(sql: str, *arguments: Any) -> Any:
            lines = await owner.fetch(f"EXPLAIN {sql}", *arguments)
            plans.append("\n".join(line for (line,) in lines))
            return await owner.fetch(sql, *arguments)

        async with owner.transaction():
            await owner.execute(BY_INDEX)
            tables = ledger.attestation.tables(fetch)
            (answer,) = tables.ask([tables.for_lines(["only"])])
            ((_, record_id, _),) = await answer
    assert record_id == "only"
    (plan,) = plans
    assert plan.count("using history_pkey") == 2
    assert plan.count("using history_seq") == 1
    assert "Sort" not in plan
