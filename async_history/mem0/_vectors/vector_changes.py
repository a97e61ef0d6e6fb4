# mypy: disable-error-code=import-untyped
"""Changes of one memory in mem0's vector store, to follow the memory's history.

They are planned here and carried out by `change_vectors` of `_undoing/restore.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from hashlib import md5
from typing import Any, Final, Protocol

from mem0.memory import main as mem0_main

from async_history._core.reading.restoration import Restoration
from async_history._core.records.owners import SCOPES
from async_history._core.records.records import HistoryRecord
from async_history._core.records.values import parse_time
from async_history.blocking._sanitize import Sanitizer
from async_history.errors import OwnerConflict
from async_history.mem0._vectors.payloads import IN_COLUMNS, OWN_FIELDS, context_in, owner_in

Fields = dict[str, Any]
"""A payload, or a part of one."""

_FILTERED: Final = ("user_id", "agent_id", "run_id")
"""The scopes that mem0 filters memories by."""
_IDENTITY: Final = (*SCOPES, "actor_id")
"""Fields that an update of a memory never changes (mem0ai 2.2, `memory/main.py`)."""


def payload_held(memory: Any, memory_id: str) -> Fields | None:
    """Return a memory's payload in the vector store; None if it is not there. It blocks."""
    row = memory.vector_store.get(vector_id=memory_id)
    return None if row is None else row.payload or {}


def text_held(held: Fields | None) -> str | None:
    """Return the text of a payload, as the history would store it."""
    text = (held or {}).get("data")
    # Text that cannot be stored is logged when mem0 records it.
    return Sanitizer().text("data", text) if isinstance(text, str) else None


class VectorChange(Protocol):
    """A planned change of a memory in the vector store."""

    @property
    def memory_id(self) -> str: ...

    @property
    def text(self) -> str | None:
        """Its new text; None if it is deleted."""

    @property
    def changes_text(self) -> bool:
        """Whether the vector store has another text, or for a deletion any text."""

    @property
    def scope(self) -> Fields:
        """The ids that mem0 filters it by."""

    def put(self, memory: Any, record: HistoryRecord) -> None:
        """Change the vector store. `record` is the memory's latest one. It blocks."""


@dataclass(frozen=True, slots=True)
class VectorDeletion:
    """Removes a memory from the vector store.

    Attributes:
        held: the memory's payload in the vector store; None if there is none.
    """

    memory_id: str
    held: Fields | None

    @property
    def text(self) -> None:
        return None

    @property
    def changes_text(self) -> bool:
        return self.held is not None

    is_needed = changes_text

    @property
    def scope(self) -> Fields:
        return _scope_in(self.held or {})

    def put(self, memory: Any, record: HistoryRecord) -> None:
        if self.held is not None:
            memory.vector_store.delete(vector_id=self.memory_id)


@dataclass(frozen=True, slots=True)
class VectorRestore:
    """Gives a memory the state of a record in the vector store.

    Attributes:
        plan: the state to restore, with the owner and the metadata after it.
        held: the memory's payload in the vector store; None if there is none.
        fields: the memory's new payload, without its text and values derived from it.
        embedding: the embedding of the restored text, when it is computed.
    """

    plan: Restoration
    held: Fields | None
    fields: Fields
    embedding: Any = None

    @classmethod
    def of(
        cls,
        plan: Restoration,
        history: Sequence[HistoryRecord],
        held: Fields | None,
        metadata: Mapping[str, Any],
    ) -> "VectorRestore":
        """Return the restoration of a payload. The embedding is still missing.

        Raises:
            OwnerConflict: the memory is deleted, and `metadata` gives it another owner.
        """
        fields = _fields(plan.wanted, history, held, metadata)
        return cls(_with_details(plan, fields, held, metadata), held, fields)

    def with_embedding(self, embed: Callable[[str], Any]) -> "VectorRestore":
        """Return the same with the embedding of the restored text. It blocks, and may fail."""
        return replace(self, embedding=embed(self.plan.wanted_text))

    @property
    def memory_id(self) -> str:
        return self.plan.latest.memory_id

    @property
    def text(self) -> str:
        return self.plan.wanted_text

    @property
    def changes_text(self) -> bool:
        return self.held is None or text_held(self.held) != self.text

    @property
    def is_needed(self) -> bool:
        """Whether the vector store has another text or other metadata, or lacks the memory."""
        if self.held is None or self.changes_text:
            return True
        return _metadata_in(self.memory_id, self.held) != _metadata_in(self.memory_id, self.fields)

    @property
    def scope(self) -> Fields:
        return _scope_in(self.fields)

    def payload(self, record: HistoryRecord) -> Fields:
        """Return the new payload of the memory."""
        text = self.text
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

    def put(self, memory: Any, record: HistoryRecord) -> None:
        payload, name = self.payload(record), self.memory_id
        if self.held is None:
            memory.vector_store.insert(vectors=[self.embedding], ids=[name], payloads=[payload])
        else:
            memory.vector_store.update(vector_id=name, vector=self.embedding, payload=payload)


def embed_with(memory: Any) -> Callable[[str], Any]:
    """Return a function that computes the embedding of one text. It blocks."""
    return lambda text: memory.embedding_model.embed(text, "update")


def _scope_in(payload: Mapping[str, Any]) -> Fields:
    return {name: payload[name] for name in _FILTERED if payload.get(name)}


def _metadata_in(memory_id: str, payload: Fields) -> Mapping[str, Any]:
    """Return the metadata in a payload, as the history would store it."""
    sanitizer = Sanitizer()
    return context_in(memory_id, payload, owner_in(payload, sanitizer), payload, sanitizer)


def _fields(
    wanted: HistoryRecord,
    history: Sequence[HistoryRecord],
    held: Fields | None,
    metadata: Mapping[str, Any],
) -> Fields:
    """Return the restored payload, without the text and values derived from it.

    The metadata is restored too. If the history does not know it, an existing payload's metadata is
    kept, and a deleted memory gets the metadata of the nearest record that has it.
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
    """Return the plan with the owner and the metadata of the new payload."""
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
