"""Computing values of records on a thread while the records wait for their batch.

A server commits a batch for longer than the event loop needs to wake the callers of the previous
one. So what the next batch needs is computed meanwhile.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from operator import is_
from threading import Lock
from time import monotonic, sleep
from typing import Final, Generic, TypeVar

from async_history._core.concurrency.threads import computed
from async_history._core.records.records import Fields
from async_history._core.writing.submissions import AddFields

T = TypeVar("T")

_AT_ONCE_S: Final = 0.001
_PAUSE_S: Final = 0.000_05
"""Seconds after which the thread pauses, and how long, so that the event loop gets the GIL. Without
pauses it gets it after 5 ms."""


def fields_waiting(submissions: Iterable[object]) -> list[Fields]:
    """Return the fields of the submissions that are single new records, which do not change."""
    return [one.fields for one in submissions if type(one) is AddFields]


class ComputedAhead(Generic[T]):
    """Values of records that wait, computed once for each batch.

    Args:
        turn: held by the thread that computes. Two threads of a store would both compete with the
            event loop for the GIL.
    """

    def __init__(self, turn: Lock) -> None:
        self._turn = turn
        self._begun: _Computation[T] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether values have been, or are being, computed that no batch has asked for."""
        return self._begun is not None

    def begin(
        self, fields: Sequence[Fields], compute: Callable[[Sequence[Fields]], Iterable[T]]
    ) -> None:
        """Begin to compute a value for each record. Call it only if `has_begun` is false."""
        self._begun = _Computation(fields, compute, self._turn)

    def drop(self) -> None:
        """Forget what was begun: one of its records may not be written any more."""
        self._begun = None

    async def of(self, fields: Sequence[Fields]) -> list[T | None]:
        """Return the values for a batch; None for a record that was not among those that waited.

        If computing them failed, all are None: the batch computes them and raises a lasting error.
        """
        if self._begun is None:
            return [None] * len(fields)
        begun, self._begun = self._begun, None
        values = await begun.values()
        if not values:
            return [None] * len(fields)
        if len(begun.fields) == len(fields) and all(map(is_, begun.fields, fields)):
            return values
        found = {one[0]: (one, value) for one, value in zip(begun.fields, values, strict=True)}
        return [
            value[1] if (value := found.get(one[0])) is not None and value[0] is one else None
            for one in fields
        ]


class _Computation(Generic[T]):
    """A computation on a thread, which lets the event loop go first until its values are needed."""

    def __init__(
        self,
        fields: Sequence[Fields],
        compute: Callable[[Sequence[Fields]], Iterable[T]],
        turn: Lock,
    ) -> None:
        self.fields: Final = fields
        self._compute = compute
        self._turn = turn
        self._is_needed = False
        self._task = asyncio.create_task(computed(self._in_turn))

    async def values(self) -> list[T | None]:
        """Return the values in the order of the records; none if the computation failed."""
        self._is_needed = True
        if not self._task.done():
            await asyncio.wait([self._task])
        if self._task.cancelled() or self._task.exception() is not None:
            return []
        return self._task.result()

    def _in_turn(self) -> list[T | None]:
        with self._turn:
            values: list[T | None] = []
            pause_at = monotonic() + _AT_ONCE_S
            for value in self._compute(self.fields):
                values.append(value)
                if not self._is_needed and monotonic() > pause_at:
                    sleep(_PAUSE_S)
                    pause_at = monotonic() + _AT_ONCE_S
            return values
