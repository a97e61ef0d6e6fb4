"""A queued call, as the future that its caller awaits.

The caller awaits it both for space in the queue and for the commit, and is not woken when the call
is admitted. The future is done when the call is acknowledged. Cancelling it withdraws the call.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Any, Final, Generic, Protocol, Self, TypeVar


class Submission(Protocol):
    """What the queue and the writer need: the size and the ids of a submission."""

    @property
    def record_count(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def ids(self) -> Sequence[str]: ...


S = TypeVar("S", bound=Submission)

Operation = Callable[[], Awaitable[Any]]


class Queue(Protocol):
    """What a call needs of the queue that it is in."""

    def withdraw(self, call: Any) -> None:
        """Remove a call, unless it has left the queue."""


class PendingCall(asyncio.Future[Any], Generic[S]):
    """A queued call and the future that its caller awaits: a submission, or an operation.

    It keeps what resumes the task that awaits it. So one callback of the event loop can resume the
    tasks of many calls; a callback for each is a twelfth of the loop's work for a record.
    """

    # The queue sets all of these. A constructor would be slower than that of a future, and there is
    # a call for each record.
    __slots__ = (
        "context",
        "count",
        "has_callbacks",
        "operation",
        "queue",
        "resume",
        "since",
        "size",
        "submission",
        "timer",
    )

    queue: Queue
    submission: S | None
    operation: Operation | None
    since: float
    """The time of the call, by `time.monotonic`."""
    count: int
    size: int
    timer: asyncio.TimerHandle | None
    resume: Callable[[Any], object] | None
    """What resumes the task that awaits it, in `context`."""
    context: Context
    """Only as long as there is `resume`: something in it may refer to this call."""
    has_callbacks: bool
    """Whether others are, or were, to be called when it is done."""

    def add_done_callback(
        self, fn: Callable[[Self], object], /, *, context: Context | None = None
    ) -> None:
        """Call a function when this is done, after those that were added before it.

        Tasks give their context. The first callback is kept in `resume` if it is a task's.
        """
        if context is None or self.has_callbacks or self.resume is not None or self.done():
            self.has_callbacks = True
            super().add_done_callback(fn, context=context)
        else:
            self.resume, self.context = fn, context

    def remove_done_callback(self, fn: Callable[[Self], object], /) -> int:
        """Do not call a function when this is done; return how often it would have been called."""
        removed = super().remove_done_callback(fn)
        if self.resume != fn:
            return removed
        self.resume = None
        del self.context
        return removed + 1

    @property
    def is_reserved(self) -> bool:
        """Whether it has no submission yet: see `BoundedQueue.reserve`."""
        return self.submission is None and self.operation is None

    @property
    def ids(self) -> Sequence[str]:
        """The ids it would write."""
        return self.submission.ids if self.submission is not None else ()

    def ack(self, result: object) -> None:
        """Set the result, unless the call has an outcome already."""
        self._leave_to_loop()
        if not self.done():
            self.set_result(result)

    def resume_last(self, calls: "list[PendingCall[S]]") -> None:
        """Remove this call, which is done, from the end of a list, and resume its task here.

        Call it outside of tasks. It raises what the task raises through the loop.
        """
        # Signal handlers run after a call, so none runs between these lines.
        resume, self.resume = self.resume, None
        del calls[-1]
        if resume is not None:
            context = self.context
            del self.context
            context.run(resume, self)

    def _leave_to_loop(self) -> None:
        """Let the event loop resume the task, as that of any other future."""
        if (resume := self.resume) is not None:
            context, self.resume = self.context, None  # before a call: a signal handler may run
            del self.context
            _add_done_callback(self, resume, context=context)

    def refuse(self, error: Exception) -> None:
        """Set the error, unless the call has an outcome already."""
        self.stop_waiting()
        if not self.done():
            self._leave_to_loop()
            self.set_exception(error)

    def cancel(self, msg: Any = None) -> bool:
        """Withdraw the call, unless it is in a batch and has left the queue."""
        self.queue.withdraw(self)
        self._leave_to_loop()
        return super().cancel(msg)

    def stop_waiting(self) -> None:
        """Cancel the timer, which would keep the submission in memory through a cycle."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


_add_done_callback: Final = asyncio.Future.add_done_callback
