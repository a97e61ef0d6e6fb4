"""Turning encryption off: all texts are decrypted in place, then the keys are removed.

The first transaction adds a key that seals nothing, `OFF`, and retires all data keys. It waits for
all recording transactions. From then on every manager records in clear. When no sealed text is
left, the other keys are removed. After a kill at any point, it can be repeated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from async_history._core.data_keys import DataKeys
from async_history._core.operations import OperationLog, logged, new_operation
from async_history._core.progress import Progress
from async_history._core.sealed_records import (
    Keys,
    key_ids,
    opened_json,
    opened_text,
)
from async_history._core.sealing import is_json_sealed, is_sealed
from async_history._core.stored_texts import (
    CONTENT,
    Rewriting,
    StoredMessage,
    StoredTexts,
    TextLimits,
    TextStore,
    TextTransaction,
)
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
        KeyMissing, StorageCorrupt: a text cannot be decrypted. It is kept, and so are the keys.
    """
    await store.require_decryptable()
    async with logged(log, new_operation(DECRYPT)) as tally:
        mark = await store.in_transaction(partial(turn_off, keys))
        total = await store.count_records()
        rewriting = Rewriting(store, tally, on_progress, total, limits)
        step = partial(_open_records, keys, mark)
        await rewriting.records(lambda texts: texts.sealed_records, step)
        await rewriting.messages(partial(_open_messages, keys, mark))
        await store.in_transaction(partial(_end, keys, mark))
    await store.finish_decrypting()
    return DecryptionReport(records=tally.records, messages=tally.messages)


async def turn_off(keys: DataKeys, texts: TextTransaction) -> bytes:
    """Let new records stay in clear; return the bytes of the key that marks this."""
    await texts.hold_writers()
    mark = await keys.find_mark(texts.table)
    if mark is None:
        await keys.require_current(texts.table)
        new = keys.new_mark()
        await texts.table.add([new])
        mark = keys.unwrapped(new)
    await texts.retire_keys()
    await texts.turn_off()
    return mark


async def _end(keys: DataKeys, mark: bytes, texts: TextTransaction) -> None:
    await texts.hold_writers()
    await _require_off(keys, mark, texts)
    await texts.end()


async def _require_off(keys: DataKeys, mark: bytes, texts: TextTransaction) -> None:
    """Check that encryption has been off since the mark was made.

    If it was turned on and off again, the mark is another one: texts sealed in between may be in a
    part that this decryption has already passed.
    """
    if await keys.find_mark(texts.table) != mark:
        raise StorageError("encryption was turned on meanwhile (encrypt): call decrypt() again")


async def _open_records(
    keys: DataKeys, mark: bytes, texts: TextTransaction, found: Sequence[StoredTexts]
) -> int:
    await _require_off(keys, mark, texts)
    stored = key_ids(text for row in found for text in row[-4:])
    known = await keys.load(stored, texts.table)
    await texts.replace_records(await texts.compute(partial(_opened, found, known)))
    return len(found)


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
    if text is None or not is_json_sealed(text):
        return text
    return opened_json(text, column, record_id, keys)


async def _open_messages(
    keys: DataKeys, mark: bytes, texts: TextTransaction, found: Sequence[StoredMessage]
) -> int:
    await _require_off(keys, mark, texts)
    sealed = [one for one in found if is_sealed(one.row[CONTENT])]
    known = await keys.load(key_ids(one.row[CONTENT] for one in sealed), texts.table)
    await texts.replace_messages([opened_message_row(one, known) for one in sealed])
    return len(sealed)


def opened_message_row(one: StoredMessage, keys: Keys) -> StoredMessage:
    """Return a stored message with its content opened.

    Raises:
        KeyMissing, StorageCorrupt: as `opened_record`.
    """
    message_id, scope, role, content, *rest = one.row
    content = opened_text(content, "content", message_id, keys, scope)
    return one._replace(row=(message_id, scope, role, content, *rest))
