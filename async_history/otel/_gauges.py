"""Counters and gauges of all stores, read when metrics are collected."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from async_history._core.stats import HistoryStats
from async_history._core.writing.writer_stats import WriterStats
from async_history.otel._open_stores import Collected, OpenStores
from async_history.otel._store import ERROR, attributes_of

Callback = Callable[[CallbackOptions], Iterable[Observation]]
Merge = Callable[[Iterable[float]], float]
"""What several managers of one store show together: `sum` or `max`."""
OfWriter = Callable[[WriterStats], float]
OfStore = Callable[[HistoryStats], float]

_COUNTERS: Final = (
    ("records", "{record}", "Records that were acknowledged.", "acked_records"),
    ("batches", "{batch}", "Batches that were committed.", "batches"),
    ("batches.failed", "{batch}", "Batches that failed.", "failed_batches"),
    ("lock.wait_time", "s", "Time that commits waited for locks.", "lock_wait_s"),
)
_QUEUE: Final[tuple[tuple[str, str, str, OfWriter, Merge], ...]] = (
    ("queue.records", "{record}", "Records in the queue.", lambda w: w.queued_records, sum),
    ("queue.size", "By", "Bytes of memory that the queue takes.", lambda w: w.queued_bytes, sum),
    ("queue.waiting", "{call}", "Calls that wait for space.", lambda w: w.waiting_callers, sum),
    (
        "queue.oldest_wait",
        "s",
        "Age of the oldest unacknowledged call.",
        lambda w: w.oldest_wait_s,
        max,
    ),
)
_STORE: Final[tuple[tuple[str, str, str, OfStore, Merge], ...]] = (
    ("store.size", "By", "Size of the file, or of the tables.", lambda s: s.file_bytes, max),
    ("store.log.size", "By", "Size of a file's write-ahead log.", lambda s: s.wal_bytes, max),
    ("followers", "{follower}", "Followers of the managers.", lambda s: s.followers, sum),
    ("follower.lag", "s", "How far the last follower is behind.", lambda s: s.follower_lag_s, max),
)


def create_gauges(meter: Meter, stores: OpenStores) -> None:
    """Create the instruments that read the statistics of stores."""
    read = _Readings(stores)
    meter.create_observable_counter(
        "async_history.submissions", [read.submissions], "{call}", "Calls that were acknowledged."
    )
    for name, unit, text, counted in _COUNTERS:
        callback = read.counter(counted)
        meter.create_observable_counter(f"async_history.{name}", [callback], unit, text)
    for name, unit, text, queued, merge in _QUEUE:
        callback = read.of_writers(queued, merge)
        meter.create_observable_gauge(f"async_history.{name}", [callback], unit, text)
    for name, unit, text, kept, merge in _STORE:
        callback = read.of_stores(kept, merge)
        meter.create_observable_gauge(f"async_history.{name}", [callback], unit, text)
    meter.create_observable_counter(
        "async_history.overloads",
        [read.counter("overloaded_submissions", **{ERROR: "Overloaded"})],
        "{call}",
        "Calls that found no space in the queue.",
    )
    meter.create_observable_gauge(
        "async_history.warnings", [read.warnings], "{warning}", "Warnings that hold now."
    )


class _Readings:
    """The functions that instruments call. They are called in the order of the instruments.

    `submissions` is the first: it collects the figures, which the others show.
    """

    def __init__(self, stores: OpenStores) -> None:
        self._stores = stores
        self._collected = Collected({}, {})

    def submissions(self, _: CallbackOptions) -> Iterable[Observation]:
        self._collected = self._stores.collect()
        return self._of_counter("acked_submissions", {})

    def counter(self, name: str, **attributes: str) -> Callback:
        return lambda _: self._of_counter(name, attributes)

    def of_writers(self, read: OfWriter, merge: Merge) -> Callback:
        return lambda _: [
            Observation(merge(map(read, writers)), attributes_of(*key))
            for key, managers in self._collected.open.items()
            if (writers := [stats.writer for stats in managers if stats.writer is not None])
        ]

    def of_stores(self, read: OfStore, merge: Merge) -> Callback:
        return lambda _: [
            Observation(merge(map(read, managers)), attributes_of(*key))
            for key, managers in self._collected.open.items()
        ]

    def warnings(self, _: CallbackOptions) -> Iterable[Observation]:
        for key, managers in self._collected.open.items():
            found = {(w.code, w.severity) for stats in managers for w in stats.warnings}
            for code, severity in sorted(found):
                of_warning = {"async_history.warning": code, "severity": severity}
                yield Observation(1, {**attributes_of(*key), **of_warning})

    def _of_counter(self, name: str, attributes: Mapping[str, str]) -> Iterator[Observation]:
        for key, counts in self._collected.counters.items():
            yield Observation(counts[name], {**attributes_of(*key), **attributes})
