"""A batch in parts, each in a transaction of its own.

A database may end the whole transaction, or the connection, for one submission that waits for a
lock, takes too long, or breaks a constraint that is checked at the commit. So its neighbours are
written in other transactions.
"""

import copy
from collections.abc import Sequence
from math import ceil, isqrt
from time import monotonic

from async_history._core.writing.commit_function import OutcomeUnknown
from async_history._core.writing.late_tries import unknown_outcome
from async_history._core.writing.submissions import Submission
from async_history._core.writing.too_large import WriteBatch
from async_history.errors import HistoryError


class PartRefused(Exception):
    """Raised if a part can't be written, because of one or more of its submissions.

    This try has written none of them.

    Args:
        reason: the error for their callers.
        is_unknown: whether an earlier try may have written them.
    """

    def __init__(self, reason: HistoryError, *, is_unknown: bool) -> None:
        self.reason = reason
        self.is_unknown = is_unknown
        super().__init__(str(reason))

    def error_for(self, submission: Submission) -> HistoryError:
        """Return a new error for the caller of a submission."""
        if self.is_unknown:
            return unknown_outcome(self.reason, submission)
        return copy.copy(self.reason)


async def write_in_parts(
    batch: Sequence[Submission], write: WriteBatch, until: float
) -> dict[int, HistoryError]:
    """Write a batch, in order; return the refused submissions by index.

    A part for which `write` raises `PartRefused` is split, until the submissions are found that
    cause it. They are refused.

    Args:
        write: writes a part in one transaction.
        until: the instant of `time.monotonic` after which a part is refused as a whole.

    Raises:
        OutcomeUnknown: another error came when a part was written already.
        The other errors of `write`: nothing is written.
    """
    refused: dict[int, HistoryError] = {}
    is_any_written = False
    parts = [range(len(batch))]
    written_s = 0.0
    ratio = 2.0 * isqrt(len(batch)) + 2  # until it is known; finds one in two steps
    while parts:
        part = parts.pop()
        begun = monotonic()
        try:
            found = await write([batch[index] for index in part])
        except PartRefused as refusal:
            if len(part) > 1 and monotonic() < until:
                if written_s:
                    ratio = (monotonic() - begun) / written_s
                parts += reversed(_split(part, ratio))
            else:
                refused |= {index: refusal.error_for(batch[index]) for index in part}
        except Exception as error:
            if is_any_written:
                raise OutcomeUnknown(f"a part of the batch is written: {error}") from error
            raise
        else:
            is_any_written = True
            written_s = monotonic() - begun
            refused |= {part[index]: error for index, error in found.items()}
    return refused


def _split(part: range, ratio: float) -> list[range]:
    """Split a part so that what causes its refusal is found soon.

    A refusal may take a thousand times as long as a part that is written, as if a statement does
    not end, or no longer. In the first case many small parts are faster, in the other one halves.

    Args:
        ratio: how many times as long a refusal takes.
    """
    count = min(max(2, int(ratio / 2)), len(part))
    size = ceil(len(part) / count)
    return [part[begin : begin + size] for begin in range(0, len(part), size)]
