"""What mem0 hands to its history, as this library can store it; and back.

A memory in the vector store always gets its history: what the core refuses is replaced here.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from async_history.records import COLUMNS, Message, parse_time

_log = logging.getLogger("async_history")

_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")
_TEXTS: Final = ("memory_id", "old_memory", "new_memory", "actor_id", "role")
_warned: set[str] = set()


def storable_text(text: str) -> str:
    """Return a text with what no database holds (NUL, lone surrogates) replaced by U+FFFD."""
    if text.isascii() and "\0" not in text:
        return text
    replaced = _UNSTORABLE.sub("\ufffd", text)
    if replaced != text:
        _warn_once("text holds NUL or lone surrogates, which no database can; U+FFFD stands for it")
    return replaced


def record_to_store(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return one change as the core takes it, from what mem0's pipeline notes."""
    record = {name: given[name] for name in COLUMNS if given.get(name) is not None}
    for name in _TEXTS:
        if name in record:
            record[name] = storable_text(str(record[name]))
    for name in ("created_at", "updated_at"):
        value = record.get(name)
        if isinstance(value, str) and (parse_time(value) is None or "-" not in value):
            _warn_once(f"{name} of a memory is no ISO 8601 time: the history keeps none or now")
            del record[name]
    return record


def completed(
    records: Iterable[Mapping[str, Any]],
    metadata: Mapping[str, Any],
    messages: Sequence[Any],
) -> list[dict[str, Any]]:
    """Return records of a batch with the actor, role and time that mem0 leaves out.

    The operation knows them from its metadata, or where all its messages agree.
    """
    known = {
        "actor_id": metadata.get("actor_id") or _in_all(messages, "name"),
        "role": metadata.get("role") or _in_all(messages, "role"),
    }
    return [
        {**known, "updated_at": given.get("created_at"), **_present(given)} for given in records
    ]


def _present(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def _in_all(messages: Sequence[Any], name: str) -> str | None:
    """Return what all messages but the system's have under a name, if it is one thing."""
    spoken = [m for m in messages if isinstance(m, Mapping) and m.get("role") != "system"]
    values = {str(message.get(name) or "") for message in spoken}
    return (values.pop() or None) if len(values) == 1 else None


def message_to_store(given: Mapping[str, Any]) -> Message:
    """Return one message as the core takes it: content that is no text as JSON."""
    content = given.get("content")
    is_json = content is not None and not isinstance(content, str)
    text = json.dumps(content, ensure_ascii=False, default=str) if is_json else content
    return Message(
        role=_text_or_none(given.get("role")),
        content=_text_or_none(text),
        name=_text_or_none(given.get("name")),
        is_json=is_json,
    )


def message_as_given(message: Message) -> dict[str, Any]:
    """Return one message as mem0 gave it."""
    given = message.as_dict()
    if message.is_json and message.content is not None:
        given["content"] = json.loads(message.content)
    return given


def _text_or_none(value: object) -> str | None:
    return None if value is None else storable_text(str(value))


def _warn_once(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        _log.warning("%s (said once)", text)
