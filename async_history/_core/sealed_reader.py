"""Reads of an encrypted store: what a backend's reader and follower return, opened.

They read what is stored, as where nothing is encrypted. So a text can't be searched in the
database: records that match all else are read, opened, and looked through. A cause is found by
tokens of its indexed keys; where causes may be in clear still, it is searched as a text is.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from async_history._core.backend import Reader
from async_history._core.cursors import Cursor
from async_history._core.filters import Filter, has_details
from async_history._core.follow_reads import FollowRead, FollowReader
from async_history._core.messages import Message
from async_history._core.query import PageRead, RowsRead
from async_history._core.recording import INDEXED_CAUSES
from async_history._core.records import HistoryRecord
from async_history._core.sealed_records import (
    Keys,
    key_ids,
    opened_message,
    opened_record,
    opened_row,
    texts_of,
    texts_of_row,
)
from async_history._core.sealing import token
from async_history._core.threads import computed

V = TypeVar("V")

_OPENED_HERE: Final = 64
"""Records that are opened on the event loop: a third of a millisecond. More go to a thread."""
_COUNT_PAGE: Final = 1_000


class KeySource(Protocol):
    """Gives readers the keys of an open store."""

    async def load(self, key_ids: Iterable[str]) -> Keys:
        """Return data keys by id, of those that the store has."""

    async def all_causes_are_sealed(self) -> bool:
        """Return whether every cause can be found by its tokens."""

    @property
    def index_key(self) -> bytes:
        """The key of the tokens."""


class StoredReader(Reader, Protocol):
    """A backend's reader, which also returns messages as they are stored."""

    async def message_rows(self, session_scope: str, limit: int) -> Sequence[Sequence[Any]]:
        """Return a scope's last messages as rows for `message_from_row`."""


class SealedReader:
    """Reads an encrypted store.

    Args:
        stored: the backend's reader.
        keys: the store's.
    """

    def __init__(self, stored: StoredReader, keys: KeySource) -> None:
        self._stored = stored
        self._keys = keys
        self.times_before = stored.times_before
        self.newest = stored.newest
        self.scopes = stored.scopes

    async def _opened(self, records: Sequence[HistoryRecord]) -> list[HistoryRecord]:
        return await opened_records(records, self._keys.load)

    async def history(self, memory_id: str) -> list[HistoryRecord]:
        """Return a memory's records, oldest first."""
        return await self._opened(await self._stored.history(memory_id))

    async def page(self, wanted: Filter, after: Cursor | None, limit: int, ahead: int) -> PageRead:
        """Return the next records that match, up to `limit`; of `ahead` nothing is kept."""
        asked = await self._as_stored(wanted)
        is_exact = asked is wanted
        place = after
        while True:
            read = await self._stored.page(asked, place, limit, limit)
            place = read.place or place
            records = await self._opened(read.records)
            if not is_exact:
                records = [record for record in records if _matches(record, wanted)]
            if records or read.is_last:
                return PageRead(records, place, is_last=read.is_last)

    async def count(self, wanted: Filter) -> int:
        """Return how many records match; with a text, all that match else are read."""
        asked = await self._as_stored(wanted)
        if asked is wanted:
            return await self._stored.count(wanted)
        count, place = 0, None
        while True:
            read = await self.page(wanted, place, _COUNT_PAGE, _COUNT_PAGE)
            count += len(read.records)
            place = read.place
            if read.is_last:
                return count

    async def _as_stored(self, wanted: Filter) -> Filter:
        """Return what the database can be asked for; the same filter if that is exact."""
        if wanted.text is None and not wanted.cause:
            return wanted
        causes: list[tuple[str, str]] = []
        if wanted.cause and await self._keys.all_causes_are_sealed():
            index_key = self._keys.index_key
            causes = [
                (name, token(index_key, name, value))
                for name, value in wanted.cause
                if name in INDEXED_CAUSES
            ]
        return replace(wanted, text=None, cause=tuple(causes))

    async def states_at(self, when: datetime) -> AsyncIterator[Sequence[HistoryRecord]]:
        """Yield pages of the records that are each memory's state at an instant."""
        async for page in self._stored.states_at(when):
            yield await self._opened(page)

    async def rows(self, after: Cursor | None, limit: int) -> RowsRead:
        """Return up to `limit` rows after a cursor, in the order of recording."""
        read = await self._stored.rows(after, limit)
        keys = await self._keys.load(key_ids(_all(texts_of_row, read.rows)))
        return replace(read, rows=await _each(opened_row, read.rows, keys))

    async def last_messages(self, session_scope: str, limit: int) -> list[Message]:
        """Return a scope's last messages, oldest first."""
        rows = await self._stored.message_rows(session_scope, limit)
        keys = await self._keys.load(key_ids(row[2] for row in rows))
        return [opened_message(row, session_scope, keys) for row in rows]


class SealedFollowReader:
    """Follows an encrypted store.

    Args:
        stored: the backend's.
        keys: the store's.
    """

    def __init__(self, stored: FollowReader[Any], keys: KeySource) -> None:
        self._stored = stored
        self._keys = keys
        self.place = stored.place
        self.end = stored.end
        self.mark = stored.mark

    async def page(self, place: Any, memory_id: str | None, limit: int) -> FollowRead[Any]:
        """Return up to `limit` records after a place, of one memory or of all."""
        read = await self._stored.page(place, memory_id, limit)
        return replace(read, records=await opened_records(read.records, self._keys.load))


async def opened_records(
    records: Sequence[HistoryRecord], load: Callable[[Collection[str]], Awaitable[Keys]]
) -> list[HistoryRecord]:
    """Return records opened, many of them on a thread.

    Args:
        load: returns data keys by id, of those that the store has.

    Raises:
        KeyMissing, StorageCorrupt: as `opened_record`.
    """
    keys = await load(key_ids(_all(texts_of, records)))
    return await _each(opened_record, records, keys)


async def _each(opened: Callable[[V, Keys], V], stored: Sequence[V], keys: Keys) -> list[V]:
    if len(stored) <= _OPENED_HERE or not keys:
        return [opened(one, keys) for one in stored]
    return await computed(partial(_opened_all, opened, stored, keys))


def _opened_all(opened: Callable[[V, Keys], V], stored: Sequence[V], keys: Keys) -> list[V]:
    return [opened(one, keys) for one in stored]


def _all(texts: Callable[[V], Iterable[object]], stored: Iterable[V]) -> Iterable[object]:
    return (text for one in stored for text in texts(one))


def _matches(record: HistoryRecord, wanted: Filter) -> bool:
    """Return whether an opened record has the text and the cause of a filter."""
    text = wanted.text
    if text is not None and not any(
        isinstance(one, str) and text in one for one in (record.old_memory, record.new_memory)
    ):
        return False
    return has_details(record, (), wanted.cause)
