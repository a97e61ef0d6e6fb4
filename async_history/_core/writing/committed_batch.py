"""A committed batch whose callers get their outcomes, some at a time."""

import logging
from asyncio import current_task
from collections.abc import Callable, Mapping
from typing import Generic

from async_history._core.writing.pending_calls import PendingCall, S
from async_history.errors import CommitUnknown, HistoryError

_log = logging.getLogger("async_history")


class CommittedBatch(Generic[S]):
    """The calls of a committed batch that have no outcome yet.

    Args:
        calls: in order.
        refused: the errors of refused submissions, by index in `calls`.
        begin: called once with all calls in order and `refused`, before the first acknowledgement.
    """

    __slots__ = ("_begin", "_calls", "_has_begun", "_refused", "_unreported")

    def __init__(
        self,
        calls: list[PendingCall[S]],
        refused: Mapping[int, HistoryError],
        begin: Callable[[list[PendingCall[S]], Mapping[int, HistoryError]], None],
    ) -> None:
        self._calls = calls  # in reverse once the refused calls have their errors
        self._refused = refused
        self._begin = begin
        self._has_begun = False
        # The refused calls that may have no error yet, the last one first.
        self._unreported = [*refused][::-1]

    def settle(self, most: int) -> bool:
        """Give the refused calls their errors, and acknowledge at most so many others.

        An exception that a signal handler raises may interrupt this at any line. The next call
        continues, after the call whose refusal raised.

        Returns:
            Whether calls are left.
        """
        if not self._has_begun:
            if self._unreported:
                self._refuse_calls()
            in_order = self._calls
            self._calls, self._has_begun = in_order[::-1], True
            self._begin(in_order, self._refused)
        self._acknowledge(most)
        return bool(self._calls)

    def _acknowledge(self, most: int) -> None:
        """Acknowledge at most so many calls, and resume their tasks unless this runs in a task."""
        calls = self._calls
        if not calls:
            return
        is_in_task = current_task(calls[-1].get_loop()) is not None
        # A call is removed from the batch when it is acknowledged. If all were kept until the end,
        # the garbage collector would take more time than everything else here.
        while calls and most:
            most -= 1
            call = calls[-1]
            if is_in_task:
                call.ack(None)
                del calls[-1]
            else:
                if not call.done():
                    call.set_result(None)
                call.resume_last(calls)

    def _refuse_calls(self) -> None:
        while self._unreported:
            index = self._unreported[-1]
            call = self._calls[index]
            try:
                refuse(call, self._refused[index], None)
            except BaseException as error:
                # Not again: one that lasts would come in each iteration of the loop, for ever.
                unknown = CommitUnknown("an exception came before it was refused", call.ids)
                unknown.__cause__ = error
                call.refuse(unknown)
                del self._unreported[-1]
                raise
            del self._unreported[-1]


def refuse(call: PendingCall[S], error: HistoryError, cause: BaseException | None) -> None:
    """Give a call its error, or log it if its caller was cancelled."""
    if cause is not None:
        error.__cause__ = cause
    call.refuse(error)
    if call.cancelled():
        _log.error("a submission whose caller was cancelled was not written: %s", error)
