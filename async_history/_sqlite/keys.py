"""The keys of an encrypted SQLite file: sealing in a transaction."""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from async_history._core.concurrency.threads import run_to_completion
from async_history._core.encryption.data_keys import DataKeys
from async_history._core.encryption.sealed_records import (
    SealedValues,
    have_sealed,
    opened_if_whole,
    opened_record,
    opened_text,
    owner_of_session,
    sealed_messages,
    sealed_values,
    texts_of,
    texts_of_row,
    uses_of,
)
from async_history._core.encryption.sealing import USES, DataKey, key_ids
from async_history._core.encryption.store_encryption import OPEN_WITH_KEYS
from async_history._core.records.owners import Owner
from async_history._core.records.records import Fields, HistoryRecord
from async_history._core.records.rows import Row
from async_history._core.writing.erased_names import Name
from async_history._core.writing.message_buffers import MessageRow
from async_history._sqlite.connecting.connection import transaction
from async_history._sqlite.index import StoredOwner
from async_history._sqlite.key_statements import WrittenKeyTable, add_tables, is_encrypted
from async_history.errors import KeyMissing


class StoredText(NamedTuple):
    """A stored value of a record; `kind` is its type in the file."""

    column: str
    record_id: str
    stored: bytes | None
    kind: str

    def decoded(self) -> str:
        """Return the text; "" if the value is not a text."""
        return self.stored.decode(errors="replace") if self.stored and self.kind == "text" else ""


class SealedBatch(NamedTuple):
    """The values of records as they are stored.

    Attributes:
        values: sealed as they are requested; None if the records stay in clear.
        keys: ids of the keys that must be in the file and not be retired in the transaction that
            adds the records: see `DataKeys.needed`.
    """

    values: Iterator[SealedValues] | None = None
    keys: Sequence[str] = ()


class Seal(Protocol):
    """Sealing and opening of texts between a batch and the file, on the writing thread."""

    @property
    def salt_key(self) -> bytes | None:
        """The key of the salts of a ledger; None if they are stored in clear."""

    def records(
        self,
        records: Sequence[Fields],
        owners: Sequence[StoredOwner | None],
        noted: int,
        connection: sqlite3.Connection,
    ) -> SealedBatch:
        """Return the values of records as they will be stored.

        Args:
            owners: the owners of their memories.
            noted: the last number of an erased name that the writer knows, which it checks.
        """

    def opened(
        self, records: Sequence[HistoryRecord], connection: sqlite3.Connection
    ) -> Sequence[HistoryRecord]:
        """Return records that were read, in clear."""

    def opened_rows(self, rows: Sequence[Row], connection: sqlite3.Connection) -> Sequence[Row]:
        """Return stored rows in clear; a row that does not open, as stored."""

    def opened_texts(
        self, texts: Sequence[StoredText], connection: sqlite3.Connection
    ) -> Sequence[bytes | None]:
        """Return the bytes of stored texts, in clear."""

    def messages(
        self, rows: Sequence[MessageRow], noted: Callable[[], int], connection: sqlite3.Connection
    ) -> Sequence[MessageRow]:
        """Return messages as they will be stored."""

    def undone(self) -> None:
        """End the leases of keys: a transaction, or a part of it, was rolled back."""


class InClear:
    """No sealing: texts in clear.

    What a batch reads may become part of what it writes. A sealed text opens at its own place only:
    copied to another record, it would make that unreadable.
    """

    salt_key: Final = None

    def records(
        self,
        records: Sequence[Fields],
        owners: Sequence[StoredOwner | None],
        noted: int,
        connection: sqlite3.Connection,
    ) -> SealedBatch:
        return SealedBatch()

    def opened(
        self, records: Sequence[HistoryRecord], connection: sqlite3.Connection
    ) -> Sequence[HistoryRecord]:
        if have_sealed(records) and is_encrypted(connection):
            raise KeyMissing("", f"the history {OPEN_WITH_KEYS}")
        return records

    def opened_rows(self, rows: Sequence[Row], connection: sqlite3.Connection) -> Sequence[Row]:
        return rows

    def opened_texts(
        self, texts: Sequence[StoredText], connection: sqlite3.Connection
    ) -> Sequence[bytes | None]:
        return [text.stored for text in texts]

    def messages(
        self, rows: Sequence[MessageRow], noted: Callable[[], int], connection: sqlite3.Connection
    ) -> Sequence[MessageRow]:
        return rows

    def undone(self) -> None: ...


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

    def records(
        self,
        records: Sequence[Fields],
        owners: Sequence[StoredOwner | None],
        noted: int,
        connection: sqlite3.Connection,
    ) -> SealedBatch:
        whose = [None if stored is None else stored.owner for stored in owners]
        used = self.keys_of(whose, noted, connection)
        unchecked = () if connection.in_transaction else self._keys.needed(used)
        return SealedBatch(sealed_values(records, used, self._keys.index_key), unchecked)

    def opened(
        self, records: Sequence[HistoryRecord], connection: sqlite3.Connection
    ) -> Sequence[HistoryRecord]:
        ids = key_ids(text for record in records for text in texts_of(record))
        if not ids:
            return records
        keys = run_to_completion(self._keys.load(ids, WrittenKeyTable(connection)))
        return [opened_record(record, keys) for record in records]

    def opened_rows(self, rows: Sequence[Row], connection: sqlite3.Connection) -> Sequence[Row]:
        ids = key_ids(text for row in rows for text in texts_of_row(row))
        keys = run_to_completion(self._keys.load(ids, WrittenKeyTable(connection)))
        return [opened_if_whole(row, keys) for row in rows]

    def opened_texts(
        self, texts: Sequence[StoredText], connection: sqlite3.Connection
    ) -> Sequence[bytes | None]:
        decoded = [text.decoded() for text in texts]
        keys = run_to_completion(self._keys.load(key_ids(decoded), WrittenKeyTable(connection)))
        return [
            opened_text(text, one.column, one.record_id, keys).encode()
            if keys.is_sealed(text)
            else one.stored
            for text, one in zip(decoded, texts, strict=True)
        ]

    def messages(
        self, rows: Sequence[MessageRow], noted: Callable[[], int], connection: sqlite3.Connection
    ) -> Sequence[MessageRow]:
        owners = [owner_of_session(scope) for _, scope, *_ in rows]
        return sealed_messages(rows, self._taken(owners, 1, noted(), connection))

    def undone(self) -> None:
        self._keys.end_leases()

    @property
    def index_key(self) -> bytes:
        """The key of the tokens by which causes are found."""
        return self._keys.index_key

    def keys_of(
        self, owners: Sequence[Owner | None], noted: int, connection: sqlite3.Connection
    ) -> list[DataKey | None]:
        """Return the data key of each owner, for all texts of a record.

        Within a transaction they are in the file. Otherwise, the statement that adds the texts must
        check that.
        """
        return self._taken(owners, USES, noted, connection)

    def _taken(
        self,
        owners: Sequence[Owner | None],
        each: int,
        noted: int,
        connection: sqlite3.Connection,
    ) -> list[DataKey | None]:
        """Return the data key of each owner, which may be used `each` times for it."""
        keys = self._keys
        keys.hold_while(noted)
        if connection.in_transaction:
            self._lease(uses_of(owners), connection)
            return [keys.use(owner, each) for owner in owners]
        used = keys.taken(owners, each)
        if used is None:
            self._lease(uses_of(owners), connection)
            used = [keys.use(owner, each) for owner in owners]
        return used

    def _lease(self, uses: Mapping[Owner | None, int], connection: sqlite3.Connection) -> None:
        """Lease uses of keys, in this transaction or in a separate one."""
        keys, table = self._keys, WrittenKeyTable(connection)
        is_within = connection.in_transaction
        lacking = keys.lacking(uses)
        try:
            with contextlib.nullcontext() if is_within or not lacking else transaction(connection):
                if lacking:
                    run_to_completion(keys.lease(lacking, table))
                if is_within and run_to_completion(table.lacks(keys.leased(uses))):
                    keys.forget()
                    run_to_completion(keys.lease(uses, table))
        except BaseException:
            keys.end_leases()
            raise


class FileKeys:
    """The keys of a file, for the transactions that write: by default none.

    Attributes:
        seal: seals and opens texts.
    """

    seal: Seal = InClear()

    async def mark(self, connection: sqlite3.Connection, names: Sequence[Name]) -> Sequence[str]:
        """Mark the data keys of owners that are erased; return their ids."""
        return ()

    async def destroy(self, connection: sqlite3.Connection, key_ids: Sequence[str]) -> None:
        """Destroy data keys that `mark` returned."""

    def created(self, connection: sqlite3.Connection) -> None:
        """Create the tables of keys, if the file is encrypted."""


class EncryptedFileKeys(FileKeys):
    """The keys of an encrypted file.

    Args:
        keys: the data keys of the open store.
    """

    def __init__(self, keys: DataKeys) -> None:
        self._keys = keys
        self.seal = Sealing(keys)

    async def mark(self, connection: sqlite3.Connection, names: Sequence[Name]) -> Sequence[str]:
        """Mark the data keys of owners that are erased; return their ids."""
        return await WrittenKeyTable(connection).mark(names)

    async def destroy(self, connection: sqlite3.Connection, key_ids: Sequence[str]) -> None:
        """Destroy data keys that `mark` returned."""
        self._keys.forget()
        await WrittenKeyTable(connection).destroy(key_ids)

    def created(self, connection: sqlite3.Connection) -> None:
        """Create the tables of keys."""
        if not self._keys.is_off:
            add_tables(connection)
