"""Conversion of mem0's values to values that can be stored, and back.

A change of the vector store must always get its record. So values that the core would reject are
replaced here, with one warning.
"""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import Any, Final

from async_history._core.records.json_object import (
    MOST_LEVELS,
    JsonObject,
    is_deeper,
    json_object,
)
from async_history._core.records.messages import Message
from async_history._core.records.new_records import storable_record
from async_history._core.records.records import DETAILS, HistoryRecord
from async_history._core.records.values import now_text, parse_time, plain
from async_history._core.validation import shown
from async_history.errors import InvalidInput

_log = logging.getLogger("async_history")


class Sanitizer:
    """Converts mem0's values to storable ones; logs one warning about all replacements."""

    def __init__(self) -> None:
        self._changed: dict[str, None] = {}

    def __enter__(self) -> "Sanitizer":
        return self

    def __exit__(self, *exc: object) -> None:
        if self._changed:
            _log.warning("recorded with changes: %s", "; ".join(self._changed))

    def record(self, given: Mapping[str, Any], now: str | None = None) -> HistoryRecord:
        """Return a new history record, with a new id, as in mem0.

        Raises:
            InvalidInput: the memory id or the event is missing.
        """
        return storable_record(self.columns(given), now or now_text())

    def records(self, given: Iterable[Mapping[str, Any]]) -> Iterator[HistoryRecord]:
        """Yield new history records, in order.

        Raises:
            InvalidInput: as `record`, with the index of the record.
        """
        now = now_text()
        for index, each in enumerate(given):
            try:
                yield self.record(each, now)
            except InvalidInput as error:
                raise InvalidInput(f"record {index}: {error}") from error

    def columns(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return a record's columns except the id, as `storable_record` takes them.

        Owner, context and cause, which mem0 does not give, are not changed.
        """
        get = given.get
        columns: dict[str, Any] = {}
        for name in _RECORD_TEXTS:
            value = get(name)
            # Usually a text that needs no change: calling `text` takes longer than this check.
            is_plain = type(value) is str and value.isascii() and "\0" not in value
            columns[name] = value if value is None or is_plain else self.text(name, value)
        for name in _RECORD_TIMES:
            value = get(name)
            columns[name] = None if value is None else self.time(name, value)
        columns["event"] = plain(get("event"))
        columns["is_deleted"] = bool(get("is_deleted", 0))
        for name in DETAILS:
            columns[name] = get(name)
        return columns

    def json(self, name: str, value: Mapping[Any, Any]) -> JsonObject:
        """Return a mapping as a JSON object; values that JSON cannot represent become text."""
        try:
            exact = json_object(name, value)
        except InvalidInput:
            pass
        else:
            # The search takes three times as long as the encoding, so check first.
            if "\\u0000" not in exact.text or not _NUL_IN_JSON.search(exact.text):
                return exact
        self._changed[f"{name} had values that JSON or a database can't hold, stored as text"] = (
            None
        )
        return json_object(
            name, {_clean(_text_of(key)): _plain_json(v) for key, v in value.items()}
        )

    def message(self, given: Mapping[str, Any]) -> Message:
        """Return a message; content that is not text becomes JSON."""
        content = given.get("content")
        is_json = content is not None and not isinstance(content, str)
        return Message(
            self.text("role", given.get("role")),
            self.text("content", _as_json(content) if is_json else content),
            self.text("name", given.get("name")),
            is_json=is_json,
        )

    def text(self, name: str, value: Any) -> Any:
        """Return a value as text for a column; None for None.

        A number becomes text, as in SQLite; an enum member becomes its value; a list or a mapping
        becomes JSON; any other value is converted by `str`: an id may be a UUID.
        """
        if value is None or (type(value) is str and value.isascii() and "\0" not in value):
            return value
        if isinstance(value, str):
            replaced, count = _UNSTORABLE.subn("\ufffd", plain(value))
            if count:
                self._changed[
                    f"{name} had characters that no database can store, replaced by U+FFFD"
                ] = None
            return replaced
        if isinstance(value, int):
            return _text_of(int(value))
        if isinstance(value, float):
            return str(float(value))
        if isinstance(value, Enum):
            return self.text(name, value.value)
        self._changed[f"{name} was not text, and is stored as text: {shown(value)}"] = None
        is_json = isinstance(value, Mapping | list | tuple)
        return self.text(name, _as_json(value) if is_json else _text_of(value))

    def time(self, name: str, value: Any) -> str | None:
        """Return a time as text; None for a value that is not a valid time."""
        if value is None:
            return None
        if isinstance(value, datetime):
            value = value.isoformat()  # of a subclass, it may not be a time: pandas' NaT
        if isinstance(value, str):
            text: str = plain(value)
            is_time = "-" in text and parse_time(text) is not None
            # The search takes three times as long as the other check.
            if is_time and ((text.isascii() and "\0" not in text) or not _UNSTORABLE.search(text)):
                return text
        self._changed[f"{name} was not a valid time, and is left out: {shown(value)}"] = None
        return None


_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")
_NUL_IN_JSON: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_RECORD_TEXTS: Final = ("memory_id", "old_memory", "new_memory", "actor_id", "role")
_RECORD_TIMES: Final = ("created_at", "updated_at")


def _text_of(value: object) -> str:
    """Return a value's text; a number of more than 4,300 digits is in hexadecimal."""
    try:
        return str(value)
    except Exception:  # a class's own __str__ may raise anything
        return hex(value) if isinstance(value, int) else f"{type(value).__name__} without a text"


def _as_json(content: object) -> str:
    try:
        return json.dumps(content, ensure_ascii=False, default=_text_of)
    except (TypeError, ValueError, RecursionError):  # invalid keys, a cycle, a long number
        return json.dumps(_text_of(content), ensure_ascii=False)


def _plain_json(value: object) -> Any:
    """Return a value after a JSON round trip, without characters that cannot be stored.

    Values nested too deep are returned as text.
    """
    try:
        try:
            text = json.dumps(value, default=_text_of)
        except (TypeError, ValueError):  # as in _as_json
            return _clean(_text_of(value))
        if is_deeper(text, MOST_LEVELS - 1):
            return _clean(text)
        return _clean(json.loads(text, parse_constant=str))
    except RecursionError:
        return f"a {type(value).__name__} that is nested too deep to be read"


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return _UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_clean(each) for each in value]
    if isinstance(value, dict):
        return {_clean(key): _clean(each) for key, each in value.items()}
    return value


def complete_records(
    records: Iterable[Mapping[str, Any]],
    metadata: Mapping[str, Any],
    messages: Sequence[Any],
) -> list[dict[str, Any]]:
    """Add the actor, role and time, which mem0 omits, to the records of a batch.

    They come from the operation's metadata, or from its messages if all of them agree.
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
    """Return the value that all messages except system messages have under a name, or None."""
    spoken = [m for m in messages if isinstance(m, Mapping) and m.get("role") != "system"]
    values = {_name_in(message, name) for message in spoken}
    return values.pop() if len(values) == 1 else None


def _name_in(given: Mapping[str, Any], key: str) -> str | None:
    """Return the text under a key, or None: a user's metadata may have any value there."""
    value = given.get(key)
    return plain(value) or None if isinstance(value, str) else None


def message_as_given(message: Message) -> dict[str, Any]:
    """Return a message in the form that mem0 gave it."""
    given = message.as_dict()
    if message.is_json and message.content is not None:
        given["content"] = json.loads(message.content)
    return given
