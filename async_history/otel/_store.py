"""Telemetry of a store's batches: histograms, counters, and spans of calls and commits."""

import asyncio
from collections.abc import Mapping, Sequence
from time import monotonic, time_ns
from typing import Any, Final

from opentelemetry.context import Context, get_current
from opentelemetry.metrics import Meter
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer

from async_history._core.telemetry import ReportedStore
from async_history._core.writing.pending_calls import PendingCall
from async_history._core.writing.submissions import (
    CopyRecords,
    GiveOwners,
    SaveMessages,
    Submission,
    UpdateMemory,
)
from async_history.errors import CommitUnknown, HistoryError

DURATIONS_S: Final = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
)
"""Bounds of the buckets for durations."""
_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
SYSTEM: Final = "db.system.name"
STORE: Final = "async_history.store"
ERROR: Final = "error.type"
OPERATION: Final = "db.operation.name"
_BATCH_SIZE: Final = "db.operation.batch.size"


class Instruments:
    """The instruments for batches, shared by all stores."""

    def __init__(self, meter: Meter) -> None:
        self.commit_duration = meter.create_histogram(
            "db.client.operation.duration",
            "s",
            "How long commits took, with their waiting for locks and trying again.",
            explicit_bucket_boundaries_advisory=DURATIONS_S,
        )
        self.ack_duration = meter.create_histogram(
            "async_history.ack.duration",
            "s",
            "From call to acknowledgement: up to four calls of each batch, evenly chosen.",
            explicit_bucket_boundaries_advisory=DURATIONS_S,
        )
        self.batch_size = meter.create_histogram(
            "async_history.batch.records",
            "{record}",
            "Records of a commit.",
            explicit_bucket_boundaries_advisory=_SIZES,
        )
        self.refusals = meter.create_counter(
            "async_history.refusals",
            "{call}",
            "Calls that were not written, by the error that they raised.",
        )
        self.retries = meter.create_counter(
            "async_history.retries",
            "{try}",
            "Commits that were tried again, by reason: a lock, a lost connection, an unknown "
            "outcome.",
        )


class StoreTelemetry:
    """Records the notifications of a store's writer.

    Args:
        sees_calls, sees_commits: whether calls and commits have spans.
    """

    def __init__(
        self,
        store: ReportedStore,
        instruments: Instruments,
        tracer: Tracer,
        *,
        sees_calls: bool,
        sees_commits: bool,
    ) -> None:
        self.sees_calls = sees_calls
        self._sees_commits = sees_commits
        self._instruments = instruments
        self._tracer = tracer
        self._attributes = attributes_of(store.system, store.where)
        self._of_commits = {**self._attributes, OPERATION: "COMMIT"}
        self._callers: dict[asyncio.Future[Any], tuple[Context, int]] = {}
        self._spans: dict[asyncio.Future[Any], Span] = {}

    def called(self, call: PendingCall[Any]) -> None:
        """Note a call's context and time: its span is made when everything is known."""
        self._callers[call] = get_current(), time_ns()
        call.add_done_callback(self._end_call)

    def _begin_span(self, call: "asyncio.Future[Any]") -> Span:
        """Make the span of a call, in its caller's trace."""
        context, start_time = self._callers.pop(call)
        name = "async_history write"
        attributes: dict[str, str | int] = {**self._attributes}
        if isinstance(call, PendingCall) and call.submission is not None:
            name = attributes[OPERATION] = _operation_of(call.submission)
            if call.count > 1:
                attributes[_BATCH_SIZE] = call.count
        return self._tracer.start_span(
            name, context, SpanKind.INTERNAL, attributes, start_time=start_time
        )

    def _end_call(self, call: "asyncio.Future[Any]") -> None:
        span = self._begin_span(call) if call in self._callers else self._spans.pop(call)
        if call.cancelled():
            span.set_attribute(ERROR, "CancelledError")
        elif (error := call.exception()) is not None:
            fail(span, error)
        span.end()

    def committed(
        self,
        batch: Sequence[PendingCall[Any]],
        refused: Mapping[int, HistoryError],
        begun: float,
        ended: float,
    ) -> None:
        """Record a commit."""
        records = sum([call.count for call in batch])
        self._instruments.commit_duration.record(ended - begun, self._of_commits)
        self._instruments.batch_size.record(records, self._attributes)
        for error in refused.values():
            self._refused(error, 1)
        if self._sees_commits:
            self._trace_commit(batch, begun, ended, None)

    def failed(
        self, batch: Sequence[PendingCall[Any]], error: Exception, begun: float, ended: float
    ) -> None:
        """Record a commit that failed, or whose outcome is unknown."""
        # The callers of an unknown outcome get this error; see the writer.
        shown = error if isinstance(error, HistoryError) else CommitUnknown(str(error), ())
        attributes = {**self._of_commits, ERROR: type(shown).__name__}
        self._instruments.commit_duration.record(ended - begun, attributes)
        self._refused(shown, len(batch))
        if self._sees_commits:
            self._trace_commit(batch, begun, ended, shown)

    def retried(self, reason: Exception) -> None:
        """Count a retry, by the previous try's error."""
        self._instruments.retries.add(1, {**self._attributes, ERROR: type(reason).__name__})

    def acknowledged(self, waits_s: Sequence[float]) -> None:
        """Record how long calls took."""
        for waited_s in waits_s:
            self._instruments.ack_duration.record(waited_s, self._attributes)

    def _refused(self, error: HistoryError, calls: int) -> None:
        self._instruments.refusals.add(calls, {**self._attributes, ERROR: type(error).__name__})

    def _trace_commit(
        self,
        batch: Sequence[PendingCall[Any]],
        begun: float,
        ended: float,
        error: HistoryError | None,
    ) -> None:
        """Make the span of a completed commit, and link it and its calls' spans to each other."""
        waiting = [call for call in batch if call in self._callers]
        spans = [self._begin_span(call) for call in waiting]
        self._spans.update(zip(waiting, spans, strict=True))
        end_time = time_ns() - round((monotonic() - ended) * 1e9)
        commit = self._tracer.start_span(
            "COMMIT",
            kind=SpanKind.CLIENT,
            attributes={**self._of_commits, _BATCH_SIZE: sum([call.count for call in batch])},
            links=[Link(span.get_span_context()) for span in spans],
            start_time=end_time - round((ended - begun) * 1e9),
        )
        if error is not None:
            fail(commit, error)
        for span in spans:
            span.add_link(commit.get_span_context())
        commit.end(end_time)


def attributes_of(system: str, where: str) -> dict[str, str]:
    """Return the attributes of all metrics and spans of a store."""
    return {SYSTEM: system, STORE: where}


def _operation_of(submission: Submission) -> str:
    if isinstance(submission, UpdateMemory):
        return "update_history"
    if isinstance(submission, SaveMessages):
        return "save_messages"
    if isinstance(submission, GiveOwners):
        return "give_owners"
    if isinstance(submission, CopyRecords):
        return "copy_history"
    return "add_history" if submission.record_count == 1 else "batch_add_history"


def fail(span: Span, error: BaseException) -> None:
    """Note the class of an error on a span. Its message may name a memory."""
    name = type(error).__name__
    span.set_attribute(ERROR, name)
    span.set_status(Status(StatusCode.ERROR, name))
