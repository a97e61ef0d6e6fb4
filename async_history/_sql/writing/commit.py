"""Writing one batch in one transaction.

Each transaction that writes first locks the row of `state`. So transactions write one after the
other, and numbers are in the order of commits. A batch of new records takes a few round trips if
the owners of their memories are cached: the numbers, the rows, the commit. Other batches are
committed in steps, with the row locked, so that nothing changes between a look-up and a write.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import insert, select, update
from sqlalchemy.exc import DBAPIError

from async_history._core.ledger.leaves import Bundle
from async_history._core.operations.operations import LogEntries
from async_history._core.records.owners import Owner
from async_history._core.records.records import Fields, HistoryRecord, fields_in_order
from async_history._core.writing.additions import (
    fields_of,
    only_new_records,
    records_of,
)
from async_history._core.writing.batch import commit_in_steps
from async_history._core.writing.erased_names import Name, from_microseconds, name_digest, names_in
from async_history._core.writing.message_buffers import Buffer, message_rows
from async_history._core.writing.submissions import AddRecords, SaveMessages, Submission
from async_history._core.writing.undated import dated, has_undated
from async_history._sql.dialects import in_parts
from async_history._sql.errors import RowsLeftOut, is_refusal, refused
from async_history._sql.keys import Seal, StoredRecords
from async_history._sql.ledger import Attestation, tables_of
from async_history._sql.operations import log_within
from async_history._sql.transaction import Transaction, TransactionEnded, savepoint
from async_history._sql.writing.batch_reads import BatchReads
from async_history._sql.writing.inserts import BulkInserts, Inserts
from async_history._sql.writing.known import Known, Span
from async_history._sql.writing.messages import find_buffers, save_messages
from async_history._sql.writing.numbered import numbered
from async_history._sql.writing.owners import find_owners, give_owners
from async_history._sql.writing.single_statement import SingleStatement
from async_history.errors import HistoryError


async def _nothing() -> None: ...


@dataclass(slots=True)
class Progress:
    """How far a try to commit a batch has come.

    Attributes:
        on_locked: called when the transaction of a batch in steps has locked `state`.
        has_looked_up: whether it was looked up what an earlier try has written.
    """

    on_locked: Callable[[], Awaitable[None]] = _nothing
    has_looked_up: bool = False


class BatchCommitter:
    """The write of one batch in one transaction.

    Args:
        inserts: the compiled statements.
        known: the writer's cache; `learn` updates it after the commit.
        seal: seals and opens texts.
        where: the server, for messages.
        is_repeated: whether an earlier try of the batch may have been committed.
        attestation: computes the leaves of records; None if the store has no ledger.
        single_statement: writes new records in one statement, if the database supports that.
        bulk: adds many records, if the driver supports that.
        progress: is told how far a batch in steps has come.
    """

    def __init__(
        self,
        transaction: Transaction,
        inserts: Inserts,
        known: Known,
        seal: Seal,
        where: str,
        *,
        is_repeated: bool,
        attestation: Attestation | None,
        single_statement: SingleStatement | None = None,
        bulk: BulkInserts | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._progress = progress or Progress()
        self._transaction = transaction
        self._attestation = attestation
        self._ledger = tables_of(attestation, transaction)
        self._tables = transaction.tables
        self._inserts = inserts
        self._known = known
        self._seal = seal
        self._where = where
        self._is_repeated = is_repeated
        self._single_statement = single_statement
        self._bulk = bulk
        self._has_undated = False
        self._seen: dict[str, Owner | None] = {}
        self._erased_memories: set[str] = set()
        self._spans: dict[int, Span] = {}
        self._numbers = (0, 0)
        reads = BatchReads(transaction, seal, is_repeated=is_repeated)
        self.existing = reads.existing
        self.latest = reads.latest
        self.find_texts = reads.find_texts

    # A batch of new records

    async def add_at_once(self, batch: Sequence[Submission], has_begun: Callable[[], None]) -> bool:
        """Write a batch of new records; return False if it has to be committed in steps.

        Args:
            has_begun: called shortly before the records are sent.
        """
        additions = only_new_records(batch)
        if additions is None or self._is_repeated or has_undated(batch):
            return False
        given = records_of(additions)
        owners = self._known.owners_of(additions, given)
        if owners is None:
            return False
        records = given
        if self._known.has_owners:
            records = [_owned(*one) for one in zip(given, owners, strict=True)]
        size = self._seal.statement_bytes(sum([one.size_bytes for one in additions]))
        bulk = self._bulk
        if bulk is not None and not bulk.takes(len(records), size):
            bulk = None
        stored = await self._seal.before(records, self._known.version)
        leaves = await self._leaves(list(fields_of(additions)), {})
        is_done = False
        if stored is not None and bulk is None:
            is_done = await self._commit_at_once(stored, leaves, size, has_begun)
        if not is_done:
            known = self._known
            last = await self._transaction.claim(len(records), known.version, known.last or 0)
            if last is None:
                return False
            self._is_as_known()
            within = await self._seal.within(records, self._transaction, stored)
            has_begun()
            await self._add(last, within, bulk)
            await self._attest(leaves)
            self._numbers = last, last + len(records)
        if self._known.has_owners:
            _give_owners(additions, owners)
        return True

    async def _commit_at_once(
        self,
        stored: StoredRecords,
        leaves: Sequence[Bundle],
        size_bytes: int,
        has_begun: Callable[[], None],
    ) -> bool:
        """Write and commit records in one statement; return False if that is not possible now."""
        last, single = self._known.last, self._single_statement
        if last is None or not self._known.is_alone:
            return False
        if single is None or not single.takes(size_bytes, leaves):
            return False
        added = numbered(last, stored.records)
        spans = self._known.widened_spans(added.spans, last)
        if spans is None:
            return False
        has_begun()
        connection, version = self._transaction.connection, self._known.version
        if not await single.commit(connection, last, version, added, spans, stored.key_ids, leaves):
            return False
        self._is_as_known()
        self._spans = spans
        self._numbers = last, last + len(stored.records)
        return True

    def _is_as_known(self) -> None:
        """Set the version of the transaction to the cached one."""
        self._transaction.version = self._known.version
        self._transaction.erased_at = self._known.erased_at

    async def _add(
        self, last: int, records: Sequence[HistoryRecord], bulk: BulkInserts | None = None
    ) -> None:
        """Add records under the numbers after `last`, with their marks and spans."""
        added = numbered(last, records)
        inserts = self._inserts if bulk is None else bulk
        await inserts.add(self._transaction.connection, added)
        spans = added.spans
        if self._transaction.version == self._known.version:  # else perhaps of before a reset
            spans = self._known.unknown_spans(spans)
        for number, span in spans.items():
            await self._widen(number, span)

    async def _leaves(
        self, fields: Sequence[Fields], owners: Mapping[str, Owner]
    ) -> Sequence[Bundle]:
        """Return the leaves of records in clear, and of the owners of memories."""
        return () if self._attestation is None else await self._attestation.new.of(fields, owners)

    async def _attest(self, leaves: Sequence[Bundle]) -> None:
        if self._ledger is not None:
            for bundle in leaves:
                await self._ledger.append(bundle)

    async def _widen(self, number: int, span: Span) -> None:
        """Widen a span of the table so that it covers its records."""
        spans = self._tables.spans
        there = await self._transaction.fetch(
            select(
                spans.c.first_time, spans.c.last_time, spans.c.events, spans.c.has_undated
            ).where(spans.c.span == number)
        )
        for first_time, last_time, events, has_undated_ in there:
            span.join(Span(first_time, last_time, events, bool(has_undated_)))
        values = {
            "first_time": span.first_time,
            "last_time": span.last_time,
            "events": span.events,
            "has_undated": int(span.has_undated),
        }
        if there:
            changed = update(spans).where(spans.c.span == number).values(**values)
            await self._transaction.execute(changed)
        else:
            await self._transaction.execute(insert(spans).values(span=number, **values))
        self._spans[number] = span

    # A batch that is committed in steps

    async def commit_in_steps(self, batch: Sequence[Submission]) -> Mapping[int, HistoryError]:
        """Write a batch inside the transaction; return the refused submissions by index."""
        self._has_undated = has_undated(batch)
        await self._transaction.lock()
        await self._progress.on_locked()
        if self._transaction.last < (self._known.last or 0):
            self._known.forget()
        if self._transaction.version != self._known.version:
            await self._seal.check(self._transaction)
        before = self._transaction.last
        refused = await commit_in_steps(batch, self)
        await self._transaction.write_state()
        self._numbers = before, self._transaction.last
        return refused

    def learn(self) -> None:
        """Update the cache with what was read and written, after the commit."""
        owners = {n: o for n, o in self._seen.items() if n not in self._erased_memories}
        self._known.learn(self._transaction.version, self._transaction.erased_at, owners)
        self._known.learn_numbers(*self._numbers)
        self._known.learn_spans(self._spans)

    # The steps of `commit_in_steps`

    async def owners(self, records: Sequence[HistoryRecord]) -> dict[str, Owner]:
        """Return the owners of these records' memories, where they have one."""
        names = list(dict.fromkeys([record.memory_id for record in records]))
        found = await find_owners(self._transaction, names) if self._transaction.has_owners else {}
        self._seen |= {name: found.get(name) for name in names}
        return found

    async def erased(self, batch: Sequence[Submission]) -> Mapping[Name, datetime]:
        """Return the erased names of a batch, each with the instant of its erasure."""
        if self._transaction.erased_at is None:
            return {}
        erased = self._tables.erased
        digests = {name_digest(name).hex(): name for name in names_in(batch)}
        found: dict[Name, datetime] = {}
        for part in in_parts(digests):
            rows = await self._transaction.fetch(select(erased).where(erased.c.digest.in_(part)))
            found |= {digests[digest]: from_microseconds(at) for digest, at in rows}
        for kind, name in found:
            if kind == "memory_id":
                self._erased_memories.add(name)
        return found

    async def buffers(self, submissions: Sequence[SaveMessages]) -> dict[str, Buffer]:
        """Return the stored message buffers of these submissions' scopes."""
        return await find_buffers(self._transaction, submissions)

    @contextlib.asynccontextmanager
    async def undone_if_refused(self) -> AsyncIterator[None]:
        """Provide a savepoint, rolled back if the database refuses a write of the body."""
        self._progress.has_looked_up = True
        counters = self._transaction.counters
        seen, spans = dict(self._seen), dict(self._spans)
        try:
            async with savepoint(self._transaction.connection):
                yield
        except (DBAPIError, RowsLeftOut) as error:
            if isinstance(error.__cause__, TransactionEnded):
                raise
            if isinstance(error, DBAPIError) and not is_refusal(error):
                raise
            self._seal.undone()
            self._transaction.counters = counters
            self._seen, self._spans = seen, spans
            raise refused(error, self._where) from error

    async def write(
        self,
        records: Sequence[HistoryRecord],
        messages: Sequence[SaveMessages],
        owners: Mapping[str, Owner],
    ) -> None:
        """Write records and messages, in order, and the owners of memories."""
        if owners:
            await give_owners(self._transaction, owners)
            self._seen |= owners
        if records and self._has_undated:
            records = await dated(records, self.latest)
        await self._attest(await self._leaves(list(map(fields_in_order, records)), owners))
        if records:
            stored = await self._seal.within(records, self._transaction)
            await self._add(self._transaction.last, stored)
            self._transaction.last += len(records)
        if messages:
            rows = await self._seal.messages(message_rows(messages), self._transaction)
            await save_messages(self._transaction, rows)

    async def enter(self, entries: LogEntries) -> None:
        """Add operations to the log."""
        log = log_within(self._transaction.connection, self._tables, self._ledger)
        await log.enter(entries)


def _owned(record: HistoryRecord, owner: Owner | None) -> HistoryRecord:
    """Return a record with its memory's owner, if the memory has one."""
    return record if owner is None or record.owner is owner else replace(record, owner=owner)


def _give_owners(additions: Sequence[AddRecords], owners: Sequence[Owner | None]) -> None:
    """Set the owners of submissions' records; `owners` is in the order of the records."""
    begin = 0
    for submission in additions:
        end = begin + submission.record_count
        submission.give_owners(owners[begin:end])
        begin = end
