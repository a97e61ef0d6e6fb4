"""What `stats()` measures: asked for in the background, so that an operator's call never hangs."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Final

from async_history._core.backend import Measured, StoreWarning
from async_history.errors import HistoryError

_FRESH_WITHIN_S: Final = 0.5
"""How long a measurement is waited for: more than a store takes that is well."""


class Measurements:
    """The last known figures of a store, and at most one measurement that is under way.

    Args:
        measure: measures the store. It may take long, or fail.
    """

    def __init__(self, measure: Callable[[], Awaitable[Measured]]) -> None:
        self._measure = measure
        self._last = Measured()
        self._under_way: asyncio.Task[None] | None = None
        self._failure: HistoryError | None = None
        self._due = 0.0

    async def latest(self) -> Measured:
        """Return fresh figures, or within half a second the last known and a warning why."""
        loop = asyncio.get_running_loop()
        if self._under_way is None:
            self._under_way = loop.create_task(self._refresh())
            self._due = loop.time() + _FRESH_WITHIN_S
        task = self._under_way
        await asyncio.wait([task], timeout=max(0.0, self._due - loop.time()))
        if not task.done():
            why = f"it has not answered for {_FRESH_WITHIN_S} s"
        elif not task.cancelled() and task.exception() is not None:
            raise task.exception()  # type: ignore[misc]  # a fault of ours
        elif self._failure is not None:
            why = str(self._failure)
        else:
            return self._last
        warning = StoreWarning(
            "store-unreachable",
            "critical",
            f"the store does not answer ({why}); sizes and warnings are those of the last answer",
        )
        return dataclasses.replace(self._last, warnings=(warning, *self._last.warnings))

    async def _refresh(self) -> None:
        try:
            self._last = await self._measure()
            self._failure = None
        except HistoryError as error:
            self._failure = error
        finally:
            self._under_way = None

    def close(self) -> None:
        """Stop measuring."""
        if self._under_way is not None:
            self._under_way.cancel()
