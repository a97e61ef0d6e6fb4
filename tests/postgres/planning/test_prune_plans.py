"""A step of a prune reads little but its own records in a large history, on PostgreSQL.

Counted in rows that are read; with custom and generic plans; before the tables have statistics,
and with them.
"""

from datetime import timedelta
from itertools import product
from secrets import token_hex
from typing import Any, Final

import pytest

from async_history import open_history
from async_history._core.removing.prune_request import PruneLimits, new_prune_request
from async_history._core.removing.prune_transaction import PruneTries
from async_history._postgres.removing.prune_sets import SetPruning
from async_history._postgres.transaction import BY_INDEX
from tests.support.postgres_plans import Explainer, fill
from tests.support.questions import START

pytestmark = [pytest.mark.postgres, pytest.mark.once]

ROWS: Final = 60_000
STEP: Final = 2_000
A_RECORD: Final = 12
"""Rows that a step may read for each of its records: where the step ends, the record, those that
remain after it, and the record again to remove it."""


async def a_step(explainer: Explainer, schema: str, keep_last: int, *, dry_run: bool) -> int:
    """Prune the first records; return the rows read."""
    limits = PruneLimits(records=STEP)
    until = START + timedelta(seconds=STEP + 10)
    asked = new_prune_request(until, keep_last, dry_run=dry_run, limits=limits)
    explainer.plans = []
    steps = SetPruning(explainer, schema, None, is_distributed=False)
    await steps.step(asked, None, PruneTries[str]())
    return explainer.rows


async def test_a_step_reads_what_it_needs(url: str, connection: Any) -> None:
    schema = f"pruned_{token_hex(4)}"
    async with open_history(url, schema=schema):
        """Its tables are made."""
    await fill(connection, schema, ROWS)
    read: dict[str, int] = {}
    for has_statistics in (False, True):
        if has_statistics:
            await connection.execute(f"ANALYZE {schema}.history")
        for is_generic, keep_last, dry_run in product((False, True), (0, 1, 3, 7), (True, False)):
            undone = connection.transaction()
            await undone.start()
            await connection.execute(BY_INDEX)
            explainer = Explainer(connection, schema, is_generic=is_generic)
            key = f"{has_statistics=}, {is_generic=}, {keep_last=}, {dry_run=}"
            read[key] = await a_step(explainer, schema, keep_last, dry_run=dry_run)
            await undone.rollback()
    assert len(read) == 32
    assert {name: rows for name, rows in read.items() if rows > A_RECORD * STEP} == {}
    assert min(read.values()) > STEP
