"""What does telemetry cost, with OpenTelemetry's own SDK?

    python -m benchmarks.telemetry [--quick] [--repeat 3] [--dir FOLDER]

1,000 tasks record into a file: without telemetry, with metrics, and with metrics and a span for
each call. The ways take turns, in a random order. Metrics are collected once a second. Spans are
exported in batches, on threads of the SDK, to an exporter that drops them.
"""

import asyncio
import random
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Final

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from async_history import open_history
from async_history.otel import SpanKind, instrument, uninstrument
from benchmarks._measure import OthersLoad, flat_out, median, quiet_collector
from benchmarks._records import NewRecord, agents
from benchmarks._report import (
    Bar,
    as_json,
    each,
    options_parser,
    print_bars,
    print_load,
    rate,
    results_folder,
    work_folder,
    write_json,
)

_TASKS: Final = 1_000
_EVENTS: Final = 60_000
_ROUNDS: Final = 4
_LIMIT_S: Final = 60.0
OFF: Final = "off"
METRICS: Final = "metrics"
SPANS: Final = "a span a call"
_BARS: Final = {METRICS: 0.97, SPANS: 0.7}
"""The least ratio of events a second with telemetry to those without."""


class _DroppedSpans(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


class _DroppedMetrics(MetricExporter):
    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_: object
    ) -> MetricExportResult:
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **_: object) -> None: ...


@contextmanager
def _instrumented(*spans: SpanKind) -> Iterator[None]:
    reader = PeriodicExportingMetricReader(_DroppedMetrics(), export_interval_millis=1_000)
    meters, tracers = MeterProvider([reader]), TracerProvider()
    tracers.add_span_processor(BatchSpanProcessor(_DroppedSpans()))
    instrument(spans=spans, meter_provider=meters, tracer_provider=tracers)
    try:
        yield
    finally:
        uninstrument()
        meters.shutdown()
        tracers.shutdown()


WAYS: Final[Mapping[str, Callable[[], AbstractContextManager[None]]]] = {
    OFF: nullcontext,
    METRICS: _instrumented,
    SPANS: partial(_instrumented, "calls"),
}


async def events_per_s(file: Path, events: int) -> float:
    """Record from many tasks, and return the acknowledged events a second."""
    per_agent = agents(_TASKS, events)
    async with open_history(file) as history:

        async def add(record: NewRecord) -> None:
            await history.add_history(**record.as_mapping())

        with quiet_collector():
            cell = await flat_out(OFF, add, per_agent, _LIMIT_S)
    return cell.events / cell.seconds


def main(options: Namespace) -> None:
    """Measure, print, and write the results."""
    events, rounds = (2_000, 1) if options.quick else (_EVENTS, _ROUNDS * options.repeat)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    load = OthersLoad()
    with work_folder(options.dir) as folder:
        for number in range(rounds):
            for way in random.sample(list(WAYS), len(WAYS)):
                with WAYS[way]():
                    file = folder / f"{number} {way}.db"
                    found[way].append(asyncio.run(events_per_s(file, events)))
        others = load.processors()
        bars = []
        for way, limit in _BARS.items():
            ratios = [on / off for on, off in zip(found[way], found[OFF], strict=True)]
            figures = f"{rate(median(found[way]))} / {rate(median(found[OFF]))} events/s"
            measure = f"1,000 tasks: events/s with {way} against off"
            bars.append(Bar(measure, limit, median(ratios), f"{figures}; {each(ratios)}"))
        print_bars(bars)
        print_load(others)
        write_json(
            results_folder(options, folder) / "telemetry.json",
            {
                "processors_others_used": others,
                "events_per_s": found,
                "bars": [as_json(bar) for bar in bars],
            },
        )


if __name__ == "__main__":
    main(options_parser(__doc__).parse_args())
