"""Forgetting an owner: in the vector store, in the entities, in the history, and checking that.

The vector store is the list of work: whatever remains in it is found when `forget` is called again.
Each memory is removed in its turn, with a DELETE in the history that has its owner. So the
history's erasure finds it, even if the history did not know the memory or its owner. If the history
has another owner for it, its texts are erased before it is removed from the vector store.

The history's erasure notes the owner. A change that began before and arrives later is refused and
taken back (`_late_changes`). Changes between the removal and the erasure are found by checking the
vector store once more.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from async_history._core.manager import HistoryManager
from async_history._core.records.new_records import new_fields
from async_history._core.records.owners import Owner
from async_history._core.records.records import Event, HistoryRecord, is_alive, made_record
from async_history._core.records.values import parse_time
from async_history._core.removing.erase import ErasureReport
from async_history._core.writing.erased_names import Name
from async_history._core.writing.new_submissions import checked_records
from async_history._core.writing.submissions import AddRecords
from async_history.blocking._sanitize import Sanitizer
from async_history.errors import Erased, HistoryError, InvalidInput
from async_history.mem0._forgetting.forget_request import ForgetReport, ForgetRequest
from async_history.mem0._steps import Steps
from async_history.mem0._undoing.restore import open_entities
from async_history.mem0._vectors.payloads import owner_in, unwatched
from async_history.mem0._vectors.vector_listing import list_rows

_LISTED: Final = 1_000
"""Rows requested at once, as in mem0's own `delete_all` (mem0ai 2.2)."""
_LOOKS: Final = 5
"""Number of checks of the vector store after the erasure; each finds what the previous one left."""
_OUT_OF_REACH: Final = (
    "the vector store and the graph may keep removed rows in their files, snapshots and backups "
    "for some time; the services that made embeddings and inferences keep what they keep"
)


@dataclass(frozen=True, slots=True)
class Stores:
    """mem0's stores with data of an owner.

    Attributes:
        memories: the vector store.
        entities: the store of entities; None before mem0 2.0.
        forget_in_graph: removes the owner from the graph; None without one (mem0 1.0 had graphs).
    """

    memories: Any
    entities: Any
    forget_in_graph: Callable[[], Any] | None

    @classmethod
    def of(cls, memory: Any, owner: Name) -> "Stores":
        """Return a memory's stores. It blocks: mem0 opens its store of entities on first use.

        Raises:
            InvalidInput: a graph cannot forget such an owner.
        """
        forget_in_graph = None
        if getattr(memory, "enable_graph", False):
            if owner[0] != "user_id":
                raise InvalidInput(
                    f"mem0's graph forgets users only, not a {owner[0]}: nothing was removed"
                )
            graph, filters = memory.graph, dict([owner])
            forget_in_graph = lambda: graph.delete_all(filters)  # noqa: E731
        entities = open_entities(memory) if hasattr(type(memory), "entity_store") else None
        return cls(unwatched(memory.vector_store), entities, forget_in_graph)


async def forget(steps: Steps, asked: ForgetRequest) -> ForgetReport:
    """Forget an owner. After an interruption, call it again: removed memories stay removed."""
    stores = await steps.call(Stores.of, steps.memory, asked.owner)
    removal = OwnerRemoval(stores, steps, asked)
    return await (removal.count() if asked.dry_run else removal.run())


@dataclass(slots=True)
class OwnerRemoval:
    """One run of forgetting."""

    stores: Stores
    steps: Steps
    asked: ForgetRequest
    memories: int = 0
    entities: int = 0
    records: int = 0
    has_changed: bool = False
    erased_from: datetime | None = None

    async def count(self) -> ForgetReport:
        erasure = await self._erase(dry_run=True)
        memories, entities = self.stores.memories, self.stores.entities
        return self._report(
            erasure,
            len(await self._listed_all(memories)),
            0 if entities is None else len(await self._listed_all(entities)),
        )

    async def run(self) -> ForgetReport:
        await self._remove_memories()
        await self._remove_entities()
        async with self._change(None) as begin_change:
            begin_change()
            if self.stores.forget_in_graph is not None:
                await self.steps.call(self.stores.forget_in_graph)
            self.erased_from = datetime.now(UTC)
            self.steps.erased_here.note(self.asked.owner, self.erased_from)
            erasure = await self._erase()
        for _ in range(_LOOKS):
            if not await self._remove_memories() + await self._remove_entities():
                break
        else:
            raise HistoryError(
                f"the vector store still has memories of this {self.asked.owner[0]} after they "
                "were removed several times; stop the program that adds them, and forget again"
            )
        left = await self._erase(dry_run=True)
        return self._report(erasure, self.memories, self.entities, later=left.records)

    def _report(
        self, erasure: ErasureReport, memories: int, entities: int, *, later: int = 0
    ) -> ForgetReport:
        return ForgetReport(
            done=erasure.done,
            memories=memories,
            entities=entities,
            records=self.records + erasure.records,
            messages=erasure.messages,
            later=later,
            copies=erasure.copies,
            remains=(*erasure.remains, _OUT_OF_REACH),
            erasure_id=erasure.erasure_id,
        )

    async def _erase(self, *, dry_run: bool = False) -> ErasureReport:
        asked = self.asked
        return await self.steps.ask(
            lambda history: history.erase(
                **asked.by_name, reason=asked.reason, dry_run=dry_run, vacuum=asked.vacuum
            )
        )

    @asynccontextmanager
    async def _change(self, memory_id: str | None) -> AsyncIterator[Callable[[], None]]:
        """Hold a memory's turn; it yields a function to call before a change.

        From the first change on, earlier operations of this process are refused.
        """
        async with self.steps.turn(memory_id):

            def begin() -> None:
                self.steps.begin_change()
                if not self.has_changed:
                    self.has_changed = True
                    self.steps.erased_here.note(self.asked.owner, datetime.now(UTC))

            yield begin

    # Rows of the vector store

    async def _listed(self, store: Any, limit: int) -> list[Any]:
        return await self.steps.call(partial(list_rows, store, self.asked.by_name, limit))

    async def _listed_all(self, store: Any) -> list[Any]:
        """List as much of the owner as the store does."""
        limit, before = _LISTED, 0
        while True:
            rows = await self._listed(store, limit)
            if len(rows) < limit or len(rows) == before:
                return rows
            limit, before = 4 * limit, len(rows)

    async def _remove_listed(self, store: Any, remove: Callable[[Any], Awaitable[bool]]) -> int:
        """Remove the owner's rows until a store lists no more; return their number."""
        count = listed_again = 0
        seen: set[str] = set()
        while True:
            rows = await self._listed(store, _LISTED + listed_again)
            new = [row for row in rows if str(row.id) not in seen]
            if not new:
                return count
            listed_again = len(rows) - len(new)
            seen.update(str(row.id) for row in new)
            for row in new:
                count += await remove(row)

    async def _remove_entities(self) -> int:
        store = self.stores.entities
        removed = 0 if store is None else await self._remove_listed(store, self._remove_entity)
        self.entities += removed
        return removed

    async def _remove_entity(self, row: Any) -> bool:
        """Remove an entity; after the erasure, only if no memory has it."""
        linked = (row.payload or {}).get("linked_memory_ids") if self.erased_from else ()
        async with self._change(None) as begin_change:
            for memory_id in linked or ():
                if await self._row(memory_id) is not None:
                    return False
            begin_change()
            await self.steps.call(partial(self.stores.entities.delete, vector_id=row.id))
        return True

    async def _row(self, row_id: Any) -> Any:
        return await self.steps.call(partial(self.stores.memories.get, vector_id=row_id))

    async def _remove_memories(self) -> int:
        removed = await self._remove_listed(self.stores.memories, self._remove_memory)
        self.memories += removed
        return removed

    async def _remove_memory(self, listed: Any) -> bool:
        """Remove a memory, in its turn, if it is still the owner's."""
        memory_id, (scope, value) = str(listed.id), self.asked.owner
        async with self._change(memory_id) as begin_change:
            row = await self._row(listed.id)
            payload = getattr(row, "payload", None) or {}
            if row is None or str(payload.get(scope, value)) != value:
                return False
            latest = await self.steps.ask(partial(_latest, memory_id))
            if self._is_later(payload, latest):
                return False
            begin_change()
            if latest is not None and not self._is_found_by_owner(latest):
                erasure = await self.steps.ask(
                    lambda history: history.erase(
                        memory_ids=[memory_id], reason=self.asked.reason, vacuum=False
                    )
                )
                self.records += erasure.records
            await self.steps.call(partial(self.stores.memories.delete, vector_id=listed.id))
            await self._record(memory_id, payload, latest)
        return True

    # The history

    def _is_owned(self, record: HistoryRecord) -> bool:
        """Return whether a record's memory is the owner's."""
        scope, value = self.asked.owner
        return record.owner is not None and getattr(record.owner, scope) == value

    def _is_later(self, payload: Mapping[str, Any], latest: HistoryRecord | None) -> bool:
        """Return whether a memory is the owner's by an operation that began after the erasure."""
        if self.erased_from is None:
            return False
        if latest is not None:
            return self._is_owned(latest)
        made = parse_time(str(payload.get("created_at") or ""))
        return made is not None and made > self.erased_from

    def _is_found_by_owner(self, latest: HistoryRecord) -> bool:
        """Return whether the erasure finds a memory by its owner once its DELETE is recorded."""
        return self._is_owned(latest) or (latest.owner is None and is_alive(latest))

    async def _record(
        self, memory_id: str, payload: Mapping[str, Any], latest: HistoryRecord | None
    ) -> None:
        """Record that a memory was deleted, without its text."""
        if latest is not None and not is_alive(latest):
            return
        is_erased = self.erased_from is not None
        if latest is None and is_erased:
            return
        with Sanitizer() as sanitizer:
            made = sanitizer.time("created_at", payload.get("created_at"))
            owner = owner_in(payload, sanitizer)
        if is_erased or (latest is not None and latest.owner is not None):
            owner = None
        try:
            await self._append(_deletion(memory_id, made, owner))
        except Erased:  # the memory was erased before, or its owner has been since
            await self._append(_deletion(memory_id, made, None))

    async def _append(self, submission: AddRecords) -> None:
        async def append(history: HistoryManager) -> None:
            await history.store.writer.submit(submission)

        await self.steps.ask(append)


async def _latest(memory_id: str, history: HistoryManager) -> HistoryRecord | None:
    async for record in history.query_history(memory_id=memory_id, order="newest", page_size=1):
        return record
    return None


def _deletion(memory_id: str, made: str | None, owner: Owner | None) -> AddRecords:
    """Return the record of a deletion now, without actor, cause and owner.

    Such a record is accepted even for an erased memory.
    """
    record = made_record(*new_fields(memory_id, None, None, Event.DELETE, made))
    if owner is None:
        record = replace(record, owner=None, cause=None)
    else:
        record = replace(record, owner=owner)
    submission = checked_records([record], must_match_owner=False)
    submission.begun_at = None  # it begins now, by the record's id
    return submission
