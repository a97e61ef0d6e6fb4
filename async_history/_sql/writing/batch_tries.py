"""The tries to commit a batch: as a whole, and if that does not succeed, in parts."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Final, Protocol, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from async_history._core.writing.commit_function import CommitTry, OutcomeUnknown, TryAgain
from async_history._core.writing.late_tries import LateTries
from async_history._core.writing.parts import PartRefused, write_in_parts
from async_history._core.writing.submissions import Submission
from async_history._core.writing.time_needed import time_for
from async_history._sql.connecting.session_limits import Limits, SessionLimits
from async_history._sql.errors import (
    DriverError,
    is_refusal,
    may_be_of_some_rows,
    storage_error,
    took_too_long,
)
from async_history._sql.writing.batches import Batches, WrittenBatch
from async_history._sql.writing.commit import Progress
from async_history.errors import HistoryError, StorageError, StorageRefused

T = TypeVar("T")

_TRIES: Final = 3
"""Tries of a batch that fit into `retry_timeout_s`."""
_STATE_PART: Final = 0.8
_STATEMENT_PART: Final = 0.9
"""Parts of a try's time after which the server gives up by itself, before we close the
connection."""
_FIRST_PART: Final = 0.2
_LOCK_PART: Final = 0.1
"""Parts of a try's time that a lock wait may take: in the first try any, in later ones one with
`state` locked. Other managers wait for `state` meanwhile, each longer than that."""
_LATE_PART: Final = 0.1
"""The part of the time left for late tries that a lock wait of them may take; or, where statements
are limited, a statement with its lock waits. To find one submission, a few of them fail."""
_SLOW_PART: Final = 0.1
"""The part of a try's time that each statement may take: a slow server may need it."""
_KNOWN_PART: Final = 0.02
_TIMES_AS_SLOW: Final = 5
"""Once a submission was found that took too long, a statement may take the part `_KNOWN_PART`, and
so many times what the slowest part took that was written. Others are found sooner then."""


class Write(Protocol):
    """Does work in a transaction that may take `within_s` seconds, with the server's limits."""

    async def __call__(
        self,
        work: Callable[[AsyncConnection], Awaitable[T]],
        within_s: float,
        limits: Limits,
    ) -> T: ...


@dataclass(slots=True)
class _LateBatch:
    """What is known of a batch that is written in parts.

    Attributes:
        until: the instant of `time.monotonic` when its time is over.
        slowest_s: the seconds that the slowest written part took.
        has_found_one: whether a submission alone took too long.
    """

    until: float
    slowest_s: float = 0.0
    has_found_one: bool = False

    def lock_s(self) -> float:
        """Return the seconds that each lock wait of a part may take."""
        return max(self.until - monotonic(), 0.0) * _LATE_PART

    def lock_and_statement_s(self, part: Sequence[Submission], try_s: float) -> tuple[float, float]:
        """Return the seconds that each lock wait and each statement of a part may take.

        A statement's lock wait is in its time, and ends sooner: that is a reason of its own.
        """
        lock_s = self.lock_s() / 2
        statement_s = max(lock_s, try_s * _SLOW_PART)
        if self.has_found_one or not lock_s:
            known_s = max(self.slowest_s * _TIMES_AS_SLOW, try_s * _KNOWN_PART)
            if len(part) == 1:  # it is refused if it takes longer
                known_s = max(known_s, lock_s)
            lock_s, statement_s = min(lock_s, known_s / 2), min(statement_s, known_s / 2)
        return lock_s, lock_s + statement_s + time_for(part)


class BatchTries:
    """Commits batches; refuses submissions that can't be written in time, not their batches.

    Args:
        session_limits: of the writing connection.
        retry_timeout_s: seconds for which batches are tried.
        waited: called with the seconds of each wait for a lock.
        committed: called after each commit.
    """

    def __init__(
        self,
        batches: Batches,
        write: Write,
        session_limits: SessionLimits,
        *,
        retry_timeout_s: float,
        waited: Callable[[float], None],
        committed: Callable[[], None],
    ) -> None:
        self._batches = batches
        self._write = write
        self._session_limits = session_limits
        self._retry_timeout_s = retry_timeout_s
        self._try_s = retry_timeout_s / _TRIES
        self._tries = LateTries(retry_timeout_s / 2)
        # When the first try of the batch began of which the server ended a statement:
        self._statement_ended: float | None = None
        self._waited = waited
        self._committed = committed

    async def commit(
        self, batch: Sequence[Submission], this: CommitTry
    ) -> Mapping[int, HistoryError]:
        """Commit a batch; return the refused submissions by index."""
        try:
            if len(batch) > 1 and self._is_late(this):
                return await self._commit_late(batch, this)
            write = partial(self._commit, this=this)
            return await write_in_parts(batch, write, self._end_of(this))
        except (OutcomeUnknown, asyncio.CancelledError):
            self._tries.note_unknown(this)
            raise

    async def _commit_late(
        self, batch: Sequence[Submission], this: CommitTry
    ) -> Mapping[int, HistoryError]:
        """Commit a batch in parts until `retry_timeout_s` is over, and for a try's time at least.

        Parts that were not tried before that time are each tried once after it.
        """
        late = _LateBatch(max(self._end_of(this), monotonic() + self._try_s))

        async def write(part: Sequence[Submission]) -> Mapping[int, HistoryError]:
            begun = monotonic()
            refused = await self._commit_part(part, this, late)
            late.slowest_s = max(late.slowest_s, monotonic() - begun)
            return refused

        return await write_in_parts(batch, write, late.until)

    async def _commit(
        self, batch: Sequence[Submission], this: CommitTry
    ) -> Mapping[int, HistoryError]:
        try_s = self._try_s
        if self._has_the_rest(batch, this):
            try_s = max(try_s, self._end_of(this) - monotonic())
        within_s, limits = self._limits_for(batch, this, try_s)
        locked = limits._replace(lock_s=max(1.0, self._try_s * _LOCK_PART))

        async def write(connection: AsyncConnection) -> WrittenBatch:
            async def on_locked() -> None:
                if this.is_repeated:
                    await self._session_limits.set_within(connection, locked)

            progress = Progress(on_locked)
            return await self._batches.write(connection, batch, this, self._waited, progress)

        return await self._try(batch, write, within_s, limits, this)

    async def _commit_part(
        self, part: Sequence[Submission], this: CommitTry, late: _LateBatch
    ) -> Mapping[int, HistoryError]:
        """Commit a part of a batch in a late try.

        Raises:
            PartRefused: some of it could be written only later, or is refused at the commit.
        """
        within_s, limits = self._limits_for(part, this, self._try_s)
        locked = limits._replace(lock_s=late.lock_s())
        if self._tries.was_too_long(this):
            locked = Limits(*late.lock_and_statement_s(part, self._try_s))

        async def write(connection: AsyncConnection) -> WrittenBatch:
            has_locked = False

            async def on_locked() -> None:
                nonlocal has_locked
                await self._session_limits.set_within(connection, locked)
                has_locked = True

            progress = Progress(on_locked)
            try:
                return await self._batches.write(connection, part, this, self._waited, progress)
            except DriverError as error:
                if not (has_locked and may_be_of_some_rows(error)):
                    raise
                is_unknown = self._tries.is_unknown(this)
                if len(part) == 1 and progress.has_looked_up:
                    is_unknown = False
                if took_too_long(error):
                    self._tries.note_too_long(this)
                    late.has_found_one |= len(part) == 1
                reason = storage_error(error, self._batches.where)
                raise PartRefused(reason, is_unknown=is_unknown) from error

        return await self._try(part, write, within_s, limits, this)

    async def _try(
        self,
        part: Sequence[Submission],
        write: Callable[[AsyncConnection], Awaitable[WrittenBatch]],
        within_s: float,
        limits: Limits,
        this: CommitTry,
    ) -> Mapping[int, HistoryError]:
        is_at_commit = False

        async def write_all(connection: AsyncConnection) -> WrittenBatch:
            nonlocal is_at_commit
            done = await write(connection)
            is_at_commit = True
            return done

        try:
            written = await self._write(write_all, within_s, limits)
        except (TryAgain, OutcomeUnknown, asyncio.CancelledError) as error:
            if took_too_long(error.__cause__):
                self._tries.note_too_long(this)
                if not isinstance(error.__cause__, TimeoutError):
                    self._statement_ended = this.first_begun
            raise
        except StorageError as error:
            if not is_at_commit or error.__cause__ is None or not is_refusal(error.__cause__):
                raise  # it concerns the whole batch: what some calls cause was found one by one
            # A deferred constraint, checked at the commit. Before that, a part was looked up.
            is_unknown = len(part) > 1 and self._tries.is_unknown(this)
            raise PartRefused(StorageRefused(str(error)), is_unknown=is_unknown) from error
        written.learn()
        self._committed()
        return written.refused

    def _end_of(self, this: CommitTry) -> float:
        """Return the instant of `time.monotonic` when `retry_timeout_s` is over."""
        return this.first_begun + self._retry_timeout_s

    def _is_late(self, this: CommitTry) -> bool:
        """Return whether a batch is written in parts.

        At once after the server ended a statement of it: as a whole, it would take too long again.
        """
        return self._statement_ended == this.first_begun or self._tries.is_late(this)

    def _has_the_rest(self, batch: Sequence[Submission], this: CommitTry) -> bool:
        """Return whether a try has all the time that is left, because an earlier one took too long.

        A slow batch is written then. A batch that a late try may write in parts needs the time for
        them.
        """
        if not self._tries.was_too_long(this):
            return False
        return len(batch) == 1 or not self._session_limits.limits_statements

    def _limits_for(
        self, batch: Sequence[Submission], this: CommitTry, try_s: float
    ) -> tuple[float, Limits]:
        """Return the seconds that a try may take, and the server's limits until it has `state`."""
        within_s = try_s + time_for(batch)
        lock_s = self._try_s * (_STATE_PART if this.is_repeated else _FIRST_PART)
        return within_s, Limits(max(1.0, lock_s), within_s * _STATEMENT_PART)
