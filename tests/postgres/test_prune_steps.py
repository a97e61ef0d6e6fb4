"""How many records the steps of a prune on a server read."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from async_history import open_history
from async_history._core.removing.prune_request import PruneLimits
from tests.support.limits import limited

pytestmark = [pytest.mark.postgres, pytest.mark.once]


@pytest.mark.parametrize(
    ("records", "took_s", "keep_last", "following"),
    [
        (200, 0.1, 1, 200),
        (200, 0.05, 1, 400),
        (200, 0.2, 1, 100),
        (200, 0.001, 1, 800),  # four times as many at most
        (200, 0.0, 0, 800),
        (800, 0.05, 1, 1_000),
        (800, 0.05, 4, 250),  # each of them may end a memory of four
        (800, 0.05, 1 << 53, 100),
        (800, 60.0, 1, 100),
    ],
)
def test_the_next_step_is_fitted_to_the_last_one(
    records: int, took_s: float, keep_last: int, following: int
) -> None:
    limits = PruneLimits(records=100, most_records=1_000, step_s=0.1)
    assert limits.next_records(records, took_s, keep_last) == following


@pytest.mark.parametrize(("step_s", "steps"), [(1e9, [10, 40, 100, 100]), (0.0, [10] * 9)])
async def test_quick_steps_read_more_and_slow_ones_few(
    new_schema: Callable[[], str], step_s: float, steps: list[int]
) -> None:
    limits = PruneLimits(records=10, most_records=100, step_s=step_s)
    async with limited(open_history(new_schema()), prune=limits) as history:
        await history.batch_add_history(
            {"memory_id": "m", "event": "UPDATE", "new_memory": "x"} for _ in range(300)
        )
        reached: list[int] = []
        report = await history.prune(
            older_than=timedelta(0), on_progress=lambda done, _: reached.append(done)
        )
    assert report.records == 299
    expected = [sum(steps[: n + 1]) for n in range(len(steps))]
    assert reached[: len(steps)] == expected
