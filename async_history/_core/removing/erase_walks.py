"""An erasure's walks through the records, in small transactions between the writes."""

from collections.abc import Callable, Coroutine, Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Protocol, TypeVar

from async_history._core.removing.erase_request import EraseRequest
from async_history._core.removing.erase_transaction import (
    OWN,
    WHOLE,
    Chosen,
    Decision,
    Done,
    EraseTransaction,
    Found,
    RecordRef,
    collect_recorded,
    disown,
    erase_columns,
    erase_memories,
    erase_messages,
    erase_next,
    erase_recorded,
    erase_whole,
    forget_actor,
    look,
    look_up,
    note,
)
from async_history._core.writing.erased_names import MEMORY, SESSION, TEXTS

T = TypeVar("T")


class InTransaction(Protocol):
    """Runs work in one transaction, in the queue of the writes."""

    async def __call__(
        self, work: Callable[[EraseTransaction], Coroutine[Any, Any, T]], /
    ) -> T: ...


class ErasureWalks:
    """The walks of one erasure, with counts of what they have erased."""

    def __init__(
        self, in_transaction: InTransaction, asked: EraseRequest, begun_at: datetime
    ) -> None:
        self._in_transaction = in_transaction
        self._asked = asked
        self._begun_at = begun_at
        self._id = None if asked.dry_run else asked.id
        self._records = asked.limits.records
        self.records = 0
        self.messages = 0

    async def run(self) -> None:
        asked = self._asked
        forgotten = None if asked.dry_run else asked.owner
        if not asked.dry_run:
            kind, most = TEXTS if forgotten is None else MEMORY, asked.limits.noted
            all_names = [(kind, name) for name in asked.memory_ids]
            all_names += [(SESSION, scope) for scope in asked.session_scopes]
            for at in range(0, len(all_names), most):
                names = all_names[at : at + most]
                await self._in_transaction(partial(note, names, self._begun_at))
        for memory_ids in self._parts(asked.memory_ids):
            await self._memories(memory_ids)
            if forgotten is not None:  # last: by the owner they are found again
                await self._in_transaction(partial(disown, forgotten[0], memory_ids))
        for record_ids in self._parts(asked.record_ids):
            await self._chosen_records(record_ids)
        if asked.actor_id is not None:
            await self._actor(asked.actor_id)
            if not asked.dry_run:
                await self._in_transaction(partial(forget_actor, asked.actor_id))
        for session_scopes in self._parts(asked.session_scopes):
            self.messages += await self._in_transaction(
                partial(erase_messages, self._id, session_scopes)
            )

    async def _memories(self, memory_ids: Sequence[str]) -> None:
        """Erase memories. Groups with more records than a step are halved. In the end a very large
        memory is alone, and its records are not read again with each step of the others.
        """
        left: list[tuple[Sequence[str], RecordRef | None]] = [(memory_ids, None)]
        while left:
            names, after = left.pop()
            done = await self._in_transaction(
                partial(erase_memories, self._id, names, after, self._records)
            )
            self.records += done.records
            if done.after is not None:
                half = len(names) // 2
                left += [(part, done.after) for part in (names[:half], names[half:]) if part]

    async def _actor(self, actor_id: str) -> None:
        chosen = Chosen(actor_id, frozenset(), OWN)
        seen: set[str] = set()
        after: RecordRef | None = None
        while True:
            found = await self._in_transaction(partial(look, actor_id, after, seen, self._records))
            await self._found(chosen, found)
            seen.update(found.sizes)
            after = found.after
            if after is None:
                return

    async def _chosen_records(self, record_ids: Sequence[str]) -> None:
        ids, found = await self._in_transaction(partial(look_up, record_ids, self._records))
        await self._found(Chosen(None, ids, WHOLE), found)

    async def _found(self, chosen: Chosen, found: Found) -> None:
        if found.alone:
            work = partial(erase_columns, self._id, chosen.columns, found.alone)
            self.records += await self._in_transaction(work)
        for memory_ids in found.groups():
            if found.is_large(memory_ids[0]):
                await self._in_large_memory(chosen, memory_ids[0])
            else:
                work = partial(erase_whole, self._id, chosen, memory_ids)
                self.records += await self._in_transaction(work)

    async def _in_large_memory(self, chosen: Chosen, memory_id: str) -> None:
        walk = partial(self._through, chosen, memory_id)
        through: int | None = None
        while True:
            recorded: set[bytes] = set()
            collected = await walk(partial(collect_recorded, recorded, chosen))
            if through is None:
                through = collected.last
            if not self._asked.dry_run:  # the third walk would count them again
                await walk(partial(erase_recorded, recorded, chosen, with_own=False))
            done = await walk(partial(erase_recorded, recorded, chosen, with_own=True))
            # A chosen record committed in between, before the end of the first walk, is kept, so
            # that its copies can be found.
            if self._asked.dry_run or done.left is None or done.left > through:
                return

    async def _through(self, chosen: Chosen, memory_id: str, decide: Decision) -> Done:
        """Walk through a memory in several transactions."""
        after: RecordRef | None = None
        last, left = 0, None
        while True:
            work = partial(erase_next, self._id, chosen, memory_id, after, decide, self._records)
            done = await self._in_transaction(work)
            self.records += done.records
            last = max(last, done.last)
            left = done.left if left is None else left
            after = done.after
            if after is None:
                return Done(last=last, left=left)

    def _parts(self, names: Sequence[str]) -> Iterator[Sequence[str]]:
        most = self._asked.limits.names
        return (names[at : at + most] for at in range(0, len(names), most))
