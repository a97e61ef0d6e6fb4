"""A query of a file with `scan_size`: through every index, with bounded work for each page."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from async_history import HistoryManager, open_history
from tests.support.history_shapes import moment
from tests.support.vm_steps import Steps

pytestmark = pytest.mark.once

SMALL, LARGE = 10_000, 26_384
"""Both end at the same place of a block of 8,192 rows, for which actors are noted."""

NOWHERE: tuple[dict[str, Any], ...] = (
    {"text": "nowhere"},
    {"role": "nobody"},
    {"event": "DELETE"},
    {"actor_id": "a1", "text": "nowhere"},
    {"memory_id": "m1", "text": "nowhere"},
    {"user_id": "u1", "text": "nowhere"},
    {"user_id": "u1", "run_id": "nowhere", "role": "nobody"},
    {"cause": {"request_id": "1"}, "text": "nowhere"},
    {"cause": {"other": "nowhere"}},
    {"since": moment(0), "text": "nowhere"},
    {"until": moment(99_999), "text": "nowhere"},
    {"since": moment(0), "user_id": "u1", "text": "nowhere"},
)


async def fill(history: HistoryManager, rows: int) -> None:
    for first in range(0, rows, 2_000):
        await history.batch_add_history(
            [
                {
                    "memory_id": f"m{n % 4}",
                    "new_memory": "rare" if n % 5_000 == 7 else "text",
                    "event": "ADD",
                    "created_at": moment(n),
                    "actor_id": f"a{n % 3}",
                    "role": "user",
                    "owner": {"user_id": f"u{n % 4}"},
                    "cause": {"request_id": f"{n % 5}"},
                }
                for n in range(first, min(first + 2_000, rows))
            ]
        )


async def test_every_match_is_found(tmp_path: Path) -> None:
    async with open_history(tmp_path / "h.db") as history:
        await fill(history, SMALL)
        for wanted, order, scan_size in product(NOWHERE, ("oldest", "newest"), (700, 5_000)):
            asked: dict[str, Any] = {**wanted, "order": order}
            if "text" in asked:
                asked["text"] = "rare"
            expected = [record.id async for record in history.query_history(**asked)]
            query = history.query_history(**asked, scan_size=scan_size)
            assert [record.id async for record in query] == expected, asked


async def test_a_page_costs_the_same_in_a_long_history(tmp_path: Path) -> None:
    taken: list[dict[str, int]] = []
    for rows in (SMALL, LARGE):
        async with open_history(tmp_path / f"{rows}.db") as history:
            await fill(history, rows)
            taken.append({})
            for wanted, order in product(NOWHERE, ("oldest", "newest")):
                query = history.query_history(**wanted, order=order, scan_size=1_000)
                async with Steps(history) as steps:
                    page = await anext(query.pages())
                assert not page.records
                assert not page.is_last
                taken[-1][f"{order} {wanted}"] = steps.taken
    small, large = taken
    assert {asked: took for asked, took in large.items() if took > 1.2 * small[asked] + 2_000} == {}
