"""Calls with more text than the server takes in one message: a longer one ends the connection."""

from collections.abc import Iterator, Sequence
from typing import Final

from async_history._core.records.json_object import json_text
from async_history._core.records.records import HistoryRecord
from async_history._core.writing.submissions import AddRecords, SaveMessages, Submission
from async_history.errors import StorageRefused

_MOST_BYTES: Final = 1_000_000_000
"""Less than PostgreSQL's PQ_LARGE_MESSAGE_LIMIT, 1 GiB - 2: names and times need space too."""
_SURELY_FITS: Final = _MOST_BYTES // 3
"""Bytes in memory. A text of Latin-1 has up to three times as many in UTF-8 and then Base64."""


def find_too_large(
    batch: Sequence[Submission], where: str, growth: float
) -> dict[int, StorageRefused]:
    """Return an error for each submission that is too large for one statement, by index.

    Args:
        where: the server, for messages.
        growth: how many times its UTF-8 bytes a stored text has.
    """
    refused: dict[int, StorageRefused] = {}
    for index, one in enumerate(batch):
        if one.size_bytes > _SURELY_FITS:
            size = int(growth * sum(map(_bytes_of, _texts_in(one))))
            if size > _MOST_BYTES:
                refused[index] = StorageRefused(
                    f"{size:,} bytes of text are more than {where} takes in one call (about "
                    f"{_MOST_BYTES:,}); nothing was written, give it in several calls"
                )
    return refused


def _bytes_of(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _texts_in(submission: Submission) -> Iterator[str]:
    if isinstance(submission, AddRecords):
        for record in submission.records:
            yield from filter(None, _texts_of(record))
    elif isinstance(submission, SaveMessages):
        yield from (one.content or "" for one in submission.messages)


def _texts_of(record: HistoryRecord) -> tuple[str | None, ...]:
    details = json_text(record.context), json_text(record.cause)
    return (record.old_memory, record.new_memory, *details)
