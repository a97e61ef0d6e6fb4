"""The message buffers of session scopes, and which messages of a batch are not in them yet."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Final

from async_history._core.records.messages import MESSAGES_KEPT
from async_history._core.writing.submissions import SaveMessages

MessageRow = tuple[str, str, str | None, str | None, str | None, str | None]
"""The columns of a message: id, session_scope, role, content, name and created_at."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """The stored messages of a session scope: their number, the first and last position in the
    order of saving, and which of the submissions' last messages are among them."""

    count: int
    oldest: int
    newest: int
    there: Set[str]


_EMPTY: Final = Buffer(0, 0, 0, frozenset())


def message_rows(submissions: Iterable[SaveMessages]) -> list[MessageRow]:
    """Return the rows of submissions' messages, in order."""
    return [
        (message_id, submission.session_scope, m.role, m.content, m.name, m.created_at)
        for submission in submissions
        for message_id, m in zip(submission.ids, submission.messages, strict=True)
    ]


def unsaved(
    submissions: Sequence[SaveMessages], buffers: Mapping[str, Buffer]
) -> set[SaveMessages]:
    """Return the submissions that an earlier try of this batch has not saved.

    Each is looked for by itself: the earlier try may have refused it, and saved later ones. One
    that is not stored may have been evicted, if the buffer is full of messages saved since the
    first try. Then it counts as saved: it could have been saved and evicted meanwhile.
    """
    missing: set[SaveMessages] = set()
    for submission in submissions:
        buffer = buffers.get(submission.session_scope, _EMPTY)
        if submission.ids[-1] not in buffer.there and not _is_pushed_out(submission, buffer):
            missing.add(submission)
        if submission.newest_before is None:
            submission.newest_before = buffer.newest
    return missing


def _is_pushed_out(submission: SaveMessages, buffer: Buffer) -> bool:
    before = submission.newest_before
    return before is not None and buffer.count >= MESSAGES_KEPT and buffer.oldest > before
