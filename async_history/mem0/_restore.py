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
from dataclasses import dataclass, replace
from hashlib import md5
from typing import Any, Final

from mem0.memory import main as mem0_main

from async_history._core.manager import HistoryManager
from async_history._core.owners import SCOPES
from async_history._core.records import HistoryRecord
from async_history._core.timeline import Moment, Restoration, append_restoration, restoration_of
from async_history._core.values import parse_time
from async_history.blocking._sanitize import Sanitizer
from async_history.errors import InvalidInput, OwnerConflict
from async_history.mem0._operation import OperationStore
from async_history.mem0._payloads import IN_COLUMNS, OWN_FIELDS, context_in, owner_in

Fields = dict[str, Any]
"""A payload, or a part of one."""

_FILTERED: Final = ("user_id", "agent_id", "run_id")
"""The scopes that mem0 filters memories by."""
_IDENTITY: Final = (*SCOPES, "actor_id")
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
        plan: the state to restore, with the owner and the metadata that the memory has then.
        held: the payload that the vector store has of the memory; None if it has none.
        fields: the memory's new payload, but for its text and what is derived from it.
        embedding: the embedding of the restored text.
    """

    plan: Restoration
    held: Fields | None
    fields: Fields
    embedding: Any

    @classmethod
    def prepare(
        cls,
        memory: Any,
        plan: Restoration,
        history: Sequence[HistoryRecord],
        metadata: Mapping[str, Any],
    ) -> "VectorRestore":
        """Query the vector store and the embedding model. It blocks, and may fail.

        Raises:
            OwnerConflict: the memory is deleted, and `metadata` gives it another owner.
        """
        row = memory.vector_store.get(vector_id=plan.latest.memory_id)
        held = None if row is None else row.payload or {}
        fields = _fields(plan.wanted, history, held, metadata)
        with_details = _with_details(plan, fields, held, metadata)
        embedding = memory.embedding_model.embed(plan.wanted.new_memory, "update")
        return cls(with_details, held, fields, embedding)

    @property
    def changes_text(self) -> bool:
        """Whether the vector store has another text of the memory, or none."""
        return self.held is None or self.held.get("data") != self.plan.wanted.new_memory

    def payload(self, record: HistoryRecord) -> Fields:
        """Return the new payload of the memory."""
        text = self.plan.wanted.new_memory or ""
        payload = {
            "created_at": record.created_at,
            **self.fields,
            "data": text,
            "hash": md5(text.encode(), usedforsecurity=False).hexdigest(),
            "updated_at": record.updated_at or record.created_at,
        }
        lemmatized = getattr(mem0_main, "lemmatize_for_bm25", None)  # since 2.0
        if lemmatized is not None:
            payload["text_lemmatized"] = lemmatized(text)
        return payload

    def put(self, memory: Any, record: HistoryRecord) -> Fields:
        """Write the payload to the vector store; return the ids that mem0 filters the memory by."""
        payload = self.payload(record)
        name = record.memory_id
        if self.held is None:
            memory.vector_store.insert(vectors=[self.embedding], ids=[name], payloads=[payload])
        else:
            memory.vector_store.update(vector_id=name, vector=self.embedding, payload=payload)
        return {name: payload[name] for name in _FILTERED if payload.get(name)}


def _fields(
    wanted: HistoryRecord,
    history: Sequence[HistoryRecord],
    held: Fields | None,
    metadata: Mapping[str, Any],
) -> Fields:
    """Return the restored payload, but for the text and what is derived from it.

    Metadata is as it was then. Where the history does not know, an existing payload's is kept, and
    a deleted memory has the metadata of the nearest record that knows it.
    """
    if held is None:
        context = _nearest_context(wanted, history)
        fields = {**_known(wanted, history), **dict(context or {})}
    elif wanted.context is None:
        fields = deepcopy(held)
    else:
        kept = {*OWN_FIELDS, *_IDENTITY, *IN_COLUMNS, "id"} & set(held)
        fields = {name: value for name, value in wanted.context.items() if name not in kept}
        fields.update((name, deepcopy(held[name])) for name in kept)
    unchanged = set(_IDENTITY) & set(held or ())
    fields.update((name, deepcopy(v)) for name, v in metadata.items() if name not in unchanged)
    return fields


def _known(wanted: HistoryRecord, history: Sequence[HistoryRecord]) -> Fields:
    dates = (one.created_at for one in (wanted, *history))
    made = next((date for date in dates if date and parse_time(date)), None)
    known = {"created_at": made, "actor_id": wanted.actor_id, "role": wanted.role}
    known |= {} if wanted.owner is None else wanted.owner.as_dict()
    return {name: value for name, value in known.items() if value is not None}


def _nearest_context(
    wanted: HistoryRecord, history: Sequence[HistoryRecord]
) -> Mapping[str, Any] | None:
    place = next(n for n, one in enumerate(history) if one.id == wanted.id)
    nearest = (*history[place::-1], *history[place:])
    return next((one.context for one in nearest if one.context is not None), None)


def _with_details(
    plan: Restoration, fields: Fields, held: Fields | None, metadata: Mapping[str, Any]
) -> Restoration:
    """Return what to restore, with the owner and the metadata of the new payload."""
    memory_id, known = plan.latest.memory_id, plan.latest.owner
    with Sanitizer() as sanitizer:
        owner = owner_in(fields, sanitizer)
        context = context_in(memory_id, fields, owner, fields, sanitizer)
    if known is not None and owner is not None and held is None:
        differing = known.contradictions(owner)
        if differing:
            raise OwnerConflict(memory_id, differing)
    if metadata or plan.is_needed:
        plan = replace(plan, wanted=replace(plan.wanted, context=context))
    return replace(plan, owner=owner if known is None else None)


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
    restoring = await asyncio.to_thread(VectorRestore.prepare, memory, plan, history, metadata)
    begin_change()
    record = await append_restoration(manager, restoring.plan, actor_id, role)
    with _note_history_ahead():
        scope = await asyncio.to_thread(restoring.put, memory, record)
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
    restoring = VectorRestore.prepare(memory, plan, history, metadata)
    begin_change()
    record: HistoryRecord = ask(
        lambda manager: append_restoration(manager, restoring.plan, actor_id, role)
    )
    with _note_history_ahead():
        scope = restoring.put(memory, record)
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
