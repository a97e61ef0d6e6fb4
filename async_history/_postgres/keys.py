"""Sealing and opening of texts in a batch on PostgreSQL, with the keys of an encrypted history.

Records are sealed on a thread, while they wait or before their batch is sent. The statement that
writes them checks that its keys are in the store: they may be lost by a failover or a restored
backup.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from threading import Lock
from typing import Final, Protocol

from async_history._core.encryption.batch_sealing import NewTexts, keys_in_store
from async_history._core.encryption.data_keys import DataKeys
from async_history._core.encryption.key_statements import KeyReads
from async_history._core.encryption.sealed_reader import ReadRecords, read_opened, read_rows_opened
from async_history._core.encryption.sealed_records import (
    SealedTexts,
    have_sealed,
    owner_of_session,
    sealed_messages,
)
from async_history._core.encryption.sealing import USES, DataKey
from async_history._core.encryption.store_encryption import OPEN_WITH_KEYS
from async_history._core.records.owners import Owner
from async_history._core.records.records import MEMORY_ID, Fields, HistoryRecord
from async_history._core.records.rows import ReadRows, Row
from async_history._core.writing.message_buffers import MessageRow
from async_history._postgres.key_statements import Access, KeyAccess
from async_history.errors import KeyMissing

ExpectedOwner = Callable[[Fields], Owner | None]
"""Returns the owner that the memory of a new record is likely to have."""


class Seal(Protocol):
    """Sealing and opening of texts between a batch and the tables."""

    @property
    def salt_key(self) -> bytes | None:
        """The key of the salts of a ledger; None if they are stored in clear."""

    def begin(self, submissions: Iterable[object], owner_of: ExpectedOwner) -> None:
        """Begin to seal records that wait for the next batch."""

    def drop(self) -> None:
        """Forget what was sealed of records that wait."""

    async def records(
        self,
        fields: Sequence[Fields],
        owners: Mapping[str, Owner | None],
        number: int,
        access: Access,
    ) -> tuple[SealedTexts | None, Sequence[str]]:
        """Return the sealed texts of records, and the ids of the keys that they need.

        None if the records stay in clear.

        Args:
            owners: the owners of their memories.
            number: the number of `owners_state`, which the statement that writes them compares.
        """

    async def messages(
        self, rows: Sequence[MessageRow], number: int | None, access: Access
    ) -> Sequence[MessageRow]:
        """Return messages as they will be stored; `number` is None if no session has an owner."""

    async def opened(self, read: ReadRecords, access: Access) -> Sequence[HistoryRecord]:
        """Read records, and return them in clear."""

    async def opened_rows(self, read: ReadRows, table: KeyReads) -> Sequence[Row]:
        """Read stored rows, and return them in clear; a row that does not open, as stored."""

    def undone(self) -> None:
        """End the leases of keys: a transaction, or a part of it, may have been rolled back."""


class InClear:
    """No sealing: texts in clear.

    What a batch reads may become part of what it writes. A sealed text opens at its own place only:
    copied to another record, it would make that unreadable.
    """

    salt_key: Final = None

    def begin(self, submissions: Iterable[object], owner_of: ExpectedOwner) -> None: ...

    def drop(self) -> None: ...

    async def records(
        self,
        fields: Sequence[Fields],
        owners: Mapping[str, Owner | None],
        number: int,
        access: Access,
    ) -> tuple[SealedTexts | None, Sequence[str]]:
        return None, ()

    async def messages(
        self, rows: Sequence[MessageRow], number: int | None, access: Access
    ) -> Sequence[MessageRow]:
        return rows

    async def opened(self, read: ReadRecords, access: Access) -> Sequence[HistoryRecord]:
        records = await read()
        if have_sealed(records) and await access().table.wrapping():
            raise KeyMissing("", f"the history {OPEN_WITH_KEYS}")
        return records

    async def opened_rows(self, read: ReadRows, table: KeyReads) -> Sequence[Row]:
        return await read()

    def undone(self) -> None: ...


class Sealing:
    """Sealing of texts under the data keys of a store.

    Args:
        keys: the data keys of the open store.
        turn: see `ComputedAhead`.
    """

    def __init__(self, keys: DataKeys, turn: Lock) -> None:
        self._keys = keys
        self._new = NewTexts(turn)
        self._lock = asyncio.Lock()  # an `add_in_transaction` seals at the same time

    @property
    def salt_key(self) -> bytes:
        return self._keys.index_key

    def begin(self, submissions: Iterable[object], owner_of: ExpectedOwner) -> None:
        keys = self._keys
        self._new.begin(submissions, lambda one: keys.expected(owner_of(one)), keys.index_key)

    def drop(self) -> None:
        self._new.drop()

    async def records(
        self,
        fields: Sequence[Fields],
        owners: Mapping[str, Owner | None],
        number: int,
        access: Access,
    ) -> tuple[SealedTexts | None, Sequence[str]]:
        whose = [owners.get(one[MEMORY_ID]) for one in fields]
        used = await self._use(whose, USES, number, access)
        texts = await self._new.of(fields, used, self._keys.index_key)
        return texts, self._keys.needed(used)

    async def messages(
        self, rows: Sequence[MessageRow], number: int | None, access: Access
    ) -> Sequence[MessageRow]:
        owners = [owner_of_session(scope) for _, scope, *_ in rows]
        return sealed_messages(rows, await self._use(owners, 1, number, access))

    async def opened(self, read: ReadRecords, access: Access) -> Sequence[HistoryRecord]:
        return await read_opened(read, partial(self._keys.load, table=access().table))

    async def opened_rows(self, read: ReadRows, table: KeyReads) -> Sequence[Row]:
        return await read_rows_opened(read, partial(self._keys.load, table=table))

    def undone(self) -> None:
        self._keys.end_leases()

    async def keys_of(
        self, owners: Sequence[Owner | None], number: int, access: KeyAccess
    ) -> Sequence[DataKey | None]:
        """Return the data key of each owner, for all texts of a record.

        Args:
            number: as in `records`.
        """
        return await self._use(owners, USES, number, lambda: access)

    async def _use(
        self, owners: Sequence[Owner | None], each: int, number: int | None, access: Access
    ) -> list[DataKey | None]:
        """Return the data key of each owner; it is in the store and may be used as often as asked.

        None if encryption is off.
        """
        reach = access()
        async with self._lock:
            if number is not None:
                self._keys.hold_while(number)
            lease = partial(self._lease, reach)
            return await keys_in_store(self._keys, owners, each, lease, reach.lack)

    async def _lease(self, access: KeyAccess, lacking: Mapping[Owner | None, int]) -> None:
        try:
            await access.change(partial(self._keys.lease, lacking))
        except BaseException:
            self._keys.end_leases()
            raise
