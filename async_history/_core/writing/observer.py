"""The interface for observers of a writer, called batch by batch."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from async_history._core.writing.pending_calls import PendingCall
from async_history.errors import HistoryError


class WriterObserver(Protocol):
    """Observes a writer, on its loop. `begun` and `ended` are times of `time.monotonic`."""

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
        """Note a committed batch, and its refused calls by index."""

    def failed(
        self, batch: Sequence[PendingCall[Any]], error: Exception, begun: float, ended: float
    ) -> None:
        """Note a batch of which nothing was written, or whose outcome is unknown."""

    def retried(self, reason: Exception) -> None:
        """Note a retry of a commit, and its reason."""

    def acknowledged(self, waits_s: Sequence[float]) -> None:
        """Note how long calls of a batch took, for an even sample of them."""
