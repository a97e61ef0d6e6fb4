"""The commit function of an open store, and the preparation of batches while they wait."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from async_history._core.concurrency.commit_signal import CommitSignal
from async_history._core.concurrency.timed import unreported
from async_history._core.writing.commit_function import CommitTry, OutcomeUnknown, TryAgain
from async_history._core.writing.late_tries import LateTries
from async_history._core.writing.submissions import AddRecords, Submission
from async_history._core.writing.time_needed import time_for
from async_history._core.writing.too_large import write_others
from async_history._postgres.connecting.bounds import Shares
from async_history._postgres.connecting.writing_connection import Write
from async_history._postgres.key_statements import Access
from async_history._postgres.keys import InClear, Seal
from async_history._postgres.ledger import Attestation
from async_history._postgres.transaction import savepoint
from async_history._postgres.writing.batch_steps import BatchSteps
from async_history._postgres.writing.commit import BatchCommitter, BatchTry, Server
from async_history._postgres.writing.late_tries import note, shares_of
from async_history._postgres.writing.owner_steps import OwnerSteps, OwnersUnlocked
from async_history._postgres.writing.owners import KnownOwners
from async_history._postgres.writing.plain_statements import PlainStatements
from async_history._postgres.writing.too_large import find_too_large
from async_history.errors import HistoryError

_SEALED_GROWTH: Final = 4 / 3
"""Of a text in Base64."""

Refused = Mapping[int, HistoryError]
"""The errors of refused submissions, by index in their batch."""


class RunWrite(Protocol):
    """Runs work on the writing connection: see `WritingConnection.do`."""

    def __call__(
        self, work: Write[Refused], size_s: float, shares: Shares | None
    ) -> Awaitable[Refused]: ...


class Batches:
    """Commits the batches of a store, and prepares them while they wait.

    Args:
        write: runs work on the writing connection.
        committed: notified after each commit.
        late_after_s: see `LateTries`.
        The others: see `BatchCommitter`.
    """

    def __init__(
        self,
        write: RunWrite,
        committed: CommitSignal,
        schema: str,
        seal: Seal,
        attestation: Attestation | None,
        *,
        server: Server,
        where: str,
        is_distributed: bool,
        late_after_s: float,
        added: Callable[[int], None],
        waited: Callable[[float], None],
    ) -> None:
        self._write = write
        self._committed = committed
        self._schema = schema
        self._seal = seal
        self._attestation = attestation
        self._where = where
        self._known = KnownOwners()
        self._plain = PlainStatements()
        self._late_tries = LateTries(late_after_s)
        self._committer = BatchCommitter(
            schema,
            seal,
            attestation,
            server=server,
            where=where,
            is_distributed=is_distributed,
            known=self._known,
            plain=self._plain,
            added=added,
            waited=waited,
        )

    async def commit(self, batch: Sequence[Submission], this: CommitTry) -> Refused:
        """Commit a batch: the store's `CommitFunction`."""
        size_s = time_for(batch)
        if size_s and (too_large := self._too_large(batch)):
            return await write_others(batch, too_large, lambda left: self.commit(left, this))
        is_late = self._late_tries.is_late(this)
        shares = shares_of(self._late_tries, this) if is_late and len(batch) > 1 else None

        def work(connection: Any, settings: Sequence[str]) -> Awaitable[Refused]:
            one = BatchTry(batch, this, connection, settings, leaves_out_late=is_late)
            return self._committer.commit(one)

        try:
            refused = await self._write(work, size_s, shares)
        except (TryAgain, OutcomeUnknown, asyncio.CancelledError) as error:
            note(self._late_tries, this, error)
            raise
        self._committed.notify()
        return self._late_tries.outcomes(batch, refused, this)

    def _too_large(self, batch: Sequence[Submission]) -> Refused:
        growth = 1.0 if isinstance(self._seal, InClear) else _SEALED_GROWTH
        return find_too_large(batch, self._where, growth)

    async def add_within(self, connection: Any, submission: AddRecords, keys: Access) -> Refused:
        """Write a submission in a user's transaction; return its error by index if it is refused.

        Args:
            keys: gives access to the keys of the store.

        Raises:
            The driver's errors: nothing was written.
        """
        batch = [submission]
        if too_large := self._too_large(batch):
            return too_large
        try:
            async with savepoint(connection, checks_constraints=False):
                return await self._steps_within(connection, keys).commit(batch)
        except OwnersUnlocked:
            async with savepoint(connection, checks_constraints=False):
                steps = self._steps_within(connection, keys)
                await steps.lock_owners()
                return await steps.commit(batch)

    def _steps_within(self, connection: Any, keys: Access) -> BatchSteps:
        """Return the steps of a batch in a user's transaction, without the cache of owners."""
        owners = OwnerSteps(
            connection,
            self._schema,
            self._where,
            KnownOwners(),
            is_distributed=False,
            owns_transaction=False,
        )
        return BatchSteps(
            connection,
            self._schema,
            owners,
            seal=self._seal,
            attestation=self._attestation,
            keys=keys,
            where=self._where,
            is_distributed=False,
            owns_transaction=False,
            is_repeated=False,
            leaves_out_late=False,
            waited=unreported,
        )

    # Preparation

    def prepare(self, submissions: Sequence[Submission]) -> None:
        """Begin to seal submissions that wait, and to compute their leaves."""
        self._seal.begin(submissions, self._known.expected)
        if self._attestation is not None:
            self._attestation.new.begin(submissions)

    def prepare_plain(self, submissions: Sequence[Submission]) -> None:
        """Begin to make the statement of submissions that wait: in clear, without leaves."""
        if not self._known.number:
            self._plain.begin(submissions)

    def forget_prepared(self) -> None:
        """Keep nothing of calls that are not written, whose texts may be erased."""
        self._plain.drop()
        self._seal.drop()
        if self._attestation is not None:
            self._attestation.new.drop()
