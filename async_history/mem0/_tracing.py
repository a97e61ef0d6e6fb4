"""The trace that an operation belongs to, as the cause of its records."""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from async_history._core.recording import MOST_KEYS, recording, with_surroundings

_TRACE_ID: Final = "trace_id"
_NO_TRACE: Final = nullcontext()


def in_trace() -> AbstractContextManager[None]:
    """Give all records that are made inside the trace id of OpenTelemetry's current span.

    Where a trace id is given already, that one holds. A cause that is full stays as it is: no
    operation is refused for its trace. OpenTelemetry is not imported here: without it in the
    process there is no span.
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
