"""Copying a history into another store: in order, to the letter, and again after any interruption.

The target is walked beside the source. As far as it holds the source's records already, nothing is
written; from the first one missing on, page after page is submitted, and each is read back once it
is durable. One page is on its way at a time: whatever interrupts a copy, the target then holds
records from the source's beginning, without a hole. While one is being committed, the page before
it is compared, and the next one is read.
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
from async_history._core.progress import OpenProgress
from async_history._core.query import Cursor
from async_history._core.records import COLUMNS, Row
from async_history._core.submissions import messages_to_copy, records_to_copy
from async_history._core.validation import check_function
from async_history._transfer.sources import PAGE_RECORDS, HistorySource, RecordSource, checked_size
from async_history.errors import CopyMismatch, InvalidInput

_SCOPES_AT_ONCE: Final = 100
"""Message buffers that are read, compared and saved at the same time."""
_WAY_OUT: Final = "copy into an empty history instead; nothing was taken away from this one"


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyLimits:
    """How much a copy does at once.

    Attributes:
        records: of a page that is read of a history.
        compared: rows that are read back at once: while they are compared, the next batch's commit
            waits for the event loop.
    """

    records: int = PAGE_RECORDS
    compared: int = 250


_LIMITS: Final = CopyLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyReport:
    """What a copy did. When there is a report, each of the source's records is in the target."""

    records: int
    """Records of the source, each of which was compared with the target's."""
    written: int
    """Records that this copy wrote; the others were there."""
    digest: str
    """The SHA-256, in hexadecimal, of the source's records as the target gives them back, in order:
    each its ten columns as a JSON array, with a comma between two."""
    scopes: int
    """Session scopes whose messages were copied, or left."""
    scopes_left: int
    """Session scopes whose messages in the target were left as they are: another conversation has
    begun there."""
    seconds: float
    """How long it took."""


async def copy_history(
    source: HistoryManager | RecordSource,
    target: HistoryManager,
    *,
    on_progress: OpenProgress | None = None,
) -> CopyReport:
    """Copy all records, under their ids and in their order, and the message buffers.

    Interrupted anywhere, it can be called again: it goes on behind what is there, writes nothing
    twice, and checks all of it. Records that the target has besides stay where they are. What is
    written to the source meanwhile may be copied or not: call again for the rest.

    Each record is compared, in all columns and in its place, with what the target gives back. A
    target that reads elsewhere than it writes (`read_url`) may not have it yet.

    Args:
        source: an open history, which may be open with `migrate=False`; or `JsonLines`, or a
            `ForeignTable`, which have no message buffers.
        on_progress: called on the event loop after every page.

    Raises:
        InvalidInput: no store could hold a record of the source to the letter (it has no id, a
            NUL, what is no text). Pages before it are copied.
        CopyMismatch: the target has a record of the source in another place or with other content,
            or does not give back what was written.
        IdConflict: the target has another record of a source's id.
        CursorGone: records were removed where the copy was reading; call again.
        HistoryError: of either store. Call again when its cause is gone.
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
    begun = monotonic()
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
    records = source if isinstance(source, RecordSource) else HistorySource(source, limits.records)
    copy = _Copy(records, target, on_progress, limits.compared)
    try:
        await copy.begin()
        async with aclosing(_one_ahead(records.pages())) as pages:
            async for rows in pages:
                await copy.take(rows)
        await copy.finish()
    finally:
        await copy.withdraw()
    if isinstance(source, HistoryManager):
        scopes, scopes_left = await _copy_buffers(source, target)
    return CopyReport(
        records=copy.records,
        written=copy.written,
        digest=copy.digest.hexdigest(),
        scopes=scopes,
        scopes_left=scopes_left,
        seconds=monotonic() - begun,
    )


async def _one_ahead(
    pages: AsyncIterator[Sequence[Row]],
) -> AsyncGenerator[Sequence[Row], None]:
    """Yield pages, reading the next one while the last is in use."""

    async def following() -> Sequence[Row] | None:
        return await anext(pages, None)

    reading = asyncio.create_task(following())
    try:
        while (page := await reading) is not None:
            reading = asyncio.create_task(following())
            yield page
    finally:
        reading.cancel()
        await asyncio.wait([reading])
        if not reading.cancelled():
            reading.exception()  # nobody is left to hear of it
        if isinstance(pages, AsyncGenerator):
            await pages.aclose()


class _Copy:
    """The records on their way, and what became of those before them."""

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
        self._walk = _Walk(target, compared)
        self._on_progress = on_progress
        self._total: int | None = None
        self._is_writing = False
        self._on_its_way: asyncio.Future[None] | None = None
        self._durable: Sequence[Row] = ()

    async def begin(self) -> None:
        """Ask how many there are, where somebody wants to know."""
        if self._on_progress is not None:
            self._total = await self._source.count()

    async def take(self, rows: Sequence[Row]) -> None:
        """Find a page's records in the target, or write them there."""
        size = checked_size(rows)
        if not self._is_writing:
            found = await self._walk.meet(rows)
            self._walk.check_order(rows[found:])
            await self._note(rows[:found])
            rows = rows[found:]
            self._is_writing = bool(rows)
        if rows:
            submission = records_to_copy(await self._source.records(rows), size)
            await self._arrived()
            durable, self._durable = self._durable, rows
            self._on_its_way = self._target.store.writer.submit(submission)
            await self._compare(durable)

    async def finish(self) -> None:
        """Wait for what is on its way, and compare it."""
        await self._arrived()
        await self._compare(self._durable)

    async def withdraw(self) -> None:
        """Leave nothing on its way that is not being committed already."""
        if self._on_its_way is not None:
            self._on_its_way.cancel()
            await asyncio.wait([self._on_its_way])
            if not self._on_its_way.cancelled():
                self._on_its_way.exception()  # the copy has ended for another reason

    async def _arrived(self) -> None:
        if self._on_its_way is not None:
            await self._on_its_way
            self._on_its_way = None

    async def _compare(self, rows: Sequence[Row]) -> None:
        """Read back what is durable."""
        met = await self._walk.meet(rows)
        if met < len(rows):
            # Somebody else's record with a later number was visible before one of ours.
            await self._walk.step_back()
            met += await self._walk.meet(rows[met:])
            self._walk.check_order(rows[met:])
        if met < len(rows):
            raise CopyMismatch(
                f"the target does not give back the record {rows[met][0]} in its place, behind "
                f"those that the source has before it; {_WAY_OUT}"
            )
        self.written += met
        await self._note(rows)

    async def _note(self, rows: Sequence[Row]) -> None:
        """Count rows that the target holds as the source does."""
        for start in range(0, len(rows), self._compared):
            part = json.dumps(rows[start : start + self._compared], separators=(",", ":"))[1:-1]
            self.digest.update(f",{part}".encode() if self.records + start else part.encode())
            await asyncio.sleep(0)
        self.records += len(rows)
        if rows and self._on_progress is not None:
            self._on_progress(self.records, self._total)


class _Walk:
    """A walk through the target's records, in order, past those that are not the source's."""

    def __init__(self, target: HistoryManager, compared: int) -> None:
        self._target = target
        self._compared = compared
        self._page: Sequence[Row] = ()
        self._at = 0
        self._before_page: Cursor | None = None
        self._place: Cursor | None = None
        self._step_back_to: tuple[Cursor | None, str | None] = (None, None)
        self._early: str | None = None

    async def meet(self, wanted: Sequence[Row]) -> int:
        """Walk until these rows were met, or to the end there is now; return how many were met.

        Stops in front of one that comes too early: see `check_order`.

        Raises:
            CopyMismatch: one was met with other content.
        """
        met = 0
        self._early = None
        newest: int | None = None
        while met < len(wanted) and self._early is None:
            if self._at == len(self._page):
                # Others may write faster than this walks.
                newest = newest or await self._target.store.reader.newest()
                if newest is None or (self._place and self._place.position >= newest):
                    break
                if not await self._turn():
                    break
            end = self._at + min(len(wanted) - met, len(self._page) - self._at)
            if self._page[self._at : end] == wanted[met : met + end - self._at]:
                met += end - self._at
                self._at = end
                self._step_back_to = (self._before_page, wanted[met - 1][0])
            else:
                met = self._meet_one_by_one(wanted, met)
        return met

    def _meet_one_by_one(self, wanted: Sequence[Row], met: int) -> int:
        to_come = {row[0] for row in wanted[met:]}
        while met < len(wanted) and self._at < len(self._page):
            row = self._page[self._at]
            if row == wanted[met]:
                met += 1
                self._step_back_to = (self._before_page, row[0])
            elif row[0] == wanted[met][0]:
                column = next(
                    name
                    for name, there, here in zip(COLUMNS, row, wanted[met], strict=True)
                    if there != here
                )
                raise CopyMismatch(
                    f"the record {row[0]} has another {column} in the target; {_WAY_OUT}"
                )
            elif row[0] in to_come:
                self._early = row[0]
                break
            self._at += 1
        return met

    def check_order(self, missed: Sequence[Row]) -> None:
        """Check that none of the rows that `meet` missed stands before the first of them.

        Raises:
            CopyMismatch: one does.
        """
        if self._early is not None:
            raise CopyMismatch(
                f"the target has the record {self._early} in another place than the source: "
                f"{missed[0][0]} is not before it; {_WAY_OUT}"
            )

    async def _turn(self) -> bool:
        """Read the next page; tell whether there is one."""
        read = await self._target.store.reader.rows(self._place, self._compared)
        self._before_page, self._place = self._place, read.place or self._place
        self._page = read.rows
        self._at = 0
        return bool(self._page)

    async def step_back(self) -> None:
        """Go back behind the last row that was met, and look again at what follows."""
        self._place, record_id = self._step_back_to
        self._page, self._at = [], 0
        while record_id is not None:
            if not await self._turn():
                raise CopyMismatch(f"the record {record_id} was removed from the target meanwhile")
            ids = [row[0] for row in self._page]
            if record_id in ids:
                self._at = ids.index(record_id) + 1
                return


async def _copy_buffers(source: HistoryManager, target: HistoryManager) -> tuple[int, int]:
    """Copy the message buffers; return how many there are, and how many were left as they are."""
    after = ""
    scopes = left = 0
    while names := await source.store.reader.scopes(after, _SCOPES_AT_ONCE):
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
    """Save what the target's buffer lacks; tell whether the two are of one conversation."""
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
