"""Metrics and spans of OpenTelemetry. It needs only the extra `otel` (opentelemetry-api).

from async_history.otel import instrument
instrument(spans={"memory", "commits"})
"""

from async_history._core.public import show_as
from async_history.otel._instrument import SpanKind, instrument, uninstrument

__all__ = ["SpanKind", "instrument", "uninstrument"]

show_as(__name__, __all__, globals())
