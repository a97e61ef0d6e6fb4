"""Copies a history into another store: in order, exactly, and resumable after any interruption.

The target is scanned together with the source. Existing records are not written again. From the
first missing record on, the pages are submitted one after the other, and each is read back when it
is durable. Only one page is pending at a time: after an interruption, the target has the source's
records from the beginning, without a gap. While a page is being committed, the previous page is
compared and the next one is read.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from time import monotonic
from typing import Final

from async_history._core.manager import HistoryManager
from async_history._core.operations.operation_log import logged
from async_history._core.operations.operations import new_operation, system_name
from async_history._core.operations.progress import OpenProgress
from async_history._core.records.recording import operation
from async_history._core.records.rows import Row
from async_history._core.validation import check_function
from async_history._core.writing.new_submissions import messages_to_copy, records_to_copy
from async_history._transfer.sources import PAGE_RECORDS, HistorySource, RecordSource, checked_size
from async_history._transfer.target_scan import ADVICE, TargetScan
from async_history.errors import CopyMismatch, InvalidInput

_SCOPES_AT_ONCE: Final = 100
"""Message buffers that are read, compared and saved at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyLimits:
    """Limits of a copy.

    Attributes:
        records: most records of a page of a history.
        compared: most rows read back at once. While they are compared, the next batch's commit
            waits for the event loop.
    """

    records: int = PAGE_RECORDS
    compared: int = 250


_LIMITS: Final = CopyLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyReport:
    """The result of a copy: each of the source's records is in the target."""

    records: int
    """Number of the source's records, each compared with the target's."""
    written: int
    """Number of records that this copy wrote; the target had the others before."""
    digest: str
    """The SHA-256, in hexadecimal, of the source's records as the target gives them back, in order:
    each a JSON array of its ten columns, its owner, context and cause, with a comma between two."""
    scopes: int
    """Number of session scopes whose messages were copied or left."""
    scopes_left: int
    """Number of session scopes not copied because the target has another conversation there."""
    seconds: float
    """The duration of the copy."""


async def copy_history(
    source: HistoryManager | RecordSource,
    target: HistoryManager,
    *,
    on_progress: OpenProgress | None = None,
) -> CopyReport:
    """Copy all records, with their ids and in their order, and the message buffers.

    After an interruption, call it again: it continues after the copied records, writes nothing
    twice, and checks all records. Other records of the target are not changed. Records written to
    the source during the copy may be copied or not: call again for the rest.

    Each record is compared, in all columns and in its position, with the target's record. A record
    without an owner takes its memory's owner in the target. An owner that a memory of the source
    got since an earlier copy is given to the target's memory. Neither store is read from a replica
    (`read_url`), which may not have all records yet.

    Args:
        source: an open history, which may be open with `migrate=False`; or `JsonLines`, or a
            `ForeignTable`, which have no message buffers.
        on_progress: called on the event loop after every page.

    Raises:
        InvalidInput: a record of the source cannot be stored exactly (it has no id, a NUL, or a
            value that is not text). The pages before it are copied.
        CopyMismatch: the target has a record of the source in another position or with other
            content, or does not return a written record unchanged.
        OwnerConflict: a memory has another owner in the target. Its page was not written.
        IdConflict: the target has a different record with an id of the source.
        CursorGone: records were removed at the copy's position; call again.
        HistoryError: either store failed. Call again when the cause is gone.
    """
    return await copy_within(_LIMITS, source, target, on_progress=on_progress)


async def copy_within(
    limits: CopyLimits,
    source: HistoryManager | RecordSource,
    target: HistoryManager,
    *,
    on_progress: OpenProgress | None = None,
) -> CopyReport:
    """Copy as `copy_history` does, with limits."""
    started = monotonic()
    if not isinstance(target, HistoryManager):
        raise InvalidInput(f"target must be a HistoryManager, not {type(target).__name__}")
    if not isinstance(source, HistoryManager | RecordSource):
        raise InvalidInput(
            f"source must be a HistoryManager or a RecordSource, not {type(source).__name__}"
        )
    check_function("on_progress", on_progress)
    _ = target.store  # raises where it is not open
    scopes = scopes_left = 0
    if isinstance(source, HistoryManager):
        _ = source.store
    records = source if isinstance(source, RecordSource) else HistorySource(source)
    copy = _Copy(records, target, on_progress, limits.compared)
    entry = new_operation("copy", {"source": _named(source)})
    async with logged(target.store.operations, entry) as tally:
        try:
            await copy.begin()
            async with aclosing(_one_ahead(records.pages(limits.records))) as pages:
                async for rows in pages:
                    await copy.copy_page(rows)
            await copy.finish()
        finally:
            await copy.withdraw()
            tally.records = copy.written
        if isinstance(source, HistoryManager):
            with operation():
                scopes, scopes_left = await _copy_buffers(source, target)
    return CopyReport(
        records=copy.records,
        written=copy.written,
        digest=copy.digest.hexdigest(),
        scopes=scopes,
        scopes_left=scopes_left,
        seconds=monotonic() - started,
    )


def _named(source: HistoryManager | RecordSource) -> str:
    """Return a source's name for the target's log: a history's location, or the kind of source."""
    if isinstance(source, HistoryManager):
        return system_name(source.backend.where)
    return type(source).__name__


async def _one_ahead(
    pages: AsyncIterator[Sequence[Row]],
) -> AsyncGenerator[Sequence[Row], None]:
    """Yield pages, and read the next page while the current one is used."""

    async def read_next() -> Sequence[Row] | None:
        return await anext(pages, None)

    reading = asyncio.create_task(read_next())
    try:
        while (page := await reading) is not None:
            reading = asyncio.create_task(read_next())
            yield page
    finally:
        reading.cancel()
        await asyncio.wait([reading])
        if not reading.cancelled():
            reading.exception()  # the copy has ended for another reason
        if isinstance(pages, AsyncGenerator):
            await pages.aclose()


class _Copy:
    """A running copy: its pending page, and the counts of earlier pages."""

    def __init__(
        self,
        source: RecordSource,
        target: HistoryManager,
        on_progress: OpenProgress | None,
        compared: int,
    ) -> None:
        self.records = 0
        self.written = 0
        self.digest = hashlib.sha256()
        self._source = source
        self._target = target
        self._compared = compared
        self._scan = TargetScan(target, compared)
        self._on_progress = on_progress
        self._total: int | None = None
        self._is_writing = False
        self._pending: asyncio.Future[None] | None = None
        self._durable: Sequence[Row] = ()

    async def begin(self) -> None:
        """Count the source's records, if there is an `on_progress`."""
        if self._on_progress is not None:
            self._total = await self._source.count()

    async def copy_page(self, rows: Sequence[Row]) -> None:
        """Find a page's records in the target, or write them there."""
        size = checked_size(rows)
        if not self._is_writing:
            found = await self._scan.match(rows)
            self._scan.check_order(rows[len(found) :])
            await self._count(found)
            rows = rows[len(found) :]
            self._is_writing = bool(rows)
        if rows:
            submission = records_to_copy(await self._source.records(rows), size)
            await self._wait_for_pending()
            durable, self._durable = self._durable, rows
            self._pending = self._target.store.writer.submit(submission)
            await self._compare(durable)

    async def finish(self) -> None:
        """Wait for the pending page, compare it, and check owners that were given late."""
        await self._wait_for_pending()
        await self._compare(self._durable)
        await self._scan.check_owners()

    async def withdraw(self) -> None:
        """Cancel the pending page, unless it is already being committed."""
        if self._pending is not None:
            self._pending.cancel()
            await asyncio.wait([self._pending])
            if not self._pending.cancelled():
                self._pending.exception()  # the copy has ended for another reason

    async def _wait_for_pending(self) -> None:
        if self._pending is not None:
            await self._pending
            self._pending = None

    async def _compare(self, rows: Sequence[Row]) -> None:
        """Read back durable rows and compare them."""
        found = await self._scan.match(rows)
        if len(found) < len(rows):
            # Another writer's record with a later number was visible before one of this copy.
            await self._scan.rewind()
            found += await self._scan.match(rows[len(found) :])
            self._scan.check_order(rows[len(found) :])
        if len(found) < len(rows):
            raise CopyMismatch(
                f"the target does not return the record {rows[len(found)][0]} in its place, after "
                f"the records that the source has before it; {ADVICE}"
            )
        self.written += len(found)
        await self._count(found)

    async def _count(self, rows: Sequence[Row]) -> None:
        """Count rows that are equal in the target."""
        for start in range(0, len(rows), self._compared):
            part = json.dumps(rows[start : start + self._compared], separators=(",", ":"))[1:-1]
            self.digest.update(f",{part}".encode() if self.records + start else part.encode())
            await asyncio.sleep(0)
        self.records += len(rows)
        if rows and self._on_progress is not None:
            self._on_progress(self.records, self._total)


async def _copy_buffers(source: HistoryManager, target: HistoryManager) -> tuple[int, int]:
    """Copy the message buffers; return their number, and how many were left unchanged."""
    after = ""
    scopes = left = 0
    while names := await source.store.primary_reader.scopes(after, _SCOPES_AT_ONCE):
        done = await asyncio.gather(
            *(_copy_buffer(source, target, name) for name in names), return_exceptions=True
        )
        for one in done:
            if isinstance(one, BaseException):
                raise one
        scopes += len(names)
        left += done.count(False)
        after = names[-1]
    return scopes, left


async def _copy_buffer(source: HistoryManager, target: HistoryManager, scope: str) -> bool:
    """Save the messages that the target lacks; return False if it has another conversation."""
    messages = await source.get_last_messages(scope)
    there = await target.get_last_messages(scope)
    common = next(
        (n for n in range(min(len(messages), len(there)), 0, -1) if there[-n:] == messages[:n]), 0
    )
    if there and not common:
        return there[-len(messages) :] == messages
    if messages[common:]:
        await target.store.writer.submit(messages_to_copy(messages[common:], scope))
    return True
