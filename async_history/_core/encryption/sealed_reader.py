"""Reads of an encrypted store: the results of a backend's reader and follower are decrypted.

The backend reads stored values as without encryption. So a text cannot be searched in the database:
records that match the other filters are read, decrypted and compared. A cause is found by tokens of
its indexed keys. If there may be clear causes, it is searched like a text.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from async_history._core.backend import Reader
from async_history._core.concurrency.threads import computed
from async_history._core.encryption.sealed_records import (
    opened_if_whole,
    opened_message,
    opened_record,
    opened_row,
    texts_of,
    texts_of_row,
)
from async_history._core.encryption.sealing import Keys, key_ids, token_under
from async_history._core.reading.cursors import Cursor
from async_history._core.reading.filters import Filter, has_owner_and_cause
from async_history._core.reading.follow_reads import FollowRead, FollowReader
from async_history._core.reading.query import PageRead, RowsRead
from async_history._core.reading.timeline import Moment
from async_history._core.records.messages import Message
from async_history._core.records.recording import INDEXED_CAUSES
from async_history._core.records.records import HistoryRecord
from async_history._core.records.rows import ReadRows, Row

R = TypeVar("R")
V = TypeVar("V")

ReadRecords = Callable[[], Awaitable[Sequence[HistoryRecord]]]
Load = Callable[[Collection[str]], Awaitable[Keys]]
"""Returns data keys by id, if the store has them."""
_Rest = Callable[[int], Awaitable[PageRead]]

_OPENED_HERE: Final = 64
"""Most records decrypted on the event loop (a third of a millisecond); a thread decrypts more."""
_COUNT_PAGE: Final = 1_000


class KeySource(Protocol):
    """Provides the keys of an open store to readers."""

    async def load(self, key_ids: Iterable[str]) -> Keys:
        """Return data keys by id, of those that the store has."""

    async def token_key(self) -> bytes | None:
        """Return the key of the tokens; None if some causes have no tokens."""


class StoredReader(Reader, Protocol):
    """A backend's reader that also returns stored messages."""

    async def message_rows(self, session_scope: str, limit: int) -> Sequence[Sequence[Any]]:
        """Return a scope's last messages as rows for `message_from_row`."""


class SealedReader:
    """A reader of an encrypted store.

    Args:
        stored: the backend's reader.
        keys: the keys of the store.
    """

    def __init__(self, stored: StoredReader, keys: KeySource) -> None:
        self._stored = stored
        self._keys = keys
        self.times_before = stored.times_before
        self.newest = stored.newest
        self.next_cursor = stored.next_cursor
        self.scopes = stored.scopes

    async def history(self, memory_id: str) -> list[HistoryRecord]:
        """Return a memory's records, oldest first."""
        read = partial(self._stored.history, memory_id)
        return await read_opened(read, self._keys.load)

    async def last_change(self, memory_id: str, when: Moment) -> HistoryRecord | None:
        """Return a memory's last record as of a moment."""

        async def read() -> list[HistoryRecord]:
            found = await self._stored.last_change(memory_id, when)
            return [] if found is None else [found]

        records = await read_opened(read, self._keys.load)
        return records[0] if records else None

    async def page(self, wanted: Filter, after: Cursor | None, limit: int, ahead: int) -> PageRead:
        """Return up to `limit` records that match, and read up to `ahead`."""
        asked = await self._as_stored(wanted)
        return await self._page(wanted, asked, after, ahead, None, limit)

    async def _page(
        self,
        wanted: Filter,
        asked: Filter,
        after: Cursor | None,
        ahead: int,
        rest: _Rest | None,
        limit: int,
    ) -> PageRead:
        """Return the next matching records, first from those read ahead.

        Args:
            asked: the filter for the database.
            rest: returns the next page of records read ahead.
        """
        while True:
            again = partial(self._stored.page, asked, after, limit, ahead)
            stored = await (again() if rest is None else rest(limit))
            read, keys = await with_keys(stored, again, _ids_of_page, self._keys.load)
            after, rest = read.cursor or after, read.rest
            records = await _each(opened_record, read.records, keys)
            if asked is not wanted:
                records = [record for record in records if _matches(record, wanted)]
            if records or read.is_last:
                further = rest and partial(self._page, wanted, asked, after, ahead, rest)
                return PageRead(records, after, is_last=read.is_last, rest=further)

    async def count(self, wanted: Filter) -> int:
        """Return the number of records that match.

        With a text, all records that match the other filters are read.
        """
        asked = await self._as_stored(wanted)
        if asked is wanted:
            return await self._stored.count(wanted)
        ahead = max(_COUNT_PAGE, len(wanted.memory_ids or ()))
        count, after = 0, None
        rest: _Rest | None = None
        while True:
            if rest is None:
                read = await self.page(wanted, after, _COUNT_PAGE, ahead)
            else:
                read = await rest(_COUNT_PAGE)
            count += len(read.records)
            after, rest = read.cursor, read.rest
            if read.is_last:
                return count

    async def _as_stored(self, wanted: Filter) -> Filter:
        """Return the filter for the database; the same filter if that is exact."""
        if wanted.text is None and not wanted.cause:
            return wanted
        causes: list[tuple[str, str]] = []
        index_key = await self._keys.token_key() if wanted.cause else None
        if index_key is not None:
            token = token_under(index_key)
            causes = [
                (name, token(name, value)) for name, value in wanted.cause if name in INDEXED_CAUSES
            ]
        return replace(wanted, text=None, cause=tuple(causes))

    async def states_at(self, when: datetime) -> AsyncIterator[Sequence[HistoryRecord]]:
        """Yield pages of the records in force at an instant, one per memory."""
        async for page in self._stored.states_at(when):
            again = partial(self._as_now, page)
            records, keys = await with_keys(page, again, _ids_of_records, self._keys.load)
            yield await _each(opened_record, records, keys)

    async def _as_now(self, records: Sequence[HistoryRecord]) -> list[HistoryRecord]:
        """Return records as stored now; a removed record as it was."""
        names = {record.memory_id for record in records}
        now = {one.id: one for name in names for one in await self._stored.history(name)}
        return [now.get(record.id, record) for record in records]

    async def rows(self, after: Cursor | None, limit: int) -> RowsRead:
        """Return up to `limit` rows after a cursor, in the order of recording."""
        next_rows = partial(self._stored.rows, after, limit)
        read, keys = await with_keys(await next_rows(), next_rows, _ids_of_rows, self._keys.load)
        return replace(read, rows=await _each(opened_row, read.rows, keys))

    async def last_messages(self, session_scope: str, limit: int) -> list[Message]:
        """Return a scope's last messages, oldest first."""
        read = partial(self._stored.message_rows, session_scope, limit)
        rows, keys = await with_keys(await read(), read, _ids_of_messages, self._keys.load)
        return [opened_message(row, session_scope, keys) for row in rows]


class SealedFollowReader:
    """A follower of an encrypted store.

    Args:
        stored: the backend's follower.
        keys: the keys of the store.
    """

    def __init__(self, stored: FollowReader[Any], keys: KeySource) -> None:
        self._stored = stored
        self._keys = keys
        self.position = stored.position
        self.end = stored.end
        self.mark = stored.mark

    async def page(self, after: Any, memory_id: str | None, limit: int) -> FollowRead[Any]:
        """Return up to `limit` records after a position, of one memory or of all."""
        next_page = partial(self._stored.page, after, memory_id, limit)
        read, keys = await with_keys(await next_page(), next_page, _ids_of_page, self._keys.load)
        return replace(read, records=await _each(opened_record, read.records, keys))


async def read_opened(read: ReadRecords, load: Load) -> list[HistoryRecord]:
    """Read records and decrypt them; many of them on a thread.

    Args:
        read: reads the records.
        load: returns data keys by id, of those that the store has.

    Raises:
        KeyMissing, StorageCorrupt: as `opened_record`.
    """
    records, keys = await with_keys(await read(), read, _ids_of_records, load)
    return await _each(opened_record, records, keys)


async def read_rows_opened(read: ReadRows, load: Load) -> list[Row]:
    """Read rows and decrypt each with `opened_if_whole`.

    Args:
        read, load: as in `read_opened`.

    Raises:
        KeyMissing: as `opened_record`.
    """
    rows, keys = await with_keys(await read(), read, _ids_of, load)
    return [opened_if_whole(row, keys) for row in rows]


async def with_keys(
    stored: R,
    read: Callable[[], Awaitable[R]],
    ids_of: Callable[[R], set[str]],
    load: Load,
) -> tuple[R, Keys]:
    """Return stored values and the data keys that they name, if the store has them.

    If a key is missing, others may have rewritten texts, under new keys or in clear, and removed
    the key between the two reads, or have turned encryption on or off. So both reads are repeated
    until they say the same as before.

    Args:
        read: repeats the read.
    """
    gone: set[str] = set()
    was_partial: bool | None = None
    while True:
        ids = ids_of(stored)
        keys = await load(ids)
        missing = ids - keys.by_id.keys()
        if not missing or (gone >= missing and keys.is_partial is was_partial):
            return stored, keys
        gone |= missing
        was_partial = keys.is_partial
        stored = await read()


def _ids_of_records(records: Sequence[HistoryRecord]) -> set[str]:
    return key_ids(text for record in records for text in texts_of(record))


def _ids_of_page(page: PageRead | FollowRead[Any]) -> set[str]:
    return _ids_of_records(page.records)


def _ids_of(rows: Sequence[Row]) -> set[str]:
    return key_ids(text for row in rows for text in texts_of_row(row))


def _ids_of_rows(read: RowsRead) -> set[str]:
    return _ids_of(read.rows)


def _ids_of_messages(rows: Sequence[Sequence[Any]]) -> set[str]:
    return key_ids(row[2] for row in rows)


async def _each(opened: Callable[[V, Keys], V], stored: Sequence[V], keys: Keys) -> list[V]:
    if len(stored) <= _OPENED_HERE or not keys.by_id:
        return [opened(one, keys) for one in stored]
    return await computed(partial(_opened_all, opened, stored, keys))


def _opened_all(opened: Callable[[V, Keys], V], stored: Sequence[V], keys: Keys) -> list[V]:
    return [opened(one, keys) for one in stored]


def _matches(record: HistoryRecord, wanted: Filter) -> bool:
    """Return whether a decrypted record has the text and the cause of a filter."""
    text = wanted.text
    if text is not None and not any(
        isinstance(one, str) and text in one for one in (record.old_memory, record.new_memory)
    ):
        return False
    return has_owner_and_cause(record, (), wanted.cause)
