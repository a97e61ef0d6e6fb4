"""The state of a store for operators, measured without making them wait."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

from async_history._core.reading.follower_group import FollowerGroup
from async_history._core.wording import counted
from async_history._core.writing.writer_stats import WriterStats
from async_history.errors import HistoryError

Severity = Literal["warning", "critical"]
"""critical: acknowledged records may be lost, or cannot be found. warning: anything less."""


class StoreWarning(str):
    """A fact that an operator should know about a store: a sentence, with a code for programs.

    Attributes:
        code: its subject, in words joined by hyphens; stable from release to release.
        severity: see `Severity`.
    """

    __slots__ = ("code", "severity")

    code: str
    severity: Severity

    def __new__(cls, code: str, severity: Severity, text: str) -> Self:
        warning = super().__new__(cls, text)
        warning.code = code
        warning.severity = severity
        return warning

    def __reduce__(self) -> tuple[type[Self], tuple[str, Severity, str]]:
        return type(self), (self.code, self.severity, str(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryStats:
    """A manager's state for operators: its queue and writer, the store's sizes, and warnings."""

    store: str
    """The file's path, or the server's URL without its password."""
    writer: WriterStats | None
    """The queue and the writer; None if the store cannot be written, or keeps nothing."""
    file_bytes: int
    """Bytes of the file, or of the server's tables and indexes; 0 in memory."""
    wal_bytes: int
    """Bytes of a file's write-ahead log; 0 if there is none."""
    followers: int
    """Number of this manager's followers."""
    follower_lag_s: float
    """Seconds since the slowest follower last had all records; 0 if all followers have them."""
    warnings: tuple[StoreWarning, ...]
    """Warnings for an operator; empty if there are none."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A measurement of a store: sizes in bytes, and warnings."""

    file_bytes: int = 0
    wal_bytes: int = 0
    warnings: tuple[StoreWarning, ...] = ()


def history_stats(
    where: str, writer: WriterStats | None, group: FollowerGroup[Any], measured: Measured
) -> HistoryStats:
    """Return the statistics of a store with these sizes and warnings."""
    lags_s = group.lags_s()
    return HistoryStats(
        store=where,
        writer=writer,
        file_bytes=measured.file_bytes,
        wal_bytes=measured.wal_bytes,
        followers=len(lags_s),
        follower_lag_s=max(lags_s, default=0.0),
        warnings=measured.warnings,
    )


_FRESH_WITHIN_S: Final = 0.5
"""Seconds to wait for a measurement: longer than a healthy store needs."""


class Measurements:
    """The last known figures of a store, with at most one running measurement.

    Args:
        measure: measures the store. It may take long, or fail.
    """

    def __init__(self, measure: Callable[[], Awaitable[Measured]]) -> None:
        self._measure = measure
        self._last = Measured()
        self._under_way: asyncio.Task[None] | None = None
        self._failure: HistoryError | None = None
        self._due = 0.0

    async def latest(self) -> Measured:
        """Return new figures, or after half a second the last known ones with a warning."""
        loop = asyncio.get_running_loop()
        task = self.begin()
        await asyncio.wait([task], timeout=max(0.0, self._due - loop.time()))
        if not task.done():
            why = f"it has not answered for {_FRESH_WITHIN_S} s"
        elif not task.cancelled() and task.exception() is not None:
            raise task.exception()  # type: ignore[misc]  # a fault of this library
        elif self._failure is not None:
            why = str(self._failure)
        else:
            return self._last
        warning = StoreWarning(
            "store-unreachable",
            "critical",
            f"the store does not answer ({why}); sizes and warnings are those of the last answer",
        )
        return dataclasses.replace(self._last, warnings=(warning, *self._last.warnings))

    @property
    def last(self) -> Measured:
        """The last known figures."""
        return self._last

    def begin(self) -> "asyncio.Task[None]":
        """Start a measurement, unless one is running, and return its task."""
        if self._under_way is None:
            loop = asyncio.get_running_loop()
            self._under_way = loop.create_task(self._refresh())
            self._due = loop.time() + _FRESH_WITHIN_S
        return self._under_way

    async def _refresh(self) -> None:
        try:
            self._last = await self._measure()
            self._failure = None
        except HistoryError as error:
            self._failure = error
        finally:
            self._under_way = None

    def close(self) -> None:
        """Stop measuring."""
        if self._under_way is not None:
            self._under_way.cancel()


def clear_warning(clear: int) -> Sequence[StoreWarning]:
    """Return the warning about clear records in an encrypted store, if there are any."""
    if not clear:
        return ()
    return (
        StoreWarning(
            "clear-records",
            "warning",
            f"{counted(clear, 'record has', 'records have')} texts in clear: recorded before "
            "encryption was turned on, or by a program without the keys",
        ),
    )
