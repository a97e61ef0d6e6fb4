"""Functions on threads of their own."""

import asyncio

import pytest

from async_history._core.concurrency.threads import computed
from tests.support.patience import LONG_S


async def test_a_function_may_raise_what_a_future_can_not_hold() -> None:
    with pytest.raises(RuntimeError, match="the call raised StopIteration") as raised:
        await asyncio.wait_for(computed(lambda: next(iter(()))), LONG_S)
    assert isinstance(raised.value.__cause__, StopIteration)
