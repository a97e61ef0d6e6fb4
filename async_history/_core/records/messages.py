"""The messages of mem0's rolling buffers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from async_history._core.records.new_records import new_id

MESSAGES_KEPT: Final = 10
"""Number of messages kept per session scope (mem0ai 2.x, `memory/storage.py`)."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a session scope's rolling buffer. `created_at` is ISO 8601 text, UTC.

    `is_json` means that `content` is JSON of a value that was not text.
    """

    role: str | None
    content: str | None
    name: str | None = None
    created_at: str | None = None
    is_json: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return exactly the mapping that mem0's `get_last_messages` returns for this message."""
        return {
            "role": self.role,
            "content": self.content,
            "name": self.name,
            "created_at": self.created_at,
        }


_JSON_ID: Final = "json-"
"""The id prefix of a message whose content is JSON, because mem0's table has no column for that."""


def new_message_id(message: Message) -> str:
    """Return a new id that records whether the message's content is JSON."""
    return f"{_JSON_ID}{new_id()}" if message.is_json else new_id()


def message_from_row(row: Sequence[Any]) -> Message:
    """Return the message of a row: id, role, content, name, created_at."""
    message_id, role, content, name, created_at = row
    return Message(role, content, name, created_at, str(message_id).startswith(_JSON_ID))
