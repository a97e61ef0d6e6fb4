# mypy: disable-error-code=import-untyped
"""Restores a memory in mem0's vector store.

The history is written first. If the memory has changed meanwhile, that write is refused and nothing
else has changed. Then the vector store is updated. If that fails, restoring again does only what is
missing.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from hashlib import md5
from typing import Any, Final

from mem0.memory import main as mem0_main

from async_history._core.manager import HistoryManager
from async_history._core.records import HistoryRecord
from async_history._core.timeline import Moment, Restoration, append_restoration, restoration_of
from async_history._core.values import parse_time
from async_history.errors import InvalidInput
from async_history.mem0._operation import OperationStore

Payload = dict[str, Any]

_SCOPE: Final = ("user_id", "agent_id", "run_id")
_IDENTITY: Final = (*_SCOPE, "actor_id")
"""Fields that an update of a memory never changes (mem0ai 2.2, `memory/main.py`)."""


def check_metadata(metadata: object) -> Mapping[str, Any]:
    """Return the caller's metadata; an empty mapping for None.

    Raises:
        InvalidInput: it is not a mapping.
    """
    if metadata is not None and not isinstance(metadata, Mapping):
        raise InvalidInput(f"metadata must be a mapping, not {type(metadata).__name__}")
    return metadata or {}


@dataclass(frozen=True, slots=True)
class VectorRestore:
    """One restoration in the vector store.

    Attributes:
        plan: the state to restore, from the memory's history.
        history: the memory's records.
        held: the payload that the vector store has of the memory; None if it has none.
        embedding: the embedding of the restored text.
    """

    plan: Restoration
    history: Sequence[HistoryRecord]
    held: Payload | None
    embedding: Any

    @classmethod
    def prepare(
        cls, memory: Any, plan: Restoration, history: Sequence[HistoryRecord]
    ) -> "VectorRestore":
        """Query the vector store and the embedding model. It blocks, and may fail."""
        row = memory.vector_store.get(vector_id=plan.latest.memory_id)
        embedding = memory.embedding_model.embed(plan.wanted.new_memory, "update")
        return cls(plan, history, None if row is None else row.payload or {}, embedding)

    @property
    def changes_text(self) -> bool:
        """Whether the vector store has another text of the memory, or none."""
        return self.held is None or self.held.get("data") != self.plan.wanted.new_memory

    def payload(self, record: HistoryRecord, metadata: Mapping[str, Any]) -> Payload:
        """Return the new payload of the memory.

        An existing payload is kept, except for the text and what is derived from it. For a deleted
        memory, the history gives its creation time, actor and role; `metadata` gives the rest.
        """
        payload = deepcopy(self.held) if self.held is not None else self._known(record)
        kept = set(_IDENTITY) & set(self.held or ())
        payload.update((name, deepcopy(v)) for name, v in metadata.items() if name not in kept)
        text = self.plan.wanted.new_memory or ""
        payload["data"] = text
        payload["hash"] = md5(text.encode(), usedforsecurity=False).hexdigest()
        payload["updated_at"] = record.updated_at or record.created_at
        lemmatized = getattr(mem0_main, "lemmatize_for_bm25", None)  # since 2.0
        if lemmatized is not None:
            payload["text_lemmatized"] = lemmatized(text)
        return payload

    def _known(self, record: HistoryRecord) -> Payload:
        wanted = self.plan.wanted
        dates = (one.created_at for one in (wanted, *self.history))
        made = next((date for date in dates if date and parse_time(date)), record.created_at)
        known = {"created_at": made, "actor_id": wanted.actor_id, "role": wanted.role}
        return {name: value for name, value in known.items() if value is not None}

    def put(self, memory: Any, record: HistoryRecord, metadata: Mapping[str, Any]) -> Payload:
        """Write the payload to the vector store; return the ids that mem0 filters the memory by."""
        payload = self.payload(record, metadata)
        name = record.memory_id
        if self.held is None:
            memory.vector_store.insert(vectors=[self.embedding], ids=[name], payloads=[payload])
        else:
            memory.vector_store.update(vector_id=name, vector=self.embedding, payload=payload)
        return {name: payload[name] for name in _SCOPE if payload.get(name)}


async def restore_memory(
    memory: Any,
    manager: OperationStore,
    memory_id: str,
    to: Moment,
    metadata: Mapping[str, Any],
    actor_id: str | None,
    role: str | None,
    *,
    begin_change: Callable[[], None],
) -> HistoryRecord:
    """Restore a memory of an `AsyncMemory`; return the new record."""
    history = await manager.get_history(memory_id)
    plan = restoration_of(memory_id, history, to)
    restoring = await asyncio.to_thread(VectorRestore.prepare, memory, plan, history)
    begin_change()
    record = await append_restoration(manager, plan, actor_id, role)
    with _note_history_ahead():
        scope = await asyncio.to_thread(restoring.put, memory, record, metadata)
        if restoring.changes_text and _keeps_entities(memory):
            await memory._remove_memory_from_entity_store(memory_id, scope)
            await memory._link_entities_for_memory(memory_id, record.new_memory, scope)
    return record


def restore_memory_blocking(
    memory: Any,
    ask: Callable[[Callable[[HistoryManager], Awaitable[Any]]], Any],
    memory_id: str,
    to: Moment,
    metadata: Mapping[str, Any],
    actor_id: str | None,
    role: str | None,
    *,
    begin_change: Callable[[], None],
) -> HistoryRecord:
    """Restore a memory of a `Memory`; `ask` runs a function on its history manager."""
    history = ask(lambda manager: manager.get_history(memory_id))
    plan = restoration_of(memory_id, history, to)
    restoring = VectorRestore.prepare(memory, plan, history)
    begin_change()
    record: HistoryRecord = ask(lambda manager: append_restoration(manager, plan, actor_id, role))
    with _note_history_ahead():
        scope = restoring.put(memory, record, metadata)
        if restoring.changes_text and _keeps_entities(memory):
            memory._remove_memory_from_entity_store(memory_id, scope)
            memory._link_entities_for_memory(memory_id, record.new_memory, scope)
    return record


def _keeps_entities(memory: Any) -> bool:
    """Whether this mem0 links memories to the entities in their texts: since 2.0."""
    return hasattr(memory, "_link_entities_for_memory")


@contextmanager
def _note_history_ahead() -> Iterator[None]:
    """Add a note to an error of the vector store: the history is ahead of it."""
    try:
        yield
    except BaseException as error:
        error.add_note(
            "the history has the restored state, and the vector store may not: restore again to "
            "update it, which adds no second record"
        )
        raise
