"""Spans of reads: one for each read of the store by a call, in the caller's trace."""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from datetime import datetime
from typing import Final

from opentelemetry.trace import SpanKind, Tracer

from async_history._core.backend import CallReader
from async_history._core.reading.cursors import Cursor
from async_history._core.reading.filters import Filter
from async_history._core.reading.query import PageRead
from async_history._core.reading.timeline import Moment
from async_history._core.records.messages import Message
from async_history._core.records.records import HistoryRecord
from async_history.otel._store import OPERATION, fail

_ROWS: Final = "db.response.returned_rows"


class TracedReader:
    """Wraps a reader: each read has a span.

    Args:
        reader: the wrapped reader.
        attributes: of the store, as `attributes_of` returns them.
    """

    def __init__(self, reader: CallReader, tracer: Tracer, attributes: dict[str, str]) -> None:
        self._reader = reader
        self.next_cursor = reader.next_cursor
        self._tracer = tracer
        self._attributes = attributes

    async def history(self, memory_id: str) -> list[HistoryRecord]:
        """Read a memory, in a span."""
        with self._span("get_history") as note_rows:
            records = await self._reader.history(memory_id)
            note_rows(records)
        return records

    async def last_change(self, memory_id: str, when: Moment) -> HistoryRecord | None:
        """Read one record of a memory, in a span."""
        with self._span("memory_at") as note_rows:
            found = await self._reader.last_change(memory_id, when)
            note_rows([] if found is None else [found])
        return found

    async def page(self, wanted: Filter, after: Cursor | None, limit: int, ahead: int) -> PageRead:
        """Read a page, in a span."""
        with self._span("query_history") as note_rows:
            page = await self._reader.page(wanted, after, limit, ahead)
            note_rows(page.records)
        return page

    async def count(self, wanted: Filter) -> int:
        """Count, in a span."""
        with self._span("count_history"):
            return await self._reader.count(wanted)

    async def states_at(self, when: datetime) -> AsyncIterator[Sequence[HistoryRecord]]:
        """Read pages of states, each in a span; the last span finds none."""
        pages = self._reader.states_at(when)
        while True:
            with self._span("memories_at") as note_rows:
                records = await anext(pages, None)
                note_rows(records or ())
            if records is None:
                return
            yield records

    async def last_messages(self, session_scope: str, limit: int) -> Sequence[Message]:
        """Read messages, in a span."""
        with self._span("get_last_messages") as note_rows:
            messages = await self._reader.last_messages(session_scope, limit)
            note_rows(messages)
        return messages

    @contextmanager
    def _span(self, name: str) -> Iterator[Callable[[Sized], None]]:
        """Begin a span; yield a function that notes the rows found."""
        # Only the class of an error is noted: its message may name a memory.
        with self._tracer.start_as_current_span(
            name,
            kind=SpanKind.INTERNAL,
            attributes={**self._attributes, OPERATION: name},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield lambda found: span.set_attribute(_ROWS, len(found))
            except BaseException as error:
                fail(span, error)
                raise
