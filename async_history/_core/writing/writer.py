"""The group-commit writer: queue → batch → commit → acks, in one task, for any database.

Callers submit and wait. The task takes the queued submissions, up to a batch, passes them to a
commit function, and acknowledges every caller when that returns. While a commit runs, the next
batch gathers. So a single write commits at once, concurrent writes share a commit, and a batch is
never delayed to grow.
"""

import asyncio
import copy
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Final, Generic, TypeVar

from async_history._core.concurrency.waiter import Waiter
from async_history._core.writing.commit_function import (
    CommitFunction,
    CommitTry,
    OutcomeUnknown,
    TryAgain,
)
from async_history._core.writing.committed_batch import CommittedBatch, refuse
from async_history._core.writing.observer import WriterObserver
from async_history._core.writing.pending_calls import PendingCall, S
from async_history._core.writing.queue import BoundedQueue
from async_history._core.writing.wakeups import HEAD_START_S, WakeupScheduler
from async_history._core.writing.writer_options import DEFAULT_OPTIONS, WriterOptions
from async_history._core.writing.writer_stats import WriterCounters, WriterStats
from async_history.errors import CommitUnknown, HistoryClosed, HistoryError

_RETRY_DELAY_S = 0.01
_LONGEST_RETRY_DELAY_S = 1.0
"""First and longest pause before a commit is retried; the pause doubles each time."""
_FAIL_AGAIN_S: Final = (0.0, 0.01, 0.1, 1.0, 5.0)
"""Seconds after which callers are failed again: then a burst of signals may be over."""

T = TypeVar("T")


_running: Final[set[asyncio.Task[None]]] = set()
"""The tasks of writers. An event loop has only weak references to tasks, so one that waits for work
could be garbage-collected with an unclosed manager, and could not close its store."""


def _do_nothing() -> None: ...


async def _do_nothing_alone() -> None: ...


class GroupCommitWriter(Generic[S]):
    """A writer that commits submissions in batches and acks each when its batch is durable.

    Args:
        commit: the commit function.
        finish: called once, at the end of the task, after all accepted submissions.
        options: the limits of the queue and of a batch.
        commit_timeout_s: seconds to retry a commit after `TryAgain` or an unknown outcome.
        head_start_s: seconds that the callers of a batch may wait for the next commit to begin.
        prepare: called with the submissions that wait, while a batch is committed and once the
            callers of the previous one are woken. They may still be withdrawn. This only affects
            speed.
        forget_prepared: called when a submission was withdrawn, refused, or in a batch that failed:
            nothing that was prepared from it is to be kept.
        check_storage: raises the error that every commit would raise, if that can be told without
            committing. Only `require_writable` calls it.
    """

    def __init__(
        self,
        commit: CommitFunction[S],
        *,
        finish: Callable[[], Awaitable[None]],
        options: WriterOptions = DEFAULT_OPTIONS,
        commit_timeout_s: float = 30.0,
        head_start_s: float = HEAD_START_S,
        prepare: Callable[[Sequence[S]], None] | None = None,
        forget_prepared: Callable[[], None] = _do_nothing,
        check_storage: Callable[[], None] | None = None,
    ) -> None:
        self._commit = commit
        self._check_storage = check_storage
        self._finish = finish
        self._batch_records = options.batch_records
        self._batch_bytes = options.batch_bytes
        self._commit_timeout_s = commit_timeout_s
        self._queue = BoundedQueue[S](
            records=options.queue_records,
            size_bytes=options.queue_bytes,
            timeout_s=options.queue_timeout_s,
            on_admitted=self._wake_up,
            on_withdrawn=forget_prepared,
        )
        self._in_batch: list[PendingCall[S]] = []
        self._prepare = prepare
        self._forget_prepared = forget_prepared
        self._wakeups = WakeupScheduler[CommittedBatch[S]](
            CommittedBatch.settle, head_start_s, woken=prepare and self._prepare_next
        )
        self._closing = False
        self._died: BaseException | None = None
        self._waiter: Waiter | None = None
        self._counters = WriterCounters()
        self._observer: WriterObserver | None = None
        self._called: Callable[[PendingCall[S]], None] | None = None
        self._loop = asyncio.get_running_loop()
        # Not as an argument: from CPython 3.14 on, a task factory gets it, and need not take it.
        self._task = self._loop.create_task(self._run())
        self._task.set_name("async_history writer")
        _running.add(self._task)
        self._task.add_done_callback(_running.discard)
        self._task.add_done_callback(self._on_ended)

    # Called by callers

    def submit(self, submission: S) -> "asyncio.Future[None]":
        """Queue a submission at once; the returned future is done when it is durable.

        Raises (at once if the writer is closing, otherwise from the future):
            Overloaded: the queue had no space within `queue_timeout_s`.
            HistoryClosed: the writer is closing, or closed before the submission was in a batch.
            CommitUnknown: the store failed during the commit and could not be asked again.
            HistoryError: the submission was refused, or its batch failed. It is not written.
            asyncio.CancelledError: at once. A submission that is still queued is withdrawn, and
                certainly not written. One in a batch completes; its failure is logged.
        """
        if self._closing:
            self._require_open()
        call = self._queue.enter(submission, None)
        if self._called is not None:
            self._called(call)
        return call

    async def submit_when_ready(self, prepare: Callable[[], Awaitable[S]]) -> None:
        """Queue a submission that takes time to prepare; return when it is durable.

        Its place in the order is that of this call: later submissions come after it.

        Raises:
            The errors of `prepare`: nothing was queued. Otherwise as `submit`.
        """
        self._require_open()
        call = self._queue.reserve()
        try:
            if self._called is not None:
                self._called(call)
            submission = await prepare()
            self._require_open()
            self._queue.fill(call, submission)
        except BaseException:
            # In its place, if the stack is too short to withdraw it: others wait for it.
            call.submission, call.operation = None, _do_nothing_alone
            call.cancel()
            raise
        await call

    def run_alone(self, operation: Callable[[], Awaitable[T]]) -> "asyncio.Future[T]":
        """Run an operation alone, after all earlier and before all later submissions.

        It is queued at once; the returned future has its result. Like a commit, it may be cancelled
        at any await and is then called again.
        """
        self._require_open()
        return self._queue.enter(None, operation)

    def require_writable(self) -> None:
        """Raise the reason if nothing can be submitted, or no commit would succeed."""
        self._require_open()
        if self._check_storage is not None:
            self._check_storage()

    def observe(self, observer: WriterObserver) -> None:
        """Report each batch to an observer from now on, and each call if it wants that."""
        self._observer = observer
        self._called = observer.called if observer.sees_calls else None

    def count_lock_wait(self, seconds: float) -> None:
        """Count a wait of a commit function for a lock that others hold."""
        self._counters.lock_wait_s += seconds

    def _require_open(self) -> None:
        if self._closing:
            if self._died is not None:
                raise HistoryClosed(f"the writer died: {self._died!r}") from self._died
            raise HistoryClosed("the manager is closed; open another")

    def _wake_up(self) -> None:
        if self._waiter is not None:
            self._waiter.wake()

    # Run in the task

    async def _run(self) -> None:
        try:
            while await self._wait_for_work():
                self._in_batch = []
                self._queue.take(self._in_batch, self._batch_records, self._batch_bytes)
                await self._settle(self._in_batch)
        except GeneratorExit:
            raise  # it is collected, so no caller is left, and it can't await
        except BaseException as error:
            self._died = error
            await self._end()
            raise
        else:
            await self._end()

    async def _end(self) -> None:
        try:
            self._fail_everyone_left()
        finally:
            await self._run_until_settled(lambda _: self._finish(), monotonic())

    def _on_ended(self, _: "asyncio.Task[None]") -> None:
        """Fail the callers that are left if an exception interrupted the end of the task."""
        self._fail_everyone_left()

    async def _wait_for_work(self) -> bool:
        if self._wakeups.is_waking:
            try:
                await self._wakeups.wait_until_woken()
            except asyncio.CancelledError:
                self.begin_close()
        while not self._queue.admit_waiting():  # a caller's stack may have been too short for it
            if self._closing:
                return False
            self._waiter = Waiter(loop=self._loop)
            try:
                await self._waiter
            except asyncio.CancelledError:
                self.begin_close()
        return True

    async def _settle(self, batch: list[PendingCall[S]]) -> None:
        begun = monotonic()
        try:
            if batch and (operation := batch[0].operation) is not None:
                result = await self._run_until_settled(lambda _: operation(), begun)
                batch[0].ack(result)
            elif batch:
                submissions = [call.submission for call in batch if call.submission is not None]
                commit = partial(self._commit, submissions)
                refused = await self._run_until_settled(commit, begun)
                self._note_committed(batch, refused, begun)
        except HistoryError as error:  # every caller of the batch gets the store's error
            self._note_failed(batch, error, begun)
            for call in batch:
                # A copy: each raise of an error extends its traceback.
                refuse(call, copy.copy(error), error)
        except Exception as error:
            # Any other error, such as one that a signal handler raises, can come after the commit.
            self._note_failed(batch, error, begun)
            reason = error if isinstance(error, OutcomeUnknown) else repr(error)
            for call in batch:
                unknown = CommitUnknown(f"the outcome is unknown: {reason}", call.ids)
                refuse(call, unknown, error)
        self._in_batch = []

    def _note_failed(self, batch: list[PendingCall[S]], error: Exception, begun: float) -> None:
        self._forget_prepared()
        self._counters.failed_batches += 1
        if self._observer is not None:
            self._observer.failed(batch, error, begun, monotonic())

    def _note_committed(
        self, batch: list[PendingCall[S]], refused: Mapping[int, HistoryError], begun: float
    ) -> None:
        if refused:
            self._forget_prepared()
            if not refused.keys() <= set(range(len(batch))):
                raise IndexError(f"refused {list(refused)} of {len(batch)} submissions")
        ended = monotonic()
        self._counters.count_batch(batch, refused, begun, ended)
        if self._observer is not None:
            self._observer.committed(batch, refused, begun, ended)
        if len(batch) == 1 and not refused and self._wakeups.is_idle:  # as below, 3 us sooner
            self._report_settled(batch, refused)
            batch[0].ack(None)
            return
        committed = CommittedBatch(batch, refused, self._report_settled)
        self._wakeups.add(committed, callers=len(batch), next_callers=len(self._queue))

    def _report_settled(
        self, calls: list[PendingCall[S]], refused: Mapping[int, HistoryError]
    ) -> None:
        waits_s = self._counters.count_settled(calls, refused, monotonic())
        if self._observer is not None:
            self._observer.acknowledged(waits_s)

    def _prepare_next(self) -> None:
        if self._in_batch and self._prepare is not None:
            self._prepare(self._queue.next_submissions(self._batch_records, self._batch_bytes))

    async def _run_until_settled(
        self, operation: Callable[[CommitTry], Awaitable[T]], begun: float
    ) -> T:
        """Run an operation until its outcome is known, even if this task is cancelled meanwhile.

        Cancelling the task (at the end of `asyncio.run`) closes the writer; it never cuts a commit.
        """
        this = CommitTry(False, begun, self._wakeups.commit_has_begun)
        delay = _RETRY_DELAY_S
        failure: Exception
        unknown: OutcomeUnknown | None = None
        while True:
            try:
                return await operation(this)
            except asyncio.CancelledError:
                self.begin_close()
                failure = unknown = OutcomeUnknown("cancelled while it was committed")
            except OutcomeUnknown as error:
                failure = unknown = error
            except TryAgain as error:
                failure = unknown or error.reason
            except Exception as error:
                # An earlier try may have committed: this failure does not change that.
                if unknown is None:
                    raise
                failure = unknown = OutcomeUnknown(f"{unknown}; tried again: {error}")
                if self._closing:
                    raise unknown from error
            if monotonic() + delay > begun + self._commit_timeout_s:
                raise failure
            if self._observer is not None:
                self._observer.retried(failure)
            await self._pause(delay)
            this = this._replace(is_repeated=True)
            delay = min(delay * 2, _LONGEST_RETRY_DELAY_S)

    async def _pause(self, delay: float) -> None:
        try:
            await asyncio.sleep(delay)
        except asyncio.CancelledError:
            self.begin_close()

    # Closing

    def begin_close(self) -> None:
        """Refuse new submissions from now on; accepted ones are still committed."""
        self._closing = True
        try:
            reason = "the manager closed while the queue was full"
            self._queue.refuse_waiting(partial(self._unwritten, reason))
        finally:
            self._wake_up()

    async def aclose(self, timeout_s: float) -> None:
        """Close, and wait at most `timeout_s` until the accepted submissions are committed.

        After that time queued callers get `HistoryClosed`, those in a batch `CommitUnknown`, and
        the task ends by itself later.
        """
        self.begin_close()
        done, _ = await asyncio.wait([self._task], timeout=timeout_s)
        if not done:
            self._fail_everyone_left()

    def abandon(self) -> None:
        """Let the task be garbage-collected: its loop has stopped."""
        # Otherwise asyncio logs that it was destroyed. A public attribute for this is missing.
        self._task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001
        _running.discard(self._task)

    @property
    def task(self) -> "asyncio.Task[None]":
        """The writer's task. It is done when all submissions are settled and `finish` has run."""
        return self._task

    def _fail_everyone_left(self) -> None:
        """Refuse new submissions, and fail the callers that are left, also if exceptions
        interrupt it.

        Many signals may come. All tries are begun here: if each began others, an error that comes
        in every try would keep the loop busy.
        """
        self._closing = True
        tries = [self._loop.call_later(seconds, self._fail_calls) for seconds in _FAIL_AGAIN_S]
        self._fail_calls()
        for later in tries:
            later.cancel()

    def _fail_calls(self) -> None:
        reason = "the manager was closed before this was written"
        if self._died is not None:
            reason = f"the writer died: {self._died!r}"
        self._queue.refuse_all(partial(self._unwritten, reason))
        for call in self._in_batch:
            call.refuse(CommitUnknown(f"{reason}, while committing", call.ids))

    def _unwritten(self, reason: str) -> HistoryClosed:
        error = HistoryClosed(f"{reason}; it was not written")
        error.__cause__ = self._died
        return error

    def stats(self) -> WriterStats:
        """Return the counters and the queue as they are now."""
        oldest = self._in_batch[0] if self._in_batch else self._queue.first
        now = monotonic()
        return self._counters.stats(
            now,
            queued_records=self._queue.records,
            queued_bytes=self._queue.size_bytes,
            waiting_callers=self._queue.waiting,
            oldest_wait_s=now - oldest.since if oldest is not None else 0.0,
            overloaded_submissions=self._queue.overloaded,
        )
