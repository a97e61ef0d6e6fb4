"""The stores that are open in this process, and the counters of those that were closed."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Final
from weakref import ref

from async_history._core.backend import Writer
from async_history._core.stats import HistoryStats
from async_history._core.telemetry import ReportedStore
from async_history._core.writing.writer_stats import WriterStats

COUNTED: Final = (
    "acked_submissions",
    "acked_records",
    "batches",
    "failed_batches",
    "lock_wait_s",
    "overloaded_submissions",
)
"""The counters of `WriterStats`."""
StoreKey = tuple[str, str]
"""A store's `db.system.name` and its name in messages."""
Counts = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Collected:
    """The figures of one collection, by store. Several managers may have opened the same store.

    Attributes:
        counters: the sums over all managers of a store, closed ones included: they never decrease.
            What collects them takes a lower value for a restart, and counts all of it again.
        open: the statistics of each open manager.
    """

    counters: Mapping[StoreKey, Counts]
    open: Mapping[StoreKey, Sequence[HistoryStats]]


class OpenStores:
    """Collects the statistics of stores. Each method can be called from any thread."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Forget all stores: a forked process has opened none of them."""
        self._lock = Lock()  # another thread may have had it when the process forked
        self._writers: dict[ref[ReportedStore], tuple[StoreKey, Writer]] = {}
        self._closed: deque[ref[ReportedStore]] = deque()
        self._counters: dict[StoreKey, Counts] = {}

    def add(self, store: ReportedStore) -> None:
        """Add a store that a manager has opened. The manager keeps it until it has closed it."""
        with self._lock:
            self._count_closed()
            # Garbage collection may call this at any point, also while this thread has the lock.
            weak = ref(store, self._closed.append)
            self._writers[weak] = (store.system, store.where), store.writer

    def collect(self) -> Collected:
        """Return the current figures."""
        with self._lock:
            self._count_closed()
            counters = self._counters.copy()
            found = [(key, weak(), writer) for weak, (key, writer) in self._writers.items()]
        opened: dict[StoreKey, list[HistoryStats]] = {}
        for key, store, writer in found:
            if store is None:  # closed meanwhile
                _count(counters, key, writer.stats())
                continue
            # Not under the lock: a loop that adds a store could not answer.
            stats = store.last_stats()
            opened.setdefault(key, []).append(stats)
            _count(counters, key, stats.writer)
        return Collected(counters, opened)

    def _count_closed(self) -> None:
        while self._closed:
            key, writer = self._writers.pop(self._closed.popleft())
            _count(self._counters, key, writer.stats())


def _count(counters: dict[StoreKey, Counts], key: StoreKey, stats: WriterStats | None) -> None:
    """Add a writer's counters to those of its store."""
    if stats is not None:
        before = counters.get(key, {})
        counters[key] = {name: before.get(name, 0) + getattr(stats, name) for name in COUNTED}
