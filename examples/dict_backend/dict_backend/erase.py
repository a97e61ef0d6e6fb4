"""The look-ups and writes inside a step of erasing."""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from datetime import datetime
from hashlib import blake2b
from typing import Any, TypeVar

from async_history import backend as api
from async_history.backend import HistoryRecord, RecordRef
from dict_backend.data import Kept
from dict_backend.operations import DictOperationLog

T = TypeVar("T")


class DictErasure:
    """The `EraseBackend` and the `EraseTransaction`. No texts remain elsewhere."""

    def __init__(self, kept: Kept, writer: api.GroupCommitWriter[api.Submission]) -> None:
        self._kept = kept
        self._writer = writer
        self.log = DictOperationLog(kept.operations)

    async def in_transaction(
        self, work: Callable[[api.EraseTransaction], Coroutine[Any, Any, T]]
    ) -> T:
        return await self._writer.run_alone(lambda: work(self))

    async def clean(self, *, key_ids: Sequence[str], vacuum: api.Vacuuming) -> api.Residue:
        return api.Residue()

    async def residue(self) -> api.Residue:
        return api.Residue()

    def _refs(
        self, after: RecordRef | None, limit: int | None, wanted: Callable[[HistoryRecord], bool]
    ) -> list[RecordRef]:
        is_there = after is not None and self._kept.positions.get(after.id) == after.position
        start = after.position if after is not None and is_there else 0
        items = self._kept.records.items()
        found = [RecordRef(p, r.id, r.memory_id) for p, r in items if p > start and wanted(r)]
        return found[:limit]

    async def with_text(
        self, memory_ids: Sequence[str], after: RecordRef | None, limit: int
    ) -> list[RecordRef]:
        return self._refs(
            after,
            limit,
            lambda one: (
                one.memory_id in memory_ids
                and any(getattr(one, column) is not None for column in api.WHOLE)
            ),
        )

    async def of_actor(self, actor_id: str, after: RecordRef | None, limit: int) -> list[RecordRef]:
        return self._refs(after, limit, lambda one: one.actor_id == actor_id)

    async def sizes(self, memory_ids: Sequence[str]) -> dict[str, int]:
        return {memory_id: len(self._kept.of_memory(memory_id)) for memory_id in memory_ids}

    async def texts(self, actor_id: str, memory_ids: Sequence[str]) -> list[api.Texts]:
        refs = self._refs(None, None, lambda one: one.memory_id in memory_ids)
        return [self._texts(actor_id, ref) for ref in refs]

    async def next_texts(
        self, actor_id: str, memory_id: str, after: RecordRef | None, limit: int
    ) -> list[api.Texts]:
        refs = self._refs(after, limit, lambda one: one.memory_id == memory_id)
        return [self._texts(actor_id, ref) for ref in refs]

    def _texts(self, actor_id: str, ref: RecordRef) -> api.Texts:
        record = self._kept.records[ref.position]
        digests = [
            None if text is None else blake2b(text.encode(), digest_size=16).digest()
            for text in (record.old_memory, record.new_memory)
        ]
        return api.Texts(ref, record.actor_id == actor_id, *digests)

    async def with_ids(self, record_ids: Sequence[str]) -> list[RecordRef]:
        return self._refs(
            None,
            None,
            lambda one: (
                one.id in record_ids
                and any(getattr(one, column) is not None for column in api.WHOLE)
            ),
        )

    async def redact(self, columns: api.Columns, refs: Sequence[RecordRef]) -> int:
        lost = 0
        nothing: dict[str, Any] = dict.fromkeys(columns)
        for ref in refs:
            record = self._kept.records[ref.position]
            lost += any(getattr(record, column) is not None for column in columns)
            self._kept.records[ref.position] = replace(record, **nothing)
        return lost

    async def note(self, names: Sequence[api.Name], at: datetime) -> Sequence[str]:
        erased = self._kept.erased
        for digest in map(api.name_digest, names):
            erased[digest] = max(at, erased.get(digest, at))
        return ()

    async def disown(self, scope: str, memory_ids: Sequence[str]) -> None:
        for memory_id in memory_ids:
            owner = api.without_scope(self._kept.owners.pop(memory_id, None), scope)
            if owner is not None:
                self._kept.owners[memory_id] = owner
            for position, record in self._kept.of_memory(memory_id):
                self._kept.records[position] = replace(record, owner=owner)

    async def messages(self, session_scopes: Sequence[str]) -> int:
        return sum(len(self._kept.messages.get(scope, ())) for scope in session_scopes)

    async def remove_messages(self, session_scopes: Sequence[str]) -> int:
        return sum(len(self._kept.messages.pop(scope, ())) for scope in session_scopes)
