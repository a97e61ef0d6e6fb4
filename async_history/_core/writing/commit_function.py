"""The commit function, by which a writer commits a batch in any database."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from async_history._core.writing.pending_calls import S
from async_history.errors import HistoryError


class CommitTry(NamedTuple):
    """A try to commit a batch.

    Attributes:
        is_repeated: whether there was an earlier try, which may have committed the batch.
        first_begun: when the batch's first try began, by `time.monotonic`.
        has_begun: a function to call, from any thread, when the rest of the commit no longer needs
            the interpreter. Then the callers of the previous batch are woken. This only affects
            speed.
    """

    is_repeated: bool
    first_begun: float
    has_begun: Callable[[], None]


CommitFunction = Callable[[Sequence[S], CommitTry], Awaitable[Mapping[int, HistoryError]]]
"""A function that commits a batch in one transaction, in order.

It returns the errors of refused submissions, by index in the batch: those are not written, the
others are. If the store failed and nothing was written, it raises: `TryAgain` if a retry may
succeed. It raises `OutcomeUnknown` if it can't tell. It may be cancelled at any await. Then, and
after `OutcomeUnknown`, it is called again with the same batch, so records that already exist must
count as written.
"""


class OutcomeUnknown(Exception):
    """Raised by a commit function that can't tell whether its transaction took effect."""


class TryAgain(Exception):
    """Raised by a commit function that wrote nothing and may succeed soon.

    `reason` is the error for the callers if it does not succeed until the deadline.
    """

    def __init__(self, reason: HistoryError) -> None:
        self.reason = reason
        super().__init__(str(reason))
