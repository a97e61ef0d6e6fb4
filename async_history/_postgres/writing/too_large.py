"""Calls with more bytes than the server takes in one message: a longer one ends the connection."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from operator import attrgetter
from typing import Final

from async_history._core.records.json_object import json_text
from async_history._core.writing.submissions import AddRecords, SaveMessages, Submission
from async_history._postgres.detail_columns import scopes_of
from async_history.errors import StorageRefused

_MOST_BYTES: Final = 1_000_000_000
"""Less than PostgreSQL's PQ_LARGE_MESSAGE_LIMIT, 1 GiB - 2: other parameters need space too."""
_ROW_BYTES: Final = 200
"""Of a row's instants, event, flags, hashes and separators."""
_NAMES_AND_TEXTS: Final = ("id", "memory_id", "old_memory", "new_memory", "actor_id", "role")
_GROWTH: Final = 3
"""A text of Latin-1 has up to three times its bytes in memory in UTF-8 and then Base64."""


def find_too_large(
    batch: Sequence[Submission], where: str, growth: float, most: int = _MOST_BYTES
) -> dict[int, StorageRefused]:
    """Return an error for each submission that is too large for one statement, by index.

    Args:
        where: the server, for messages.
        growth: how many times its UTF-8 bytes a stored text has.
        most: most bytes of a submission.
    """
    refused: dict[int, StorageRefused] = {}
    surely_fits = most // _GROWTH
    for index, one in enumerate(batch):
        if one.size_bytes > surely_fits:
            size = int(growth * sum(_sizes(one)))
            if size > most:
                refused[index] = StorageRefused(
                    f"{size:,} bytes are more than {where} takes in one call (about {most:,}); "
                    "nothing was written, give it in several calls"
                )
    return refused


def _sizes(submission: Submission) -> Iterator[int]:
    yield submission.record_count * _ROW_BYTES
    for column in _columns(submission):
        texts = list(filter(None, column))
        if all(map(str.isascii, texts)):
            yield sum(map(len, texts))
        else:
            yield sum([len(text.encode()) for text in texts])


def _columns(submission: Submission) -> Iterator[Iterable[str | None]]:
    """Yield the texts of a submission's rows, column by column."""
    if isinstance(submission, AddRecords):
        records = submission.records
        for name in _NAMES_AND_TEXTS:
            yield map(attrgetter(name), records)
        yield chain.from_iterable([scopes_of(one.owner) for one in records if one.owner])
        for name in ("context", "cause"):
            yield map(json_text, map(attrgetter(name), records))
    elif isinstance(submission, SaveMessages):
        yield submission.ids
        for name in ("role", "content", "name"):
            yield map(attrgetter(name), submission.messages)
    else:
        yield submission.owners
        yield chain.from_iterable(map(scopes_of, submission.owners.values()))
