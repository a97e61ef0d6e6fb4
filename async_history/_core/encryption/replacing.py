"""Replacement of data keys: texts are sealed under new keys, and the old ones are removed.

First the keys are retired. When the recording transactions that may not have seen that have ended,
they seal no more texts. Then their texts are sealed again, under the owners' new keys. After a kill
at any point, it can be repeated: keys that are already retired are replaced too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from async_history._core.encryption.data_keys import DataKeys
from async_history._core.encryption.decrypting import opened_message_row, opened_texts
from async_history._core.encryption.encrypting import keys_of, sealed_row, sealed_texts
from async_history._core.encryption.sealed_records import owner_of_session
from async_history._core.encryption.sealing import DataKey, Keys, key_ids
from async_history._core.encryption.stored_texts import (
    CONTENT,
    SCOPE,
    TEXT_COLUMNS,
    Rewriting,
    StoredMessage,
    StoredTexts,
    TextLimits,
    TextStore,
    TextTransaction,
)
from async_history._core.operations.operation_log import OperationLog, logged
from async_history._core.operations.operations import StoreOperation
from async_history._core.operations.progress import Progress
from async_history._core.writing.erased_names import Name
from async_history.errors import StorageError


@dataclass(frozen=True, slots=True, kw_only=True)
class DataKeyReplacement:
    """The report of `replace_data_keys`."""

    data_keys: int
    """Number of removed data keys."""
    records: int
    """Number of records encrypted under new keys."""
    messages: int
    """Number of buffered messages encrypted under new keys."""


async def replace_data_keys(
    store: TextStore,
    keys: DataKeys,
    names: Sequence[Name],
    log: OperationLog,
    operation: StoreOperation,
    on_progress: Progress | None,
    limits: TextLimits,
) -> DataKeyReplacement:
    """Replace data keys.

    Args:
        names: scopes of owners whose keys are replaced; if empty, all keys.

    Raises:
        KeyMissing, StorageCorrupt: a text cannot be decrypted. It is kept, and so are the old keys.
    """
    async with logged(log, operation) as tally:
        old = await store.in_transaction(partial(_retire, keys, names))
        total = await store.count_records()
        rewriting = Rewriting(store, tally, on_progress, total, limits)
        step = partial(_replace_records, keys)
        await rewriting.records(lambda texts: texts.retired_records, step)
        await rewriting.messages(partial(_replace_messages, keys, old))
        await store.in_transaction(lambda texts: texts.table.remove(old))
    return DataKeyReplacement(data_keys=len(old), records=tally.records, messages=tally.messages)


async def _retire(keys: DataKeys, names: Sequence[Name], texts: TextTransaction) -> Sequence[str]:
    await texts.lock_keys()
    await keys.require_current(texts.table)
    await keys.find_mark(texts.table)
    if keys.is_off:
        raise StorageError(
            "encryption is being turned off: decrypt() completes that, encrypt() undoes it"
        )
    if names:
        for name in names:
            await texts.retire_keys_of(name)
    else:
        await texts.retire_keys()
    return await texts.retired_keys()


async def _replace_records(
    keys: DataKeys, texts: TextTransaction, found: Sequence[StoredTexts]
) -> int:
    known = await keys.load(key_ids(text for row in found for text in row[-4:]), texts.table)
    used = await keys_of(texts, [row.owner for row in found])
    work = partial(_replaced, found, known, used, keys.index_key)
    await texts.replace_records(await texts.compute(work))
    return len(found)


def _replaced(
    rows: Sequence[StoredTexts], known: Keys, used: Sequence[DataKey], index_key: bytes
) -> list[StoredTexts]:
    opened = [opened_texts(row, known) for row in rows]
    return [
        sealed_texts(row, _columns(row), key, index_key)
        for row, key in zip(opened, used, strict=True)
    ]


def _columns(row: StoredTexts) -> list[str]:
    return [name for name in TEXT_COLUMNS if type(getattr(row, name)) is str]


async def _replace_messages(
    keys: DataKeys, old: Sequence[str], texts: TextTransaction, found: Sequence[StoredMessage]
) -> int:
    retired = set(old)
    rows = [one for one in found if not retired.isdisjoint(key_ids([one.row[CONTENT]]))]
    known = await keys.load(key_ids(one.row[CONTENT] for one in rows), texts.table)
    used = await keys_of(texts, [owner_of_session(one.row[SCOPE]) for one in rows])
    opened = [opened_message_row(one, known) for one in rows]
    await texts.replace_messages(
        [one._replace(row=sealed_row(one.row, key)) for one, key in zip(opened, used, strict=True)]
    )
    return len(rows)
