"""Turning encryption off: all texts are decrypted in place, then the keys are removed.

First all texts are decrypted without a change, because afterwards a text that does not open cannot
be told from a clear text that looks sealed. Then a transaction adds the mark `OFF` and retires all
data keys. When the recording transactions that may not have seen that have ended, every manager
records in clear, and a text that names no data key of the store is clear. When no other text is
left, the data keys are removed. After a kill at any point, it can be repeated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from async_history._core.encryption.data_keys import DataKeys, Mark
from async_history._core.encryption.encrypting import finish_turning_on
from async_history._core.encryption.key_statements import OFF
from async_history._core.encryption.sealed_records import opened_json, opened_text
from async_history._core.encryption.sealing import Keys, key_ids
from async_history._core.encryption.stored_texts import (
    CONTENT,
    Rewriting,
    StoredMessage,
    StoredTexts,
    TextLimits,
    TextStore,
    TextTransaction,
)
from async_history._core.operations.operation_log import OperationLog, Tally, logged
from async_history._core.operations.operations import new_operation
from async_history._core.operations.progress import Progress
from async_history._core.wording import counted
from async_history.errors import StorageError

DECRYPT: Final = "decrypt"
"""The kind of the operation in the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecryptionReport:
    """The report of `decrypt`."""

    records: int
    """Number of records of which a text, the context or the cause was decrypted."""
    messages: int
    """Number of buffered messages whose content was decrypted."""

    def outcome(self) -> str:
        """Return the outcome as one sentence for people."""
        return (
            f"decrypted {counted(self.records, 'record')} and "
            f"{counted(self.messages, 'message')}; the history is opened without keys now"
        )


async def decrypt(
    store: TextStore,
    keys: DataKeys,
    log: OperationLog,
    on_progress: Progress | None,
    limits: TextLimits,
) -> DecryptionReport:
    """Decrypt all sealed texts, step by step, then remove the keys.

    Raises:
        KeyMissing, StorageCorrupt: a text cannot be decrypted. Nothing was changed.
    """
    await store.require_decryptable()
    async with logged(log, new_operation(DECRYPT)) as tally:
        await finish_turning_on(store, keys)
        await _check(store, keys, limits)
        mark = await store.in_transaction(partial(turn_off, keys))
        total = await store.count_records()
        rewriting = Rewriting(store, tally, on_progress, total, limits)
        step = partial(_open_records, keys, mark)
        await rewriting.records(lambda texts: texts.sealed_records, step)
        await rewriting.messages(partial(_open_messages, keys, mark))
        await store.in_transaction(partial(_end, keys, mark))
    await store.finish_decrypting()
    return DecryptionReport(records=tally.records, messages=tally.messages)


async def _check(store: TextStore, keys: DataKeys, limits: TextLimits) -> None:
    """Decrypt all texts, without a change, if encryption is on."""
    if await store.in_transaction(lambda texts: keys.find_mark(texts.table)) is None:
        rewriting = Rewriting(store, Tally(), None, 0, limits)
        step = partial(_check_records, keys)
        await rewriting.records(lambda texts: texts.sealed_records, step)
        await rewriting.messages(partial(_check_messages, keys))


async def _check_records(
    keys: DataKeys, texts: TextTransaction, found: Sequence[StoredTexts]
) -> int:
    await _opened_records(keys, texts, found)
    return 0


async def _check_messages(
    keys: DataKeys, texts: TextTransaction, found: Sequence[StoredMessage]
) -> int:
    await _opened_messages(keys, texts, found)
    return 0


async def turn_off(keys: DataKeys, texts: TextTransaction) -> Mark:
    """Let new records stay in clear; return the mark.

    Raises:
        StorageError: encryption was turned on since the texts were checked.
    """
    await texts.lock_keys()
    mark = await keys.find_mark(texts.table)
    if mark is None:
        await keys.require_current(texts.table)
        mark = await keys.add_mark(OFF, texts.table)
    elif mark.id != OFF:
        raise StorageError(_TURNED_ON)
    await texts.retire_keys()
    await texts.turn_off()
    return mark


_TURNED_ON: Final = "encryption was turned on meanwhile (encrypt): call decrypt() again"


async def _end(keys: DataKeys, mark: Mark, texts: TextTransaction) -> None:
    await texts.lock_keys()
    await _require_off(keys, mark, texts)
    await texts.end()


async def _require_off(keys: DataKeys, mark: Mark, texts: TextTransaction) -> None:
    """Check that encryption has been off since the mark was made.

    If it was turned on and off again, the mark is another one: texts sealed in between may be in a
    part that this decryption has already passed.
    """
    if await keys.find_mark(texts.table) != mark:
        raise StorageError(_TURNED_ON)


async def _open_records(
    keys: DataKeys, mark: Mark, texts: TextTransaction, found: Sequence[StoredTexts]
) -> int:
    await _require_off(keys, mark, texts)
    opened = await _opened_records(keys, texts, found)
    changed = [new for old, new in zip(found, opened, strict=True) if new != old]
    await texts.replace_records(changed)
    return len(changed)


async def _opened_records(
    keys: DataKeys, texts: TextTransaction, found: Sequence[StoredTexts]
) -> list[StoredTexts]:
    known = await keys.load(key_ids(text for row in found for text in row[-4:]), texts.table)
    return await texts.compute(partial(_opened, found, known))


def _opened(rows: Sequence[StoredTexts], keys: Keys) -> list[StoredTexts]:
    return [opened_texts(row, keys) for row in rows]


def opened_texts(row: StoredTexts, keys: Keys) -> StoredTexts:
    """Return a record's texts decrypted; clear texts unchanged.

    Raises:
        KeyMissing, StorageCorrupt: as `opened_record`.
    """
    return row._replace(
        old_memory=opened_text(row.old_memory, "old_memory", row.id, keys),
        new_memory=opened_text(row.new_memory, "new_memory", row.id, keys),
        context=_opened_json(row.context, "context", row.id, keys),
        cause=_opened_json(row.cause, "cause", row.id, keys),
    )


def _opened_json(text: str | None, column: str, record_id: str, keys: Keys) -> str | None:
    if text is None or not keys.is_json_sealed(text):
        return text
    return opened_json(text, column, record_id, keys)


async def _open_messages(
    keys: DataKeys, mark: Mark, texts: TextTransaction, found: Sequence[StoredMessage]
) -> int:
    await _require_off(keys, mark, texts)
    opened = await _opened_messages(keys, texts, found)
    await texts.replace_messages(opened)
    return len(opened)


async def _opened_messages(
    keys: DataKeys, texts: TextTransaction, found: Sequence[StoredMessage]
) -> list[StoredMessage]:
    """Return the sealed ones of some messages, decrypted."""
    known = await keys.load(key_ids(one.row[CONTENT] for one in found), texts.table)
    return [opened_message_row(one, known) for one in found if known.is_sealed(one.row[CONTENT])]


def opened_message_row(one: StoredMessage, keys: Keys) -> StoredMessage:
    """Return a stored message with its content opened.

    Raises:
        KeyMissing, StorageCorrupt: as `opened_record`.
    """
    message_id, scope, role, content, *rest = one.row
    content = opened_text(content, "content", message_id, keys, scope)
    return one._replace(row=(message_id, scope, role, content, *rest))
