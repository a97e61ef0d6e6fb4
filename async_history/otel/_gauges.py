"""Counters and gauges of all open stores, read when metrics are collected."""

from collections.abc import Callable, Iterable, Iterator
from typing import Final
from weakref import WeakSet

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from async_history._core.stats import HistoryStats
from async_history._core.telemetry import ReportedStore
from async_history._core.writing.writer_stats import WriterStats
from async_history.otel._store import ERROR, attributes_of

OfWriter = Callable[[WriterStats], float]
OfStore = Callable[[HistoryStats], float]

_COUNTERS: Final[tuple[tuple[str, str, str, OfWriter], ...]] = (
    ("records", "{record}", "Records that were acknowledged.", lambda w: w.acked_records),
    ("batches", "{batch}", "Batches that were committed.", lambda w: w.batches),
    ("batches.failed", "{batch}", "Batches that failed.", lambda w: w.failed_batches),
    ("lock.wait_time", "s", "Time that commits waited for locks.", lambda w: w.lock_wait_s),
)
_QUEUE: Final[tuple[tuple[str, str, str, OfWriter], ...]] = (
    ("queue.records", "{record}", "Records in the queue.", lambda w: w.queued_records),
    ("queue.size", "By", "Bytes of memory that the queue takes.", lambda w: w.queued_bytes),
    ("queue.waiting", "{call}", "Calls that wait for space.", lambda w: w.waiting_callers),
    ("queue.oldest_wait", "s", "Age of the oldest unanswered call.", lambda w: w.oldest_wait_s),
)
_STORE: Final[tuple[tuple[str, str, str, OfStore], ...]] = (
    ("store.size", "By", "Size of the file, or of the tables.", lambda s: s.file_bytes),
    ("store.log.size", "By", "Size of a file's write-ahead log.", lambda s: s.wal_bytes),
    ("followers", "{follower}", "Followers of the manager.", lambda s: s.followers),
    ("follower.lag", "s", "How far the last follower is behind.", lambda s: s.follower_lag_s),
)


class _Collected:
    """The statistics of all open stores, as of one collection."""

    def __init__(self, stores: WeakSet[ReportedStore]) -> None:
        self._stores = stores
        self._found: list[tuple[dict[str, str], HistoryStats]] = []

    def refresh(self) -> None:
        """Read them again."""
        self._found = [(attributes_of(store), store.last_stats()) for store in list(self._stores)]

    def __iter__(self) -> Iterator[tuple[dict[str, str], HistoryStats]]:
        return iter(self._found)


def create_gauges(meter: Meter, stores: WeakSet[ReportedStore]) -> None:
    """Create the instruments that read the statistics of stores."""
    collected = _Collected(stores)

    def of_writer(read: OfWriter) -> Callable[[CallbackOptions], Iterable[Observation]]:
        return lambda _: [
            Observation(read(stats.writer), attributes)
            for attributes, stats in collected
            if stats.writer is not None
        ]

    def submissions(options: CallbackOptions) -> Iterable[Observation]:
        collected.refresh()  # instruments are collected in the order in which they were created
        return of_writer(lambda writer: writer.acked_submissions)(options)

    def of_store(read: OfStore) -> Callable[[CallbackOptions], Iterable[Observation]]:
        return lambda _: [Observation(read(stats), attributes) for attributes, stats in collected]

    def warnings(_: CallbackOptions) -> Iterable[Observation]:
        for attributes, stats in collected:
            for warning in stats.warnings:
                of_warning = {"async_history.warning": warning.code, "severity": warning.severity}
                yield Observation(1, {**attributes, **of_warning})

    def overloads(_: CallbackOptions) -> Iterable[Observation]:
        for attributes, stats in collected:
            if stats.writer is not None:
                count = stats.writer.overloaded_submissions
                yield Observation(count, {**attributes, ERROR: "Overloaded"})

    meter.create_observable_counter(
        "async_history.submissions", [submissions], "{call}", "Calls that were acknowledged."
    )
    for name, unit, text, counted in _COUNTERS:
        meter.create_observable_counter(f"async_history.{name}", [of_writer(counted)], unit, text)
    for name, unit, text, queued in _QUEUE:
        meter.create_observable_gauge(f"async_history.{name}", [of_writer(queued)], unit, text)
    for name, unit, text, kept in _STORE:
        meter.create_observable_gauge(f"async_history.{name}", [of_store(kept)], unit, text)
    meter.create_observable_counter(
        "async_history.overloads", [overloads], "{call}", "Calls that found no space in the queue."
    )
    meter.create_observable_gauge(
        "async_history.warnings", [warnings], "{warning}", "Warnings that hold now."
    )
