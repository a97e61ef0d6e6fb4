"""The history as one caller may see and change it: the library's calls, with limits.

The JSON API and the pages use only this. A memory of another owner is "not found", as if it did not
exist. A call that concerns other owners is refused.
"""

from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Hashable,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Unpack

from starlette.exceptions import HTTPException

from async_history._core.manager import HistoryManager
from async_history._core.operations.operations import StoreOperation
from async_history._core.reading.filters import Order
from async_history._core.reading.follow import Follower
from async_history._core.reading.query import Page
from async_history._core.reading.timeline import MemoryDiff, Moment
from async_history._core.records.records import Event, HistoryRecord
from async_history._core.removing.erase import ErasureReport
from async_history._core.stats import HistoryStats
from async_history._core.undoing.rollback import RollbackReport
from async_history.errors import InvalidInput
from async_history.web._access import Access
from async_history.web._parts import parts, scan_sizes, text_chars
from async_history.web._reach import OwnerFilter, Reach, ViewLimits, scopes_given
from async_history.web._walk import Walk, last_record

PAGE_SIZE: Final = 50
"""Records of a page, unless another number is given."""


class RecordFilter(OwnerFilter, total=False):
    """The filters of `query_history`."""

    memory_id: str | Collection[str] | None
    actor_id: str | None
    role: str | None
    event: Event | str | None
    text: str | None
    since: datetime | None
    until: datetime | None
    cause: Mapping[str, str] | None


@dataclass(frozen=True, slots=True)
class Followed:
    """The records that a caller follows.

    Attributes:
        key: equal for callers who follow the same records and may see the same ones.
        follow: returns a follower after a cursor.
    """

    key: Hashable
    follow: Callable[[str | None], Follower]


class View:
    """One caller's view of a history.

    Every call raises what the manager's call of that name raises, and HTTPException: 404 for a
    memory that the caller may not see, 403 for what the caller may not do.

    Args:
        history: an open manager.
        access: the caller's rights.
        write: whether this page may change the history.
        limits: the limits of a request.
    """

    def __init__(
        self, history: HistoryManager, access: Access, *, write: bool, limits: ViewLimits
    ) -> None:
        self._history = history
        self._reach = Reach(access, write=write, limits=limits)
        self._actor_id = access.actor_id

    @property
    def can_write(self) -> bool:
        """Whether the caller may restore, roll back, undo and erase."""
        return self._reach.can_write

    @property
    def is_limited(self) -> bool:
        """Whether the caller is limited to one owner's memories."""
        return self._reach.is_limited

    @property
    def limits(self) -> ViewLimits:
        """The limits of a request."""
        return self._reach.limits

    # Reading

    async def query_history(
        self,
        *,
        order: Order = "newest",
        after: str | None = None,
        page_size: int = PAGE_SIZE,
        **wanted: Unpack[RecordFilter],
    ) -> Page:
        """Return one page of the records that match.

        A page ends early if its texts are long, or if the search takes long. It may have no records
        then, and the next page continues the search.
        """
        most = self._reach.page_size(page_size)
        asked = {**self._within_reach(wanted), "order": order}
        sizes = scan_sizes(self.limits)
        return await self._page(
            parts(self._history, self.limits, after=after, most=most, scan_sizes=sizes, **asked)
        )

    async def records(
        self,
        *,
        order: Order = "newest",
        after: str | None = None,
        page_size: int = PAGE_SIZE,
        memory_id: str | None = None,
        **owner: Unpack[OwnerFilter],
    ) -> Page:
        """Return one page of all records, or of those of a memory or an owner.

        An index finds them. A page with long texts ends early.
        """
        most = self._reach.page_size(page_size)
        asked = {"memory_id": memory_id, "order": order, **self._reach.scopes(owner)}
        return await self._page(parts(self._history, self.limits, after=after, most=most, **asked))

    async def _page(self, read: AsyncIterator[Page]) -> Page:
        """Return parts as one page, which ends early if its texts are long."""
        found: list[HistoryRecord] = []
        chars = 0
        page = Page(records=(), cursor=None)
        async for page in read:
            found += page.records
            chars += sum(map(text_chars, page.records))
            if chars >= self.limits.page_chars:
                break
        return replace(page, records=found)

    async def count_history(self, **wanted: Unpack[RecordFilter]) -> int:
        """Return the number of records that match."""
        return await self._history.count_history(**self._within_reach(wanted))

    async def get_history(
        self,
        memory_id: str,
        *,
        order: Order = "oldest",
        after: str | None = None,
        page_size: int = PAGE_SIZE,
    ) -> Page:
        """Return one page of a memory's records, as `records` does."""
        page = await self.records(
            memory_id=memory_id, order=order, after=after, page_size=page_size
        )
        if not page.records:
            await self.latest(memory_id)
        return page

    async def latest(self, memory_id: str) -> HistoryRecord:
        """Return a memory's latest record."""
        record = await last_record(self._history, memory_id, **self._reach.owner)
        if record is None:
            raise _not_found()
        return record

    async def memories(
        self,
        *,
        after: str | None = None,
        page_size: int = PAGE_SIZE,
        **owner: Unpack[OwnerFilter],
    ) -> Page:
        """Return one page of existing memories: the latest record of each, latest changes first.

        Without an owner, all memories are included. A page may have a few more than `page_size`.
        It may have fewer, or none, where many records belong to the same or to deleted memories.
        On the last page `cursor` is None.
        """
        walk = Walk(history=self._history, scopes=self._reach.scopes(owner))
        return await walk.page(after, self._reach.page_size(page_size), self.limits)

    async def memories_at(
        self,
        when: datetime,
        *,
        cause: Mapping[str, str] | None = None,
        after: str | None = None,
        page_size: int = PAGE_SIZE,
        **owner: Unpack[OwnerFilter],
    ) -> Page:
        """Return one page of the memories that existed at an instant: the record in force of each.

        The latest changes before the instant come first. Pages are as in `memories`. Memories whose
        records have no time at all are left out.
        """
        scopes = self._reach.scopes(owner)
        walk = Walk(history=self._history, scopes=scopes, when=when, cause=cause)
        return await walk.page(after, self._reach.page_size(page_size), self.limits)

    async def memory_at(self, memory_id: str, when: Moment) -> HistoryRecord | None:
        """Return the record in force at a moment."""
        await self._count_short(memory_id)
        return await self._history.memory_at(memory_id, when)

    async def diff(self, memory_id: str, start: Moment, end: Moment) -> MemoryDiff:
        """Return the difference of a memory between two moments."""
        await self._count_short(memory_id)
        found = await self._history.diff(memory_id, start, end)
        if sum(map(text_chars, found.between)) > self.limits.page_chars:
            raise InvalidInput("the texts between are too long for one page: read its history")
        return found

    def followed(
        self,
        *,
        memory_id: str | None = None,
        cause: Mapping[str, str] | None = None,
        **owner: Unpack[OwnerFilter],
    ) -> Followed:
        """Return what to follow: the matching records that the caller may see."""
        scopes = self._reach.scopes(owner)

        def follow(after: str | None) -> Follower:
            return self._history.follow(after=after, memory_id=memory_id, cause=cause, **scopes)

        key = memory_id, frozenset(scopes.items()), frozenset((cause or {}).items())
        return Followed(key, follow)

    async def end_cursor(self) -> str | None:
        """Return the cursor after all records committed so far."""
        return await self._history.end_cursor()

    async def stats(self) -> HistoryStats:
        """Return the state of the store."""
        self._reach.require_unlimited("the store's statistics and warnings")
        return await self._history.stats()

    async def operations(
        self, *, after: str | None = None, page_size: int = PAGE_SIZE
    ) -> Sequence[StoreOperation]:
        """Return one page of the operations on the store, newest first.

        Args:
            after: the id of an operation, to continue after it.
            page_size: the most operations to return.
        """
        self._reach.require_unlimited("the store's operations")
        size = self._reach.page_size(page_size)
        found = await self._history.operations(before=after, limit=size)
        return found[::-1]

    # Changing

    async def restoration(self, memory_id: str, *, to: Moment) -> MemoryDiff:
        """Return what `restore` would change: from the last version to the one of then.

        Raises:
            InvalidInput: the memory did not exist then, or its text is not known.
        """
        self._reach.require_write()
        latest = await self._count_short(memory_id)
        found = await self._history.diff(memory_id, latest, to)
        if found.new_memory is None:
            raise InvalidInput("the memory did not exist then, or its text of then is not known")
        return found

    async def restore(self, memory_id: str, *, to: Moment) -> HistoryRecord:
        """Record again what a memory said at a moment; see `restoration` for a preview."""
        self._reach.require_write()
        await self._count_short(memory_id)
        return await self._history.restore(memory_id, to=to, actor_id=self._actor_id)

    async def rollback(
        self,
        *,
        to: datetime,
        memory_ids: Iterable[str] | None = None,
        dry_run: bool = True,
        **owner: Unpack[OwnerFilter],
    ) -> RollbackReport:
        """Return memories to their state at an instant, or show what that would do."""
        self._reach.require_write()
        if memory_ids is None:
            named, scopes = None, self._reach.scopes(owner)
        else:
            named, scopes = await self._all_seen(memory_ids), scopes_given(owner)
        return await self._history.rollback(
            to=to, memory_ids=named, dry_run=dry_run, actor_id=self._actor_id, **scopes
        )

    async def undo(
        self,
        *,
        run_id: str | None = None,
        cause: Mapping[str, str] | None = None,
        dry_run: bool = True,
    ) -> RollbackReport:
        """Undo the changes of a run or a cause, or show what that would do."""
        self._reach.require_write()
        self._reach.require_unlimited("an undo, which reaches others' too: use a rollback")
        return await self._history.undo(
            run_id=run_id, cause=cause, dry_run=dry_run, actor_id=self._actor_id
        )

    async def erase(
        self,
        *,
        memory_ids: Iterable[str] = (),
        record_ids: Iterable[str] = (),
        actor_id: str | None = None,
        session_scopes: Iterable[str] = (),
        reason: str,
        dry_run: bool = True,
        **owner: Unpack[OwnerFilter],
    ) -> ErasureReport:
        """Make texts unreadable for good, or count what that would erase.

        A caller who is limited to an owner may erase memories of this owner by name. If the owner
        has one scope, the caller may also erase all of them.
        """
        self._reach.require_write()
        records = self._reach.named("record_ids", record_ids)
        buffers = self._reach.named("session_scopes", session_scopes)
        scopes = scopes_given(owner)
        if records or buffers or actor_id is not None:
            self._reach.require_unlimited("records, actors or session scopes by name")
        if scopes and self.is_limited and scopes != self._reach.owner:
            raise HTTPException(403, "you may erase your own memories only")
        report = await self._history.erase(
            memory_ids=await self._all_seen(memory_ids),
            record_ids=records,
            actor_id=actor_id,
            session_scopes=buffers,
            reason=reason,
            dry_run=dry_run,
            **scopes,
        )
        # Only the operator may know where copies are.
        return replace(report, copies=(), remains=()) if self.is_limited else report

    # Limits of the caller

    def _within_reach(self, wanted: RecordFilter) -> RecordFilter:
        memory_id = wanted.get("memory_id")
        if memory_id is not None and not isinstance(memory_id, str):
            self._reach.named("memory_id", memory_id)
        return {**wanted, **self._reach.scopes(wanted)}  # type: ignore[typeddict-item]

    async def _count_short(self, memory_id: str) -> int:
        """Return the number of a memory's records, which are read as a whole."""
        count = await self._history.count_history(memory_id=memory_id, **self._reach.owner)
        if not count:
            raise _not_found()
        most = self.limits.memory_records
        if count > most:
            raise InvalidInput(
                f"the memory has {count:,} records, more than {most:,}: read its history by pages"
            )
        return count

    async def _all_seen(self, memory_ids: Iterable[str]) -> tuple[str, ...]:
        named = self._reach.named("memory_ids", memory_ids)
        if self.is_limited:
            for memory_id in named:
                await self.latest(memory_id)
        return named


def _not_found() -> HTTPException:
    return HTTPException(404, "there is no memory of this name")
