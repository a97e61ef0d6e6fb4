"""Encryption in place of clear texts: from before encryption, or of a program without keys.

It runs in small transactions between the writes. Each finds texts in clear and replaces them. After
a kill at any point, it can be repeated: sealed texts stay sealed.

A clear text may look sealed. While the mark `TURNING_ON` exists, the text is clear if it names no
data key of the store. The mark is removed once the history was searched for such texts. From then
on each text that looks sealed is, or is damaged.
"""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

from async_history._core.encryption.data_keys import DataKeys, Mark
from async_history._core.encryption.key_statements import OFF, TURNING_ON
from async_history._core.encryption.sealed_records import (
    opened_json,
    opened_text,
    owner_of_session,
    sealed_columns,
    sealed_message,
)
from async_history._core.encryption.sealing import DataKey, Keys, is_sealed, key_ids
from async_history._core.encryption.stored_texts import (
    CONTENT,
    SCOPE,
    TEXT_COLUMNS,
    TURNED_OFF,
    Rewriting,
    Row,
    StoredMessage,
    StoredTexts,
    TextLimits,
    TextStore,
    TextTransaction,
)
from async_history._core.operations.operation_log import OperationLog, Tally, logged
from async_history._core.operations.operations import new_operation
from async_history._core.operations.progress import Progress
from async_history._core.records.owners import Owner
from async_history._core.wording import counted
from async_history._core.writing.message_buffers import MessageRow
from async_history.errors import StorageCorrupt, StorageError

ENCRYPT: Final = "encrypt"
"""The kind of the operation in the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncryptionReport:
    """The report of `encrypt`."""

    records: int
    """Number of records of which a text, the context or the cause was encrypted."""
    messages: int
    """Number of buffered messages whose content was encrypted."""
    clear: int
    """Number of records that still have a text in clear: written meanwhile by a program without
    keys, or of a type that is not text."""
    remains: tuple[str, ...] = ()
    """Where else texts may be in clear, and what to do about it: one sentence each."""

    def outcome(self) -> str:
        """Return the outcome as one sentence for people."""
        left = f"; {counted(self.clear, 'record')} in clear still" if self.clear else ""
        return (
            f"encrypted {counted(self.records, 'record')} and "
            f"{counted(self.messages, 'message')}{left}"
        )


async def encrypt(
    store: TextStore,
    keys: DataKeys,
    log: OperationLog,
    on_progress: Progress | None,
    limits: TextLimits,
) -> EncryptionReport:
    """Seal all clear texts, step by step.

    Raises:
        KeyMissing: the store no longer has keys. Nothing was changed.
    """
    async with logged(log, new_operation(ENCRYPT)) as tally:
        await store.in_transaction(partial(turn_on, keys))
        await finish_turning_on(store, keys)
        total = await store.count_clear()
        rewriting = Rewriting(store, tally, on_progress, total, limits)
        step = partial(_seal_records, keys)
        await rewriting.records(lambda texts: texts.clear_records, step)
        await rewriting.records(lambda texts: texts.detailed_records, step)
        await rewriting.messages(partial(_seal_messages, keys))
        await store.in_transaction(_note_whole)
        remains = await store.overwrite()
        clear = await store.count_clear()
    return EncryptionReport(
        records=tally.records, messages=tally.messages, clear=clear, remains=tuple(remains)
    )


async def finish_turning_on(store: TextStore, keys: DataKeys) -> None:
    """Seal the clear texts that look sealed, if encryption is being turned on.

    From then on each text that looks sealed counts as sealed, and as damaged if it does not open.
    It can be interrupted and repeated, and several managers can do it at the same time. Each waits
    for the transactions that may still write in clear, because any of them may be the first to end.

    Raises:
        StorageLocked: one of those stays open. Texts are read as before.
    """
    mark = await store.in_transaction(partial(_turning_on, keys))
    if mark is None:
        return
    rewriting = Rewriting(store, Tally(), None, 0, _SEARCHED)
    await rewriting.records(
        lambda texts: texts.sealed_records, partial(_if_marked, mark, keys, _seal_records)
    )
    await rewriting.messages(partial(_if_marked, mark, keys, _seal_lookalikes))
    await store.in_transaction(partial(_end_turning_on, keys, mark))


_SEARCHED: Final = TextLimits(rows=10_000)
"""Most rows that one transaction searches. Few of them, if any, are returned."""


async def _turning_on(keys: DataKeys, texts: TextTransaction) -> Mark | None:
    """Return the mark if encryption is being turned on, and let the store wait for writers."""
    mark = await keys.find_mark(texts.table)
    if mark is None or mark.id != TURNING_ON:
        return None
    await texts.lock_keys()
    return mark


async def _if_marked(
    mark: Mark,
    keys: DataKeys,
    seal: Callable[[DataKeys, TextTransaction, Sequence[Row]], Coroutine[Any, Any, int]],
    texts: TextTransaction,
    found: Sequence[Row],
) -> int:
    """Seal rows, unless another manager has finished, or has turned encryption off, meanwhile."""
    return await seal(keys, texts, found) if await keys.find_mark(texts.table) == mark else 0


async def _end_turning_on(keys: DataKeys, mark: Mark, texts: TextTransaction) -> None:
    if await keys.find_mark(texts.table) == mark:
        await texts.table.remove([mark.id])


async def turn_on(keys: DataKeys, texts: TextTransaction) -> None:
    """Seal all new records, again."""
    await keys.require_current(texts.table)
    await keys.find_mark(texts.table)
    if keys.is_off:
        await texts.lock_keys()
        mark = await keys.find_mark(texts.table)
        if mark is not None and mark.id == OFF:
            await texts.table.remove([OFF])
            await keys.add_mark(TURNING_ON, texts.table)
    await texts.turn_on()


async def _note_whole(texts: TextTransaction) -> None:
    await texts.note_whole()


async def _seal_records(
    keys: DataKeys, texts: TextTransaction, found: Sequence[StoredTexts]
) -> int:
    known = await keys.load(key_ids(text for row in found for text in row[-4:]), texts.table)
    clear = [(row, columns) for row in found if (columns := _clear_columns(row, known))]
    used = await keys_of(texts, [row.owner for row, _ in clear])
    work = partial(_sealed, clear, used, keys.index_key)
    await texts.replace_records(await texts.compute(work))
    return len(clear)


def _clear_columns(row: StoredTexts, known: Keys) -> list[str]:
    """Return the columns of a record's clear texts."""
    return [
        name
        for name, column in _COLUMNS.items()
        if type(text := getattr(row, name)) is str and not column.is_sealed(known, text)
    ]


async def keys_of(texts: TextTransaction, owners: Sequence[Owner | None]) -> list[DataKey]:
    """Return the data key of each owner.

    Raises:
        StorageError: encryption was turned off meanwhile.
    """
    keys = [key for key in await texts.keys_of(owners) if key is not None]
    if len(keys) < len(owners):
        raise StorageError(TURNED_OFF)
    return keys


def _sealed(
    rows: Sequence[tuple[StoredTexts, Sequence[str]]], keys: Sequence[DataKey], index_key: bytes
) -> list[StoredTexts]:
    return [
        sealed_texts(row, columns, key, index_key)
        for (row, columns), key in zip(rows, keys, strict=True)
    ]


def sealed_texts(
    row: StoredTexts, columns: Sequence[str], key: DataKey, index_key: bytes
) -> StoredTexts:
    """Return a record's texts with some columns, whose texts are in clear, sealed.

    Raises:
        StorageError: a sealed text does not open as the one that it would replace.
    """
    clear = {name: getattr(row, name) for name in columns}
    old, new, context, cause = map(clear.get, TEXT_COLUMNS)
    sealed = sealed_columns(row.id, (old, new, context, cause), key, index_key)
    stored: dict[str, Any] = dict(zip(TEXT_COLUMNS, sealed, strict=True))
    known = Keys({key.id: key})
    for name, text in clear.items():
        opened = partial(_COLUMNS[name].opened, stored[name], name, row.id, known)
        _require_opens(opened, text)
    return row._replace(**{name: stored[name] for name in columns})


class _Column(NamedTuple):
    is_sealed: Callable[[Keys, str], bool]
    opened: Callable[[str, str, str, Keys], Any]


_TEXT: Final = _Column(Keys.is_sealed, opened_text)
_JSON: Final = _Column(Keys.is_json_sealed, opened_json)
_COLUMNS: Final = dict(zip(TEXT_COLUMNS, (_TEXT, _TEXT, _JSON, _JSON), strict=True))
"""Whether a column's text is sealed, and how it is opened."""


def sealed_row(row: MessageRow, key: DataKey) -> MessageRow:
    """Return a message's row with its content sealed.

    Raises:
        StorageError: as `sealed_texts`.
    """
    sealed = sealed_message(row, key)
    content, scope, keys = sealed[CONTENT], row[SCOPE], Keys({key.id: key})
    _require_opens(partial(opened_text, content, "content", row[0], keys, scope), row[CONTENT])
    return sealed


def _require_opens(opened: Callable[[], Any], clear: Any) -> None:
    """Check that a text opens as before, because the clear text is not kept."""
    try:
        is_same = opened() == clear
    except StorageCorrupt:
        is_same = False
    if not is_same:
        raise StorageError(
            "a text did not open after it was encrypted, and stays as it was: the memory of this "
            "machine may be faulty. Call this again"
        )


async def _seal_lookalikes(
    keys: DataKeys, texts: TextTransaction, found: Sequence[StoredMessage]
) -> int:
    return await _seal_messages(keys, texts, [one for one in found if is_sealed(one.row[CONTENT])])


async def _seal_messages(
    keys: DataKeys, texts: TextTransaction, found: Sequence[StoredMessage]
) -> int:
    known = await keys.load(key_ids(one.row[CONTENT] for one in found), texts.table)
    clear = [
        one
        for one in found
        if type(one.row[CONTENT]) is str and not known.is_sealed(one.row[CONTENT])
    ]
    used = await keys_of(texts, [owner_of_session(one.row[SCOPE]) for one in clear])
    await texts.replace_messages(
        [one._replace(row=sealed_row(one.row, key)) for one, key in zip(clear, used, strict=True)]
    )
    return len(clear)
