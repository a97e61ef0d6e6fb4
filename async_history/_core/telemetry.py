"""What telemetry is told: by managers when they open, by mem0's classes at each operation.

A process has at most one `Telemetry`, which `async_history.otel` sets. Without it each call pays a
comparison, and nothing else.
"""

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from threading import Event, get_ident
from typing import Any, Final, Protocol

from async_history._core.backend import CallReader, Writer
from async_history._core.stats import HistoryStats, Measurements, history_stats
from async_history._core.tail import Tail

NoteMemory = Callable[[object], None]
"""Notes the id of the memory that an operation is about; anything but a text is not one."""


class ReportedStore:
    """An open store and its manager's parts, as telemetry reports them. The manager keeps it.

    Args:
        system: its `db.system.name` of OpenTelemetry's semantic conventions.
        where: what messages call it, without a password.
        writer: what tells about its batches.
        measurements: its sizes and warnings.
        tail: its followers.

    Attributes:
        answer_within_s: seconds that another thread waits for the loop's answer.
    """

    def __init__(
        self,
        system: str,
        where: str,
        writer: Writer,
        measurements: Measurements,
        tail: Tail[Any],
    ) -> None:
        self.system = system
        self.where = where
        self.writer = writer
        self.answer_within_s = 1.0
        self._measurements = measurements
        self._tail = tail
        self._loop = asyncio.get_running_loop()
        self._thread = get_ident()
        self._last = self._stats()

    def last_stats(self) -> HistoryStats:
        """Return the statistics now, from any thread, with the sizes of the last measurement.

        A new measurement begins. A loop that does not answer in time has those of the call
        before.
        """
        if get_ident() == self._thread:
            self._refresh()
            return self._last
        answered = Event()

        def refresh() -> None:
            self._refresh()
            answered.set()

        with contextlib.suppress(RuntimeError):  # its loop is closed
            self._loop.call_soon_threadsafe(refresh)
            answered.wait(self.answer_within_s)
        return self._last

    def _stats(self) -> HistoryStats:
        return history_stats(self.where, self.writer.stats(), self._tail, self._measurements.last)

    def _refresh(self) -> None:
        self._last = self._stats()
        if self._loop.is_running():
            self._measurements.begin()


class Telemetry(Protocol):
    """What a process reports to."""

    def opened(self, store: ReportedStore) -> None:
        """Observe a store, for as long as its manager keeps this."""

    def reader(self, store: ReportedStore, reader: CallReader) -> CallReader | None:
        """Return what the calls of a store's manager read through; None leaves them the reader."""

    def memory_operation(
        self, name: str, store: str, memory_id: str | None, within: str | None
    ) -> AbstractContextManager[NoteMemory]:
        """Report an operation of a mem0 class, or its change of one memory, which runs inside.

        Args:
            name: mem0's name of the operation, such as "add", or "create" of a new memory.
            store: what messages call the history.
            memory_id: the one memory that it is about, where it is.
            within: the name of the operation whose change this is; None of an operation itself.

        Returns:
            To be entered; it gives what to call with the id of the memory once that is known.
        """


_current: Telemetry | None = None
_UNREPORTED: Final = nullcontext[NoteMemory](lambda _: None)


def set_telemetry(telemetry: Telemetry | None) -> None:
    """Report to this from now on, or to nothing."""
    global _current
    _current = telemetry


def telemetry() -> Telemetry | None:
    """Return what the process reports to."""
    return _current


def memory_operation(
    name: str, store: str, memory_id: str | None = None, *, within: str | None = None
) -> AbstractContextManager[NoteMemory]:
    """Return what an operation of a mem0 class runs inside: see `Telemetry.memory_operation`."""
    if _current is None:
        return _UNREPORTED
    return _current.memory_operation(name, store, memory_id, within)
