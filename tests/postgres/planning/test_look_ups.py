"""What a batch's transaction looks up costs the same in a history of any size, on PostgreSQL.

Counted in rows that are read; with custom and generic plans; before the tables have statistics,
and with them.
"""

from secrets import token_hex
from typing import Any, Final

import pytest

from async_history import open_history
from tests.support.postgres_plans import Explainer, fill, look_ups

pytestmark = [pytest.mark.postgres, pytest.mark.once]

SMALL, LARGE = 10_000, 60_000
MORE: Final = 20
"""Rows that a look-up of the large history may read beyond those of the small one."""


async def test_a_look_up_costs_the_same(url: str, connection: Any) -> None:
    schemas = {rows: f"of_{rows}_{token_hex(4)}" for rows in (SMALL, LARGE)}
    for rows, schema in schemas.items():
        async with open_history(url, schema=schema) as history:
            await history.add_history("o", None, "tea", "ADD", owner={"user_id": "ann"})
        await fill(connection, schema, rows)
    read: dict[str, list[int]] = {}
    for has_statistics in (False, True):
        for rows, schema in schemas.items():
            if has_statistics:
                await connection.execute(f"ANALYZE {schema}.history, {schema}.owners")
            for is_generic in (False, True):
                explainer = Explainer(connection, schema, is_generic=is_generic)
                for name, look_up in look_ups(rows).items():
                    await explainer.look_up(look_up)
                    key = f"{name}, {has_statistics=}, {is_generic=}"
                    read.setdefault(key, []).append(explainer.rows)
    assert len(read) == 4 * len(look_ups(SMALL))
    assert {name: rows for name, rows in read.items() if rows[1] > rows[0] + MORE} == {}
