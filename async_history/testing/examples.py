"""Trying a store with random examples."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

from async_history import HistoryManager
from async_history.testing.fixtures import OpenStore


def try_examples(
    open_store: OpenStore,
    example: Callable[..., Awaitable[None]],
    most: int,
    **drawn: SearchStrategy[Any],
) -> None:
    """Call `example(history, prefix, **drawn)` up to `most` times on one store.

    Each call has its own prefix for names.
    """
    with asyncio.Runner() as runner:
        history = runner.run(_opened(open_store))
        number = 0

        @settings(
            max_examples=most, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(**drawn)
        def one(**values: Any) -> None:
            nonlocal number
            number += 1
            runner.run(example(history, f"{number}.", **values))  # type: ignore[arg-type]

        try:
            one()
        finally:
            runner.run(history.aclose())


async def _opened(open_store: OpenStore) -> HistoryManager:
    return await open_store()
