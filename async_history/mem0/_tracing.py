"""The trace that an operation belongs to, as the cause of its records."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from async_history._core.recording import recording, with_surroundings

_TRACE_ID = "trace_id"


@contextmanager
def in_trace() -> Iterator[None]:
    """Give all records that are made inside the trace id of OpenTelemetry's current span.

    Where a trace id is given already, that one holds. OpenTelemetry is not imported here: without
    it in the process there is no span.
    """
    trace_id = _current_trace()
    _, cause = with_surroundings(None, None)
    if trace_id is None or (cause is not None and _TRACE_ID in cause):
        yield
        return
    with recording(cause={_TRACE_ID: trace_id}):
        yield


def _current_trace() -> str | None:
    api = sys.modules.get("opentelemetry.trace")
    current_span = getattr(api, "get_current_span", None)  # missing while the API is imported
    if current_span is None:
        return None
    span = current_span().get_span_context()
    return format(span.trace_id, "032x") if span.is_valid else None
