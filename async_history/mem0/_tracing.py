"""The trace of an operation, in the cause of its records."""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from async_history._core.records.recording import MOST_KEYS, recording, with_surroundings

_TRACE_ID: Final = "trace_id"
_NO_TRACE: Final = nullcontext()


def in_trace() -> AbstractContextManager[None]:
    """Give the trace id of OpenTelemetry's current span to all records made inside.

    An existing trace id is kept. A full cause is not changed: no operation is refused because of
    its trace. OpenTelemetry is not imported here: if the process has not imported it, there is no
    span.
    """
    trace_id = _current_trace()
    if trace_id is None:
        return _NO_TRACE
    _, cause = with_surroundings(None, None)
    if cause is not None and (_TRACE_ID in cause or len(cause) == MOST_KEYS):
        return _NO_TRACE
    return recording(cause={_TRACE_ID: trace_id})


def _current_trace() -> str | None:
    api = sys.modules.get("opentelemetry.trace")
    current_span = getattr(api, "get_current_span", None)  # missing while the API is imported
    if current_span is None:
        return None
    span = current_span().get_span_context()
    return format(span.trace_id, "032x") if span.is_valid else None
