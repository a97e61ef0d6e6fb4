"""A removal reads the bundles of its own leaves in a large ledger, on PostgreSQL.

Counted in rows that are read; with custom and generic plans; before the table has statistics, and
with them.
"""

import json
from itertools import product
from secrets import token_hex
from typing import Any, Final

import pytest

from async_history import open_history
from async_history._postgres.ledger_sql import STATEMENTS
from async_history._postgres.schema import in_schema
from async_history._postgres.transaction import BY_INDEX
from tests.support.postgres_plans import Explainer

pytestmark = [pytest.mark.postgres, pytest.mark.once]

BUNDLES: Final = 20_000
SIZE: Final = 100
PLACES: Final = range(500)
FILL: Final = f"""
INSERT INTO {{schema}}.history_ledger (first, kind, size, hashes, is_keyed, names)
SELECT n * {SIZE}::bigint, 'record', {SIZE}, '', false, '[]' FROM generate_series(0, {BUNDLES}) AS n
"""


async def test_bundles_of_few_leaves_in_a_large_ledger(url: str, connection: Any) -> None:
    schema = f"ledger_{token_hex(4)}"
    async with open_history(url, schema=schema, ledger=True):
        """Its tables are made."""
    await connection.execute(in_schema(FILL, schema))
    read: dict[str, int] = {}
    for has_statistics, is_generic in product((False, True), (False, True)):
        if has_statistics:
            await connection.execute(f"ANALYZE {schema}.history_ledger")
        undone = connection.transaction()
        await undone.start()
        await connection.execute(BY_INDEX)
        explainer = Explainer(connection, schema, is_generic=is_generic)
        sql = in_schema(STATEMENTS.bundles_at, schema)
        rows = await explainer.fetch(sql, json.dumps(list(map(str, PLACES))))
        assert [int(row[0]) for row in rows] == [0, 100, 200, 300, 400]
        read[f"{has_statistics=}, {is_generic=}"] = explainer.rows
        await undone.rollback()
    assert {name: rows for name, rows in read.items() if rows > 3 * len(PLACES)} == {}
