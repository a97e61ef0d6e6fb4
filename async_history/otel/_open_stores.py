"""The stores that are open in this process, and the counters of those that were closed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import RLock
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
Writers = Mapping[ref[ReportedStore], tuple[StoreKey, Writer]]


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
    """Collects the statistics of stores. Each method can be called from any thread.

    A signal handler may collect at any point of `add` and `collect`, in the same thread. So the
    lock is reentrant, and the state is one tuple, which is replaced: the handler finds it complete,
    and what it stores has the same sums.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Forget all stores: a forked process has opened none of them."""
        self._lock = RLock()  # another thread may have had it when the process forked
        self._state: tuple[Writers, Mapping[StoreKey, Counts]] = {}, {}
        """The writers of stores that may be open, and the counters of the others."""

    def add(self, store: ReportedStore) -> None:
        """Add a store that a manager has opened. The manager keeps it until it has closed it."""
        key = store.system, store.where
        with self._lock:
            writers, counters = self._without_closed()
            self._state = {**writers, ref(store): (key, store.writer)}, counters

    def collect(self) -> Collected:
        """Return the current figures."""
        with self._lock:
            writers, closed = self._state = self._without_closed()
        counters = dict(closed)
        opened: dict[StoreKey, list[HistoryStats]] = {}
        for weak, (key, writer) in writers.items():
            if (store := weak()) is None:  # closed meanwhile
                _count(counters, key, writer.stats())
                continue
            # Not under the lock: a loop that adds a store could not answer.
            stats = store.last_stats()
            opened.setdefault(key, []).append(stats)
            _count(counters, key, stats.writer)
        return Collected(counters, opened)

    def _without_closed(self) -> tuple[Writers, Mapping[StoreKey, Counts]]:
        """Return the state with the closed stores' writers in the counters."""
        writers, before = self._state
        counters = dict(before)
        kept: dict[ref[ReportedStore], tuple[StoreKey, Writer]] = {}
        for weak, (key, writer) in writers.items():
            if weak() is None:
                _count(counters, key, writer.stats())
            else:
                kept[weak] = key, writer
        return kept, counters


def _count(counters: dict[StoreKey, Counts], key: StoreKey, stats: WriterStats | None) -> None:
    """Add a writer's counters to those of its store."""
    if stats is not None:
        before = counters.get(key, {})
        counters[key] = {name: before.get(name, 0) + getattr(stats, name) for name in COUNTED}
