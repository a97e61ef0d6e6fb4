"""A memory's owner and metadata, from the payloads between mem0 and its vector store.

mem0 passes neither to its history. But just before each record it writes the memory's payload to
the vector store, or reads it there. So during an operation it gets a `WatchedStore`, which notes
the payloads.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from async_history._core.records.json_object import JsonObject
from async_history._core.records.owners import SCOPES, Owner, new_owner
from async_history.blocking._sanitize import Sanitizer
from async_history.mem0._turns.new_memories import NewMemories

Payload = Mapping[str, Any]

OWN_FIELDS: Final = frozenset(("data", "hash", "created_at", "updated_at", "text_lemmatized"))
"""Fields that mem0 itself adds to a payload for the memory's text and times (mem0ai 1.0 to 2.2)."""
IN_COLUMNS: Final = ("actor_id", "role")
"""Fields of a payload for which a record has columns."""


class WatchedStore:
    """A vector store during an operation: it notes payloads that are written and read.

    Args:
        store: the vector store, which does the work.
        payloads: the last payload of each memory, by its id.
        require_not_erased: raises if a memory, by its id, may no longer get a payload.
        new: notified of each memory that is about to be inserted.
    """

    def __init__(
        self,
        store: Any,
        payloads: dict[str, Payload],
        require_not_erased: Callable[[str, Payload], None],
        new: NewMemories,
    ) -> None:
        self.__dict__.update(
            _store=store, _payloads=payloads, _require_not_erased=require_not_erased, _new=new
        )

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # mem0's telemetry reports it, and a user's code may ask for it
        return type(self._store)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_store"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._store, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._store, name)

    def insert(self, *arguments: Any, **options: Any) -> Any:
        self._note_inserted(options)
        return self._store.insert(*arguments, **options)

    async def ainsert(self, *arguments: Any, **options: Any) -> Any:
        self._note_inserted(options)
        return await self._store.ainsert(*arguments, **options)

    def update(self, *arguments: Any, **options: Any) -> Any:
        self._note_updated(options)
        return self._store.update(*arguments, **options)

    async def aupdate(self, *arguments: Any, **options: Any) -> Any:
        self._note_updated(options)
        return await self._store.aupdate(*arguments, **options)

    def get(self, *arguments: Any, **options: Any) -> Any:
        row = self._store.get(*arguments, **options)
        self._note(options, getattr(row, "payload", None))
        return row

    async def aget(self, *arguments: Any, **options: Any) -> Any:
        row = await self._store.aget(*arguments, **options)
        self._note(options, getattr(row, "payload", None))
        return row

    def _note_inserted(self, options: Mapping[str, Any]) -> None:
        ids, payloads = options.get("ids"), options.get("payloads")
        if ids is not None and payloads is not None:
            for memory_id, payload in zip(ids, payloads, strict=False):
                self._require_not_erased(str(memory_id), payload)
                self._payloads[str(memory_id)] = payload
                self._new.begin(str(memory_id))

    def _note_updated(self, options: Mapping[str, Any]) -> None:
        payload = options.get("payload")
        if isinstance(payload, Mapping):
            self._require_not_erased(str(options.get("vector_id")), payload)
        self._note(options, payload)

    def _note(self, options: Mapping[str, Any], payload: object) -> None:
        if isinstance(payload, Mapping):
            self._payloads[str(options.get("vector_id"))] = payload


def unwatched(store: Any) -> Any:
    """Return the vector store itself."""
    return vars(store)["_store"] if type(store) is WatchedStore else store


def owner_in(payload: Payload, sanitizer: Sanitizer) -> Owner | None:
    """Return a memory's owner from its payload; None if there is none."""
    given: dict[str, Any] = {}
    for name in SCOPES:
        value = payload.get(name)
        if value is not None and (text := sanitizer.text(name, value)):
            given[name] = text
    return new_owner(given)


def context_in(
    memory_id: str,
    payload: Payload,
    owner: Owner | None,
    columns: Mapping[str, Any],
    sanitizer: Sanitizer,
) -> JsonObject:
    """Return a memory's metadata: its payload without mem0's own fields and the record's columns.

    Args:
        owner: its owner by the payload. A scope that is not text is kept in the context too.
        columns: the columns of its record.
    """
    known: dict[str, Any] = {"id": memory_id, **({} if owner is None else owner.as_dict())}
    known |= {name: columns.get(name) for name in IN_COLUMNS}
    metadata = {
        name: value
        for name, value in payload.items()
        if name not in OWN_FIELDS and not (isinstance(value, str) and value == known.get(name))
    }
    return sanitizer.json("metadata", metadata)


def with_details(
    columns: dict[str, Any], payloads: dict[str, Payload], sanitizer: Sanitizer
) -> dict[str, Any]:
    """Return a record's columns, with owner and context from its memory's noted payload.

    For a DELETE, the context is the metadata that the memory had.
    """
    memory_id = columns["memory_id"]
    payload = payloads.pop(memory_id, None)
    if payload is None:
        return columns
    owner = owner_in(payload, sanitizer)
    context = context_in(memory_id, payload, owner, columns, sanitizer)
    return {**columns, "owner": owner, "context": context}
