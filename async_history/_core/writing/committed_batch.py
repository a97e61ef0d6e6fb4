"""A committed batch whose callers get their outcomes, some at a time."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic

from async_history._core.writing.queue import PendingCall, S
from async_history.errors import CommitUnknown, HistoryError

_log = logging.getLogger("async_history")


@dataclass(slots=True)
class CommittedBatch(Generic[S]):
    """The calls of a committed batch that have no outcome yet.

    Attributes:
        calls: in order, and once `has_begun`, in reverse.
        refused: the errors of refused submissions, by index in `calls`.
        has_begun: whether the refused calls have their errors.
        unreported: the indexes of refused calls that may have no error yet, the last one first.
    """

    calls: list[PendingCall[S]]
    refused: Mapping[int, HistoryError]
    has_begun: bool = False
    unreported: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.unreported = list(self.refused)[::-1]

    def settle(
        self,
        most: int,
        begin: Callable[[list[PendingCall[S]], Mapping[int, HistoryError]], None],
    ) -> bool:
        """Give the refused calls their errors, and acknowledge at most so many others.

        An exception that a signal handler raises may interrupt this at any line. The next call
        continues, after the call whose refusal raised.

        Args:
            begin: called once with all calls in order and `refused`, before the first
                acknowledgement.

        Returns:
            Whether calls are left.
        """
        calls = self.calls
        if not self.has_begun:
            self._refuse_calls()
            self.calls, self.has_begun = calls[::-1], True
            begin(calls, self.refused)
            calls = self.calls
        # A call is removed from the batch when it is acknowledged. If all were kept until the end,
        # the garbage collector would take more time than everything else here.
        for _ in range(min(most, len(calls))):
            call = calls[-1]
            if not call.done():
                call.set_result(None)
            del calls[-1]
        return bool(calls)

    def _refuse_calls(self) -> None:
        while self.unreported:
            index = self.unreported[-1]
            call = self.calls[index]
            try:
                refuse(call, self.refused[index], None)
            except BaseException as error:
                # Not again: one that lasts would come in each iteration of the loop, for ever.
                unknown = CommitUnknown("an exception came before it was refused", call.ids)
                unknown.__cause__ = error
                call.refuse(unknown)
                del self.unreported[-1]
                raise
            del self.unreported[-1]


def refuse(call: PendingCall[S], error: HistoryError, cause: BaseException | None) -> None:
    """Give a call its error, or log it if its caller was cancelled."""
    if cause is not None:
        error.__cause__ = cause
    call.refuse(error)
    if call.cancelled():
        _log.error("a submission whose caller was cancelled was not written: %s", error)
