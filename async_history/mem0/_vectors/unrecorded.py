"""A text that only the vector store has: others wrote it without a record."""

from collections.abc import Mapping, Sequence
from typing import Any

from async_history._core.records.new_records import new_id
from async_history._core.records.records import Event, HistoryRecord, is_alive, made_at
from async_history._core.records.values import now_text, parse_time
from async_history.blocking._sanitize import Sanitizer
from async_history.mem0._vectors.payloads import context_in, owner_in
from async_history.mem0._vectors.vector_changes import Fields, text_held


def unrecorded_text(history: Sequence[HistoryRecord], held: Fields | None) -> HistoryRecord | None:
    """Return a record of the vector store's text; None if the history has that text.

    Others have written it without a record. Its time is the payload's, if that is later than the
    latest record, otherwise now. If a text of the history is unknown, for example after an erasure,
    the vector store may have that text, which must not be recorded again.
    """
    text = text_held(held)
    if text is None or held is None or not history:
        return None
    if any(text in (one.old_memory, one.new_memory) for one in history):
        return None
    if any(is_alive(one) and one.new_memory is None for one in history):
        return None
    latest = history[-1]
    changed, before = parse_time(str(held.get("updated_at"))), latest.occurred_at
    is_later = changed is not None and (before is None or changed > before)
    when = changed.isoformat() if changed is not None and is_later else now_text()
    is_update = is_alive(latest)
    return HistoryRecord(
        id=new_id(),
        memory_id=latest.memory_id,
        old_memory=latest.new_memory if is_update else None,
        new_memory=text,
        event=Event.UPDATE if is_update else Event.ADD,
        created_at=made_at(latest) if is_update else when,
        updated_at=when if is_update else None,
        **details_in(latest.memory_id, held, latest),
    )


def details_in(memory_id: str, held: Fields, latest: HistoryRecord | None) -> Mapping[str, Any]:
    """Return the metadata of a payload, and the owner if the history does not know it."""
    sanitizer = Sanitizer()
    owner = owner_in(held, sanitizer)
    known = None if latest is None else latest.owner
    return {
        "owner": owner if known is None else known,
        "context": context_in(memory_id, held, owner, held, sanitizer),
    }
