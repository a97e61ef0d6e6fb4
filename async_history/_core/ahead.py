"""Computing values of records on a thread while the records wait for their batch.

A server commits a batch for longer than the event loop needs to wake the callers of the previous
one. So what the next batch needs is computed meanwhile.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Generic, TypeVar

from async_history._core.records import Fields
from async_history._core.submissions import AddFields
from async_history._core.threads import computed

T = TypeVar("T")


def fields_waiting(submissions: Iterable[object]) -> list[Fields]:
    """Return the fields of the submissions that are single new records: those do not change."""
    return [one.fields for one in submissions if type(one) is AddFields]


class ComputedAhead(Generic[T]):
    """Values of records that wait, computed once for each batch."""

    def __init__(self) -> None:
        self._begun: asyncio.Task[Mapping[str, tuple[Fields, T]]] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether values were computed, or are, that no batch has asked for."""
        return self._begun is not None

    def begin(
        self, fields: Sequence[Fields], compute: Callable[[Sequence[Fields]], Iterable[T]]
    ) -> None:
        """Begin to compute a value for each record. None may have begun."""
        self._begun = asyncio.create_task(computed(partial(_by_id, fields, compute)))

    async def of(self, fields: Sequence[Fields]) -> list[T | None]:
        """Return the values for a batch; None for a record that was not among those that waited.

        If they could not be computed, there are none: the batch raises the error, if it persists.
        """
        if self._begun is None:
            return [None] * len(fields)
        begun, self._begun = self._begun, None
        await asyncio.wait([begun])
        if begun.cancelled() or begun.exception() is not None:
            return [None] * len(fields)
        found = begun.result()
        return [
            value[1] if (value := found.get(one[0])) is not None and value[0] is one else None
            for one in fields
        ]


def _by_id(
    fields: Sequence[Fields], compute: Callable[[Sequence[Fields]], Iterable[T]]
) -> Mapping[str, tuple[Fields, T]]:
    return {one[0]: (one, value) for one, value in zip(fields, compute(fields), strict=True)}
