"""The keys of a history in PostgreSQL, for an erasure: comparing texts, and destroying keys."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from hashlib import sha256
from typing import Any, Final

from async_history._core.encryption.data_keys import DataKeys
from async_history._core.encryption.key_statements import KeyReads
from async_history._core.encryption.sealed_reader import with_keys
from async_history._core.encryption.sealed_records import opened_text
from async_history._core.encryption.sealing import Keys, key_ids
from async_history._core.removing.erase_transaction import TEXTS
from async_history._core.writing.erased_names import Name
from async_history._postgres.key_statements import KeyChange

Rows = Sequence[Sequence[Any]]

_TABLES: Final = ("history", "messages", "owners")
_DIGEST: Final = "pg_catalog.sha256(pg_catalog.convert_to({}, 'UTF8'::pg_catalog.name))"
DIGESTS: Final = ", ".join(map(_DIGEST.format, TEXTS))
"""The columns of texts in clear, as digests that the server computes."""
STORED_TEXTS: Final = ", ".join(TEXTS)
"""The columns of sealed texts, as they are."""


class EraseKeys:
    """The keys of a history, for an erasure: by default none.

    Attributes:
        text_columns: the columns of records' texts to read.
        tables: the tables to vacuum.
    """

    text_columns = DIGESTS
    tables: Sequence[str] = _TABLES

    async def digests(self, read: Callable[[], Awaitable[Rows]], table: KeyReads) -> Rows:
        """Read rows, and return them with digests instead of texts."""
        return await read()

    async def mark(
        self, names: Sequence[Name], change: Callable[[KeyChange], Awaitable[Sequence[str]]]
    ) -> Sequence[str]:
        """Mark the data keys of owners that are erased, in the transaction that notes them; return
        their ids."""
        return ()

    async def destroy(
        self, key_ids: Sequence[str], change: Callable[[KeyChange], Awaitable[None]]
    ) -> None:
        """Destroy data keys that `mark` returned, in a transaction."""


class EncryptedEraseKeys(EraseKeys):
    """The keys of an encrypted history, for an erasure.

    Args:
        keys: the data keys of the open store.
    """

    text_columns = STORED_TEXTS
    tables = (*_TABLES, "data_keys")

    def __init__(self, keys: DataKeys) -> None:
        self._keys = keys

    async def digests(self, read: Callable[[], Awaitable[Rows]], table: KeyReads) -> Rows:
        """Read rows, open their texts, and return them with digests instead of texts."""
        load = partial(self._keys.load, table=table)
        rows, keys = await with_keys(await read(), read, _ids_of_keys, load)
        return [
            (
                *row[:-2],
                *(
                    _digest(text, column, row[1], keys)
                    for text, column in zip(row[-2:], TEXTS, strict=True)
                ),
            )
            for row in rows
        ]

    async def mark(
        self, names: Sequence[Name], change: Callable[[KeyChange], Awaitable[Sequence[str]]]
    ) -> Sequence[str]:
        """Mark the data keys of owners that are erased, in the transaction that notes them; return
        their ids."""
        return await change(lambda table: table.mark(names))

    async def destroy(
        self, key_ids: Sequence[str], change: Callable[[KeyChange], Awaitable[None]]
    ) -> None:
        """Destroy data keys that `mark` returned, in a transaction."""
        self._keys.forget()
        await change(lambda table: table.destroy(key_ids))


def _ids_of_keys(rows: Rows) -> set[str]:
    return key_ids(text for row in rows for text in row[-2:])


def _digest(text: str | None, column: str, record_id: str, keys: Keys) -> bytes | None:
    if text is None:
        return None
    opened: str = opened_text(text, column, record_id, keys)
    return sha256(opened.encode()).digest()
