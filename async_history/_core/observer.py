"""What a writer tells who observes it, a batch at a time."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from async_history._core.queue import PendingCall
from async_history.errors import HistoryError


class WriterObserver(Protocol):
    """What a writer tells, on its loop. `begun` and `ended` are of `time.monotonic`."""

    @property
    def sees_calls(self) -> bool:
        """Whether `called` is wanted."""

    def called(self, call: PendingCall[Any]) -> None:
        """Note a call that was just queued. Its submission may not be ready yet."""

    def committed(
        self,
        batch: Sequence[PendingCall[Any]],
        refused: Mapping[int, HistoryError],
        begun: float,
        ended: float,
    ) -> None:
        """Note a batch that was committed, and which of its calls were refused, by index."""

    def failed(
        self, batch: Sequence[PendingCall[Any]], error: Exception, begun: float, ended: float
    ) -> None:
        """Note a batch of which nothing was written, or of which it is not known."""

    def retried(self, reason: Exception) -> None:
        """Note that a commit is tried again, and why."""

    def acknowledged(self, waits_s: Sequence[float]) -> None:
        """Note how long calls of a batch took; an even sample of them."""
