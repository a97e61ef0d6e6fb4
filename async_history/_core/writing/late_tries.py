"""Late tries of a batch, which find the submissions that keep it from being written."""

from collections.abc import Mapping, Sequence
from time import monotonic

from async_history._core.writing.commit_function import CommitTry
from async_history._core.writing.submissions import Submission
from async_history.errors import CommitUnknown, HistoryError, StorageError, StorageRefused


class LateTries:
    """Decides which tries of a batch are late, and remembers how its earlier ones failed.

    In a late try, a submission that could be written only later is refused, and the others of its
    batch are written.

    Args:
        after_s: seconds after the begin of a batch's first try when others are late.
    """

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        # When the first try of the batch began for which it is so:
        self._too_long: float | None = None
        self._unknown: float | None = None

    def is_late(self, this: CommitTry) -> bool:
        """Return whether submissions that wait or take too long are refused one by one."""
        return this.is_repeated and monotonic() - this.first_begun > self._after_s

    def note_too_long(self, this: CommitTry) -> None:
        """Note that a try took too long: the server ended a statement, or we the connection."""
        self._too_long = this.first_begun

    def note_unknown(self, this: CommitTry) -> None:
        """Note that the outcome of a try is unknown."""
        self._unknown = this.first_begun

    def was_too_long(self, this: CommitTry) -> bool:
        """Return whether an earlier try took too long.

        Only then statements are limited: otherwise a server that is merely slow would not get to
        the end of any.
        """
        return self._too_long == this.first_begun

    def is_unknown(self, this: CommitTry) -> bool:
        """Return whether an earlier try may have written the batch."""
        return self._unknown == this.first_begun

    def outcomes(
        self, batch: Sequence[Submission], refused: Mapping[int, HistoryError], this: CommitTry
    ) -> Mapping[int, HistoryError]:
        """Return what to raise for submissions that a try refused, by index.

        A submission that could not be written now may be of an earlier try that commits later: it
        may wait for that very transaction.
        """
        if not self.is_unknown(this):
            return refused
        return {index: _unless_written(error, batch[index]) for index, error in refused.items()}


def _unless_written(error: HistoryError, submission: Submission) -> HistoryError:
    if isinstance(error, StorageRefused) or not isinstance(error, StorageError):
        return error
    return unknown_outcome(error, submission)


def unknown_outcome(reason: HistoryError, submission: Submission) -> CommitUnknown:
    """Return the error of a submission that an earlier try may have written."""
    return CommitUnknown(f"the outcome is unknown: {reason}", submission.ids)
