"""OpenTelemetry's SDK, with what it exports kept in memory."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, Metric, Sum
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from async_history.otel import SpanKind, instrument, uninstrument

Point = tuple[dict[str, Any], Any]
"""The attributes and the value of a data point; a histogram's value is its count and sum."""


class Exported:
    """The exported metrics and spans."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self._spans = InMemorySpanExporter()
        self.meters = MeterProvider([self._reader])
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._spans))

    def _collect(self) -> list[Metric]:
        data = self._reader.get_metrics_data()
        return [
            metric
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]

    def metrics(self) -> dict[str, list[Point]]:
        """Collect, and return the data points of each metric by its name."""
        return {
            one.name: [_point(point) for point in one.data.data_points] for one in self._collect()
        }

    def kinds(self) -> list[tuple[str, str, bool]]:
        """Collect, and return the name and unit of each metric, and whether it only grows."""
        return [(one.name, one.unit or "", isinstance(one.data, Sum)) for one in self._collect()]

    def spans(self, name: str | None = None) -> list[ReadableSpan]:
        """Return the ended spans."""
        return [s for s in self._spans.get_finished_spans() if name in (None, s.name)]


def _point(point: Any) -> Point:
    value = (point.count, point.sum) if hasattr(point, "count") else point.value
    return dict(point.attributes), value


@pytest.fixture
def instrumented() -> Iterator[Callable[..., Exported]]:
    """Instrument the process with these spans, until the test ends."""
    exported = Exported()

    def begin(*spans: SpanKind) -> Exported:
        instrument(spans=spans, meter_provider=exported.meters, tracer_provider=exported.tracers)
        return exported

    yield begin
    uninstrument()
    exported.meters.shutdown()
    exported.tracers.shutdown()
