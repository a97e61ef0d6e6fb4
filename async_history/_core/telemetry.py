"""The interface to telemetry.

Managers call it when they open, mem0's classes for each operation.
A process has at most one `Telemetry`, which `async_history.otel` sets. Without it each call costs
only a comparison.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from threading import Event, get_ident
from typing import Any, Final, Protocol

from async_history._core.backend import CallReader, Writer
from async_history._core.reading.follower_group import FollowerGroup
from async_history._core.stats import HistoryStats, Measurements, history_stats

NoteMemory = Callable[[object], None]
"""Notes the id of an operation's memory; values that are not text are ignored."""


class ReportedStore:
    """An open store and its manager's parts, for telemetry. The manager keeps it.

    Args:
        system: its `db.system.name` of OpenTelemetry's semantic conventions.
        where: its name in messages, without a password.
        writer: reports its batches.
        measurements: its sizes and warnings.
        group: its followers.

    Attributes:
        answer_within_s: seconds for which another thread waits for the loop's answer.
    """

    def __init__(
        self,
        system: str,
        where: str,
        writer: Writer,
        measurements: Measurements,
        group: FollowerGroup[Any],
    ) -> None:
        self.system = system
        self.where = where
        self.writer = writer
        self.answer_within_s = 1.0
        self._measurements = measurements
        self._group = group
        self._loop = asyncio.get_running_loop()
        self._thread = get_ident()
        self._last = self._stats()

    def last_stats(self) -> HistoryStats:
        """Return the current statistics, from any thread, with the sizes of the last measurement.

        A new measurement begins. If the loop does not answer in time, the previous call's
        statistics are returned.
        """
        if get_ident() == self._thread:
            self._refresh()
            return self._last
        answered = Event()

        def refresh() -> None:
            self._refresh()
            answered.set()

        try:
            self._loop.call_soon_threadsafe(refresh)
        except RuntimeError:  # its loop is closed: nothing else uses the writer
            self._last = self._stats()
        else:
            answered.wait(self.answer_within_s)
        return self._last

    def _stats(self) -> HistoryStats:
        return history_stats(self.where, self.writer.stats(), self._group, self._measurements.last)

    def _refresh(self) -> None:
        self._last = self._stats()
        if self._loop.is_running():
            self._measurements.begin()


class Telemetry(Protocol):
    """The telemetry of a process."""

    def opened(self, store: ReportedStore) -> None:
        """Observe a store, as long as its manager keeps `store`."""

    def reader(self, store: ReportedStore, reader: CallReader) -> CallReader | None:
        """Return the reader for the calls of a store's manager; None keeps the given one."""

    def memory_operation(
        self, name: str, store: str, memory_id: str | None, within: str | None
    ) -> AbstractContextManager[NoteMemory]:
        """Report an operation of a mem0 class, or its change of one memory, that runs inside.

        Args:
            name: mem0's name of the operation, such as "add", or "create" of a new memory.
            store: the history's name in messages.
            memory_id: the operation's memory, if there is exactly one.
            within: the name of the operation that this change belongs to; None for an operation
                itself.

        Returns:
            A context manager that returns a function to call with the memory's id when it is known.
        """


_current: Telemetry | None = None
_UNREPORTED: Final = nullcontext[NoteMemory](lambda _: None)


def set_telemetry(telemetry: Telemetry | None) -> None:
    """Set the telemetry of this process from now on, or none."""
    global _current
    _current = telemetry


def telemetry() -> Telemetry | None:
    """Return the telemetry of this process."""
    return _current


def memory_operation(
    name: str, store: str, memory_id: str | None = None, *, within: str | None = None
) -> AbstractContextManager[NoteMemory]:
    """Return the context manager for an operation of a mem0 class: see
    `Telemetry.memory_operation`.
    """
    if _current is None:
        return _UNREPORTED
    return _current.memory_operation(name, store, memory_id, within)
