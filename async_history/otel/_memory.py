"""Operations of mem0's classes, by the semantic conventions for generative AI memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Final

from opentelemetry.metrics import Meter
from opentelemetry.trace import Span, SpanKind, Tracer, get_current_span

from async_history._core.telemetry import NoteMemory
from async_history.otel._store import DURATIONS_S, ERROR, fail

_OPERATIONS: Final = {
    "add": "upsert_memory",
    "create": "create_memory",
    "update": "update_memory",
    "delete": "delete_memory",
    "delete_all": "delete_memory",
    "search": "search_memory",
    "reset": "delete_memory_store",
}
"""`gen_ai.operation.name` of mem0's operations. The others keep their names."""
_NAME: Final = "gen_ai.operation.name"
_STORE_ID: Final = "gen_ai.memory.store.id"
_RECORD_ID: Final = "gen_ai.memory.record.id"


class MemoryOperations:
    """Records the durations of operations, and their spans.

    Args:
        tracer: makes the spans; None makes none.
    """

    def __init__(self, meter: Meter, tracer: Tracer | None) -> None:
        self._tracer = tracer
        self._duration = meter.create_histogram(
            "gen_ai.client.operation.duration",
            "s",
            "How long operations of mem0's classes took, with their records' acknowledgements.",
            explicit_bucket_boundaries_advisory=DURATIONS_S,
        )

    @contextmanager
    def operation(self, name: str, store: str, memory_id: str | None) -> Iterator[NoteMemory]:
        """Report the operation in the body."""
        attributes = {_NAME: _OPERATIONS.get(name, name), _STORE_ID: store}
        begun = monotonic()
        try:
            with self._span(attributes, memory_id) as note:
                yield note
        except BaseException as error:
            attributes[ERROR] = type(error).__name__
            raise
        finally:
            self._duration.record(monotonic() - begun, attributes)

    @contextmanager
    def change(
        self, name: str, store: str, memory_id: str | None, within: str
    ) -> Iterator[NoteMemory]:
        """Report the operation's change of one memory in the body.

        For an update and a deletion, the change is the operation itself, which then has the
        memory's id.
        """
        if self._tracer is None:
            yield _note_nothing
        elif name == within:
            note = _noting(get_current_span())
            note(memory_id)
            yield note
        else:
            attributes = {_NAME: _OPERATIONS.get(name, name), _STORE_ID: store}
            with self._span(attributes, memory_id) as note:
                yield note

    @contextmanager
    def _span(self, attributes: dict[str, str], memory_id: str | None) -> Iterator[NoteMemory]:
        if self._tracer is None:
            yield _note_nothing
            return
        # Only the class of an error is noted: its message may contain a memory's text.
        with self._tracer.start_as_current_span(
            attributes[_NAME],
            kind=SpanKind.INTERNAL,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            note = _noting(span)
            note(memory_id)
            try:
                yield note
            except BaseException as error:
                fail(span, error)
                raise


def _noting(span: Span) -> NoteMemory:
    def note(memory_id: object) -> None:
        if isinstance(memory_id, str):
            span.set_attribute(_RECORD_ID, memory_id)

    return note


def _note_nothing(memory_id: object) -> None: ...
