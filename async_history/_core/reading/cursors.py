"""Cursors: positions in the order of records, as opaque text."""

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from async_history._core.records.values import check_text
from async_history._core.validation import shown
from async_history.errors import InvalidInput

T = TypeVar("T")


def not_a_cursor(text: object, of: str) -> InvalidInput:
    """Return the error for a text that is not a cursor of `of`."""
    return InvalidInput(f"{shown(text)} is not a cursor of {of}; use its `cursor` as it came")


@dataclass(frozen=True, slots=True)
class CursorCodec:
    """Follower cursors of a database: opaque text that begins with its kind.

    `of` names what they are cursors of, in messages.
    """

    kind: str
    of: str

    def text(self, *parts: str | int | None) -> str:
        """Return the parts of a position as text for callers."""
        return cursor_text(self.kind, *parts)

    def parse(self, text: str, read: Callable[[Sequence[str | int | None]], T | None]) -> T:
        """Return the position that `read` makes from a text's parts.

        Raises:
            InvalidInput: the text is not a cursor of this kind.
        """
        kind, *parts = cursor_parts(text) or (None,)
        position = read(parts) if kind == self.kind else None
        if position is None:
            raise not_a_cursor(text, self.of)
        return position


def cursor_text(*parts: str | int | None) -> str:
    """Return the parts of a position as opaque text for callers."""
    text = json.dumps(parts, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def cursor_parts(text: str) -> Sequence[str | int | None]:
    """Return the arguments of `cursor_text`; nothing if the text cannot come from it.

    Clients send cursors back, so a text may be anything. Returned values are safe for every
    database: integers of 64 bits, text without NUL or lone surrogates.
    """
    try:
        parts = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        if isinstance(parts, list) and all(map(_is_part, parts)) and cursor_text(*parts) == text:
            return parts
    except (ValueError, TypeError, RecursionError):
        pass
    return ()


def _is_part(part: object) -> bool:
    if isinstance(part, str):
        check_text("cursor", part)
    return part is None or isinstance(part, str) or is_position(part)


def id_text(record_id: object) -> str:
    """Return a record's id as a cursor holds it.

    In a file of another program an id may be NULL, a number or bytes: it is as SQLite's `quote`
    writes it.
    """
    if isinstance(record_id, str):
        return record_id
    if isinstance(record_id, bytes):
        return f"X'{record_id.hex().upper()}'"
    return "NULL" if record_id is None else str(record_id)


def is_position(value: object) -> bool:
    """Return whether a value is a whole number that a database's integer column can hold."""
    return type(value) is int and -(1 << 63) <= value < 1 << 63


@dataclass(frozen=True, slots=True)
class Cursor:
    """A position in the order of records: after the record `id`, whose number is `position`."""

    position: int
    id: str

    def __str__(self) -> str:
        return cursor_text(self.position, self.id)

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Parse a cursor from its text.

        Raises:
            InvalidInput: the text is not a page's cursor.
        """
        match cursor_parts(text):
            case [int(position), str(record_id)]:
                return cls(position, record_id)
        raise not_a_cursor(text, "a page")
