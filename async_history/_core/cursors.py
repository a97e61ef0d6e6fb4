"""Cursors: places in the order of records, as opaque text."""

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from async_history._core.validation import shown
from async_history._core.values import check_text
from async_history.errors import InvalidInput

T = TypeVar("T")


def not_a_cursor(text: object, of: str) -> InvalidInput:
    """Return the error for a text that is not a cursor of something."""
    return InvalidInput(f"{shown(text)} is not a cursor of {of}; use its `cursor` as it came")


@dataclass(frozen=True, slots=True)
class CursorCodec:
    """A database's cursors of followers: opaque text that begins with its kind.

    `of` says what they are cursors of, for people.
    """

    kind: str
    of: str

    def text(self, *parts: str | int | None) -> str:
        """Return a place's parts as the text that callers keep."""
        return cursor_text(self.kind, *parts)

    def place(self, text: str, read: Callable[[Sequence[str | int | None]], T | None]) -> T:
        """Return the place of a text, which `read` makes of its parts; None where it can't.

        Raises:
            InvalidInput: it is not a cursor of this kind.
        """
        kind, *parts = cursor_parts(text) or (None,)
        place = read(parts) if kind == self.kind else None
        if place is None:
            raise not_a_cursor(text, self.of)
        return place


def cursor_text(*parts: str | int | None) -> str:
    """Return a place's parts as the opaque text that callers keep."""
    text = json.dumps(parts, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def cursor_parts(text: str) -> Sequence[str | int | None]:
    """Return what `cursor_text` was given; nothing where the text can't be of its making.

    Clients hand cursors back, so a text may be anything. What is returned every database can take:
    integers of 64 bits, text without NUL or lone surrogates.
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
        """Read a cursor back from its text.

        Raises:
            InvalidInput: it is not the cursor of a page.
        """
        match cursor_parts(text):
            case [int(position), str(record_id)]:
                return cls(position, record_id)
        raise not_a_cursor(text, "a page")
