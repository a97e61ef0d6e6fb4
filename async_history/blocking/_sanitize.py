"""What mem0 hands to its history, as this library can store it; and back.

A memory in the vector store always gets its history: what the core refuses is replaced here, and
said.
"""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import Any, Final

from async_history._core.records import (
    HistoryRecord,
    Message,
    now_text,
    parse_time,
    plain,
    storable_record,
)
from async_history.errors import InvalidInput

_log = logging.getLogger("async_history")


class Sanitizer:
    """Makes what mem0 hands in storable, and says at the end, once, what had to be changed."""

    def __init__(self) -> None:
        self._changed: dict[str, None] = {}

    def __enter__(self) -> "Sanitizer":
        return self

    def __exit__(self, *exc: object) -> None:
        if self._changed:
            _log.warning("recorded with changes: %s", "; ".join(self._changed))

    def record(self, given: Mapping[str, Any], now: str | None = None) -> HistoryRecord:
        """Return a new history record; its id is ours to give, as in mem0.

        Raises:
            InvalidInput: it does not say which memory changed, or how.
        """
        return storable_record(self.columns(given), now or now_text())

    def records(self, given: Iterable[Mapping[str, Any]]) -> Iterator[HistoryRecord]:
        """Yield new history records, in order.

        Raises:
            InvalidInput: as `record`, with the index of the one that can't be used.
        """
        now = now_text()
        for index, each in enumerate(given):
            try:
                yield self.record(each, now)
            except InvalidInput as error:
                raise InvalidInput(f"record {index}: {error}") from error

    def columns(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return a history record's columns but its id, as `storable_record` takes them."""
        record = {name: self.text(name, given.get(name)) for name in _RECORD_TEXTS}
        record.update((name, self.time(name, given.get(name))) for name in _RECORD_TIMES)
        return record | {
            "event": plain(given.get("event")),
            "is_deleted": bool(given.get("is_deleted", 0)),
        }

    def message(self, given: Mapping[str, Any]) -> Message:
        """Return a message: content that is no text as JSON."""
        content = given.get("content")
        is_json = content is not None and not isinstance(content, str)
        return Message(
            self.text("role", given.get("role")),
            self.text("content", _as_json(content) if is_json else content),
            self.text("name", given.get("name")),
            is_json=is_json,
        )

    def text(self, name: str, value: Any) -> Any:
        """Return a value as a column of text keeps it, None for None.

        A number becomes text, as in SQLite; a member of an enum its value; a list or a mapping
        JSON; anything else what `str` makes of it: an id may be a UUID.
        """
        if value is None or (type(value) is str and value.isascii() and "\0" not in value):
            return value
        if isinstance(value, str):
            mended, count = _UNSTORABLE.subn("\ufffd", plain(value))
            if count:
                self._changed[f"{name} had characters that no database holds, now U+FFFD"] = None
            return mended
        if isinstance(value, int):
            return str(int(value))
        if isinstance(value, float):
            return str(float(value))
        if isinstance(value, Enum):
            return self.text(name, value.value)
        self._changed[f"{name} was no text, and is kept as one: {value!r:.60}"] = None
        is_json = isinstance(value, Mapping | list | tuple)
        return self.text(name, _as_json(value) if is_json else str(value))

    def time(self, name: str, value: Any) -> str | None:
        """Return a time as text, as it is kept; None for what is not a time."""
        if value is None:
            return None
        if isinstance(value, datetime):
            return value.isoformat()
        if isinstance(value, str):
            text: str = plain(value)
            is_time = "-" in text and parse_time(text) is not None
            if is_time and not _UNSTORABLE.search(text):
                return text
        self._changed[f"{name} was no time, and is left out: {value!r:.60}"] = None
        return None


_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")
_RECORD_TEXTS: Final = ("memory_id", "old_memory", "new_memory", "actor_id", "role")
_RECORD_TIMES: Final = ("created_at", "updated_at")


def _as_json(content: object) -> str:
    try:
        return json.dumps(content, ensure_ascii=False, default=str)
    except (TypeError, ValueError):  # keys that JSON has not, a list inside itself
        return json.dumps(str(content), ensure_ascii=False)


def completed(
    records: Iterable[Mapping[str, Any]],
    metadata: Mapping[str, Any],
    messages: Sequence[Any],
) -> list[dict[str, Any]]:
    """Return records of a batch with the actor, role and time that mem0 leaves out.

    The operation knows them from its metadata, or where all its messages agree.
    """
    known = {
        "actor_id": _name_in(metadata, "actor_id") or _in_all(messages, "name"),
        "role": _name_in(metadata, "role") or _in_all(messages, "role"),
    }
    return [
        {**known, "updated_at": given.get("created_at"), **_present(given)} for given in records
    ]


def _present(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def _in_all(messages: Sequence[Any], name: str) -> str | None:
    """Return what all messages but the system's have under a name, if it is one thing."""
    spoken = [m for m in messages if isinstance(m, Mapping) and m.get("role") != "system"]
    values = {_name_in(message, name) for message in spoken}
    return values.pop() if len(values) == 1 else None


def _name_in(given: Mapping[str, Any], key: str) -> str | None:
    """Return the text under a key: a user's metadata may hold anything there."""
    value = given.get(key)
    return plain(value) or None if isinstance(value, str) else None


def message_as_given(message: Message) -> dict[str, Any]:
    """Return one message as mem0 gave it."""
    given = message.as_dict()
    if message.is_json and message.content is not None:
        given["content"] = json.loads(message.content)
    return given
