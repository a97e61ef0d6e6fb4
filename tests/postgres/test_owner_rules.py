"""Triggers of a database's owner that leave rows out: a row that is not stored is not acked."""

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from async_history import open_history
from tests.support.outcomes import outcome

pytestmark = [pytest.mark.postgres, pytest.mark.once]

RULE = """
CREATE FUNCTION {schema}.rule() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN IF NEW.memory_id = 'bad' THEN RETURN NULL; END IF; RETURN NEW; END $$;
CREATE TRIGGER rule BEFORE INSERT ON {schema}.history
FOR EACH ROW EXECUTE FUNCTION {schema}.rule()
"""


@pytest.mark.parametrize("is_named", [False, True])
async def test_a_row_that_is_left_out_is_refused(
    postgres: str, new_schema: Callable[[], str], is_named: bool
) -> None:
    url = new_schema()

    def record(memory_id: str, number: int) -> dict[str, Any]:
        named = {"id": f"{memory_id} {number}"} if is_named else {}
        return {"memory_id": memory_id, "new_memory": "x", "event": "ADD", **named}

    async with open_history(url) as history:
        owner = await asyncpg.connect(postgres)
        await owner.execute(RULE.format(schema=parse_qs(urlsplit(url).query)["schema"][0]))
        await owner.close()
        assert await outcome(history.batch_add_history([record("bad", 0)])) == "StorageRefused"
        torn = [record("g", 1), record("bad", 1), record("g", 2)]
        assert await outcome(history.batch_add_history(torn)) == "StorageRefused"
        assert await history.count_history() == 0
        calls = [[record("n", 1)], [record("bad", 2)], [record("n", 2)]]
        outcomes = await asyncio.gather(*(outcome(history.batch_add_history(c)) for c in calls))
        assert outcomes == ["ok", "StorageRefused", "ok"]
        assert [one.memory_id async for one in history.query_history()] == ["n", "n"]
