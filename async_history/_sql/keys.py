"""The keys of an encrypted history, and sealing in a batch.

Changes to the tables of keys lock the row of `state`, as all writes do. So two processes that need
an owner's first data key agree on one. And no key is made under a wrapping key that is being
removed.

A batch is sealed before that row is locked, if its keys are in memory. The transaction that writes
it checks that they are in the store: they may be lost by a failover or a restored backup.
"""

from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple, Protocol

from sqlalchemy import select

from async_history._core.encryption.batch_sealing import keys_in_store, sealed_records
from async_history._core.encryption.data_keys import DataKeys
from async_history._core.encryption.key_statements import KeyReads
from async_history._core.encryption.sealed_reader import ReadRecords, read_opened, read_rows_opened
from async_history._core.encryption.sealed_records import (
    owner_of_session,
    sealed_messages,
    uses_of,
)
from async_history._core.encryption.sealing import USES, DataKey
from async_history._core.encryption.store_encryption import OPEN_WITH_KEYS
from async_history._core.records.owners import Owner
from async_history._core.records.records import HistoryRecord
from async_history._core.records.rows import ReadRows, Row
from async_history._core.writing.erased_names import Name
from async_history._core.writing.message_buffers import MessageRow
from async_history._sql.key_statements import WrittenKeyTable
from async_history._sql.transaction import Transaction
from async_history.errors import KeyMissing

_SEALED_BYTES: Final = 96
"""Bytes of a sealed text beyond four thirds of its length: key id, nonce, tag and marks."""


def escaped_bytes(text: str) -> int:
    """Return the bytes of a text in a statement of MySQL."""
    return len(text.encode()) + sum(map(text.count, "'\"\\\n\r\x1a"))


class StoredRecords(NamedTuple):
    """Records as they are stored, and the ids of the keys that must be in the store."""

    records: Sequence[HistoryRecord]
    key_ids: Sequence[str] = ()


class Seal(Protocol):
    """Sealing and opening of texts between a batch and the tables.

    `transaction` has locked the row of `state`.
    """

    @property
    def salt_key(self) -> bytes | None:
        """The key of the salts of a ledger; None if they are stored in clear."""

    async def before(self, records: Sequence[HistoryRecord], version: int) -> StoredRecords | None:
        """Return records as they will be stored, before a transaction of this version.

        None if keys have to be made, or their uses counted, first.
        """

    async def within(
        self,
        records: Sequence[HistoryRecord],
        transaction: Transaction,
        stored: StoredRecords | None = None,
    ) -> Sequence[HistoryRecord]:
        """Return records as they will be stored; `stored` is the result of `before`."""

    async def messages(
        self, rows: Sequence[MessageRow], transaction: Transaction
    ) -> Sequence[MessageRow]:
        """Return messages as they will be stored."""

    async def opened(self, read: ReadRecords, transaction: Transaction) -> Sequence[HistoryRecord]:
        """Read records, and return them in clear."""

    async def opened_rows(self, read: ReadRows, table: KeyReads) -> Sequence[Row]:
        """Read stored rows, and return them in clear; a row that does not open, as stored."""

    async def check(self, transaction: Transaction) -> None:
        """Check that this manager may still write to the store.

        Raises:
            KeyMissing: it was opened without keys, and the history has been encrypted since.
        """

    async def mark(self, names: Sequence[Name], transaction: Transaction) -> Sequence[str]:
        """Mark the data keys of owners that are being erased; return their ids."""

    async def destroy(self, key_ids: Sequence[str], transaction: Transaction) -> None:
        """Destroy data keys that `mark` returned."""

    def apart(self) -> "Seal":
        """Return a copy for the program's own transaction, whose rollback is not seen here."""

    def undone(self) -> None:
        """End the leases of keys: a transaction, or a part of it, may have been rolled back."""

    def statement_bytes(self, size_bytes: int) -> int:
        """Return the most bytes of a statement for values that take `size_bytes` in memory."""

    def text_bytes(self, text: str) -> int:
        """Return the bytes of a text in a statement of MySQL."""


class InClear:
    """No sealing: texts in clear.

    Args:
        where: the store, for messages.
    """

    salt_key: Final = None

    def __init__(self, where: str) -> None:
        self._where = where

    async def before(self, records: Sequence[HistoryRecord], version: int) -> StoredRecords:
        return StoredRecords(records)

    async def within(
        self,
        records: Sequence[HistoryRecord],
        transaction: Transaction,
        stored: StoredRecords | None = None,
    ) -> Sequence[HistoryRecord]:
        return records

    async def messages(
        self, rows: Sequence[MessageRow], transaction: Transaction
    ) -> Sequence[MessageRow]:
        return rows

    async def opened(self, read: ReadRecords, transaction: Transaction) -> Sequence[HistoryRecord]:
        return await read()

    async def opened_rows(self, read: ReadRows, table: KeyReads) -> Sequence[Row]:
        return await read()

    async def check(self, transaction: Transaction) -> None:
        if await transaction.fetch(select(transaction.tables.wrapping_keys.c.id).limit(1)):
            raise KeyMissing("", f"{self._where} {OPEN_WITH_KEYS}")

    async def mark(self, names: Sequence[Name], transaction: Transaction) -> Sequence[str]:
        return ()

    async def destroy(self, key_ids: Sequence[str], transaction: Transaction) -> None: ...

    def apart(self) -> "InClear":
        return self

    def undone(self) -> None: ...

    def statement_bytes(self, size_bytes: int) -> int:
        return 2 * size_bytes  # escaped, a text takes twice its bytes at most

    def text_bytes(self, text: str) -> int:
        return escaped_bytes(text)


class Sealing:
    """Sealing of texts under the data keys of a store.

    Args:
        keys: the data keys of the open store.
    """

    def __init__(self, keys: DataKeys) -> None:
        self._keys = keys

    @property
    def salt_key(self) -> bytes:
        return self._keys.index_key

    async def before(self, records: Sequence[HistoryRecord], version: int) -> StoredRecords | None:
        self._keys.hold_while(version)
        owners = [record.owner for record in records]
        if self._keys.lacking(uses_of(owners)):
            return None
        used = [self._keys.use(owner, USES) for owner in owners]
        sealed = await sealed_records(records, used, self._keys.index_key)
        return StoredRecords(sealed, self._keys.needed(used))

    async def within(
        self,
        records: Sequence[HistoryRecord],
        transaction: Transaction,
        stored: StoredRecords | None = None,
    ) -> Sequence[HistoryRecord]:
        if stored is not None and not await WrittenKeyTable(transaction).lacks(stored.key_ids):
            return stored.records
        owners = [record.owner for record in records]
        used = await self._use(owners, USES, transaction)
        return await sealed_records(records, used, self._keys.index_key)

    async def messages(
        self, rows: Sequence[MessageRow], transaction: Transaction
    ) -> Sequence[MessageRow]:
        owners = [owner_of_session(scope) for _, scope, *_ in rows]
        return sealed_messages(rows, await self._use(owners, 1, transaction))

    async def opened(self, read: ReadRecords, transaction: Transaction) -> Sequence[HistoryRecord]:
        table = WrittenKeyTable(transaction)
        return await read_opened(read, partial(self._keys.load, table=table))

    async def opened_rows(self, read: ReadRows, table: KeyReads) -> Sequence[Row]:
        return await read_rows_opened(read, partial(self._keys.load, table=table))

    async def check(self, transaction: Transaction) -> None: ...

    async def mark(self, names: Sequence[Name], transaction: Transaction) -> Sequence[str]:
        return await WrittenKeyTable(transaction).mark(names)

    async def destroy(self, key_ids: Sequence[str], transaction: Transaction) -> None:
        self._keys.forget()
        await WrittenKeyTable(transaction).destroy(key_ids)

    def apart(self) -> "Sealing":
        return Sealing(self._keys.apart())

    def undone(self) -> None:
        self._keys.end_leases()

    def statement_bytes(self, size_bytes: int) -> int:
        return 3 * size_bytes  # a text of Latin-1 takes twice its bytes in UTF-8, and a third more

    def text_bytes(self, text: str) -> int:
        return len(text.encode()) * 4 // 3 + _SEALED_BYTES

    async def keys_of(
        self, owners: Sequence[Owner | None], transaction: Transaction
    ) -> Sequence[DataKey | None]:
        """Return the data key of each owner, for all texts of a record.

        None if encryption is off.
        """
        return await self._use(owners, USES, transaction)

    async def _use(
        self, owners: Sequence[Owner | None], each: int, transaction: Transaction
    ) -> list[DataKey | None]:
        """Return the data key of each owner; it is in the store and may be used as often as asked.

        None if encryption is off.
        """
        table = WrittenKeyTable(transaction)
        self._keys.hold_while(transaction.version)
        lease = partial(self._keys.lease, table=table)
        return await keys_in_store(self._keys, owners, each, lease, table.lacks)
