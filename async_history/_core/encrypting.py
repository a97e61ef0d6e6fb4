"""Encryption in place of clear texts: from before encryption, or of a program without keys.

It runs in small transactions between the writes. Each finds texts in clear and replaces them. After
a kill at any point, it can be repeated: sealed texts stay sealed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from async_history._core.data_keys import DataKeys
from async_history._core.key_statements import OFF
from async_history._core.message_buffers import MessageRow
from async_history._core.operations import OperationLog, Tally, logged, new_operation
from async_history._core.owners import Owner
from async_history._core.progress import Progress
from async_history._core.sealed_records import (
    Keys,
    key_ids,
    opened_json,
    opened_text,
    owner_of_session,
    sealed_anyway,
    sealed_details,
    sealed_message,
    sealed_text,
)
from async_history._core.sealing import BEGIN, DataKey, is_json_sealed, is_sealed
from async_history._core.stored_texts import (
    CONTENT,
    SCOPE,
    TURNED_OFF,
    Rewriting,
    StoredMessage,
    StoredTexts,
    TextLimits,
    TextStore,
    TextTransaction,
)
from async_history._core.wording import counted
from async_history.errors import KeyMissing, StorageCorrupt, StorageError

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
        total = await store.count_clear()
        rewriting = Rewriting(store, tally, on_progress, total, limits)
        step = partial(_seal_records, keys)
        await rewriting.records(lambda texts: texts.clear_records, step)
        await rewriting.records(lambda texts: texts.detailed_records, step)
        await rewriting.messages(_seal_messages)
        await store.in_transaction(_note_whole)
        remains = await store.overwrite()
        clear = await store.count_clear()
    return EncryptionReport(
        records=tally.records, messages=tally.messages, clear=clear, remains=tuple(remains)
    )


async def seal_lookalikes(store: TextStore, keys: DataKeys) -> None:
    """Seal the clear texts that look like sealed ones, as soon as encryption is turned on.

    Later each text of that form counts as sealed, and as damaged if it does not open. What others
    have sealed meanwhile opens, and stays.
    """
    rewriting = Rewriting(store, Tally(), None, 0, _SEARCHED)
    await rewriting.records(lambda texts: texts.sealed_records, partial(_seal_unopened, keys))
    await rewriting.messages(partial(_seal_unopened_messages, keys))


_SEARCHED: Final = TextLimits(rows=10_000)
"""Most rows that one transaction searches. Few of them, if any, are returned."""


async def _seal_unopened(
    keys: DataKeys, texts: TextTransaction, found: Sequence[StoredTexts]
) -> int:
    known = await keys.load(key_ids(text for row in found for text in row[-4:]), texts.table)
    clear = [(row, wrong) for row in found if (wrong := _unopened(row, known))]
    used = await keys_of(texts, [row.owner for row, _ in clear])
    await texts.replace_records(
        [
            _with_sealed(row, wrong, key, keys.index_key)
            for (row, wrong), key in zip(clear, used, strict=True)
        ]
    )
    return len(clear)


def _unopened(row: StoredTexts, keys: Keys) -> dict[str, str]:
    """Return those of a record's values, by column, that look sealed and do not open."""
    found: dict[str, str] = {}
    for column, opened in _OPENED.items():
        value = getattr(row, column)
        looks_sealed = is_sealed if opened is opened_text else is_json_sealed
        if type(value) is str and looks_sealed(value):
            try:
                opened(value, column, row.id, keys)
            except (KeyMissing, StorageCorrupt):
                found[column] = value
    return found


def _with_sealed(
    row: StoredTexts, clear: Mapping[str, str], key: DataKey, index_key: bytes
) -> StoredTexts:
    old, new, context, cause = map(clear.get, _OPENED)
    sealed = sealed_anyway(row.id, (old, new, context, cause), key, index_key)
    stored: dict[str, Any] = dict(zip(_OPENED, sealed, strict=True))
    return row._replace(**{column: stored[column] for column in clear})


async def _seal_unopened_messages(
    keys: DataKeys, texts: TextTransaction, found: Sequence[StoredMessage]
) -> int:
    sealed = [one for one in found if is_sealed(one.row[CONTENT])]
    known = await keys.load(key_ids(one.row[CONTENT] for one in sealed), texts.table)
    clear: list[StoredMessage] = []
    for one in sealed:
        message_id, scope, content = one.row[0], one.row[SCOPE], one.row[CONTENT]
        try:
            opened_text(content, "content", message_id, known, scope)
        except (KeyMissing, StorageCorrupt):
            clear.append(one)
    await _seal_these(texts, clear)
    return len(clear)


async def turn_on(keys: DataKeys, texts: TextTransaction) -> None:
    """Seal all new records, again."""
    await keys.require_current(texts.table)
    await texts.remove_keys([OFF])
    await texts.turn_on()


async def _note_whole(texts: TextTransaction) -> None:
    await texts.note_whole()


async def _seal_records(
    keys: DataKeys, texts: TextTransaction, found: Sequence[StoredTexts]
) -> int:
    clear = [row for row in found if _has_clear(row)]
    used = await keys_of(texts, [row.owner for row in clear])
    work = partial(_sealed, clear, used, keys.index_key)
    await texts.replace_records(await texts.compute(work))
    return len(clear)


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
    rows: Sequence[StoredTexts], keys: Sequence[DataKey], index_key: bytes
) -> list[StoredTexts]:
    return [sealed_texts(row, key, index_key) for row, key in zip(rows, keys, strict=True)]


def sealed_texts(row: StoredTexts, key: DataKey, index_key: bytes) -> StoredTexts:
    """Return a record's texts sealed; sealed texts and other values unchanged.

    Raises:
        StorageError: a sealed text does not open as the one that it would replace.
    """
    context, cause = sealed_details(row.id, row.context, row.cause, key, index_key)
    sealed = row._replace(
        old_memory=sealed_text(row.old_memory, "old_memory", row.id, key),
        new_memory=sealed_text(row.new_memory, "new_memory", row.id, key),
        context=context,
        cause=cause,
    )
    for column, opened in _OPENED.items():
        clear, stored = getattr(row, column), getattr(sealed, column)
        if stored != clear:
            _require_opens(partial(opened, stored, column, row.id, {key.id: key}), clear)
    return sealed


_OPENED: Final[Mapping[str, Callable[[str, str, str, Keys], Any]]] = {
    "old_memory": opened_text,
    "new_memory": opened_text,
    "context": opened_json,
    "cause": opened_json,
}
"""The function that opens a sealed text of each column."""


def sealed_row(row: MessageRow, key: DataKey) -> MessageRow:
    """Return a message's row with its content sealed.

    Raises:
        StorageError: as `sealed_texts`.
    """
    sealed = sealed_message(row, key)
    content, scope, keys = sealed[CONTENT], row[SCOPE], {key.id: key}
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


async def _seal_messages(texts: TextTransaction, found: Sequence[StoredMessage]) -> int:
    clear = [one for one in found if _is_clear_text(one.row[CONTENT])]
    await _seal_these(texts, clear)
    return len(clear)


async def _seal_these(texts: TextTransaction, clear: Sequence[StoredMessage]) -> None:
    used = await keys_of(texts, [owner_of_session(one.row[SCOPE]) for one in clear])
    await texts.replace_messages(
        [one._replace(row=sealed_row(one.row, key)) for one, key in zip(clear, used, strict=True)]
    )


def _has_clear(row: StoredTexts) -> bool:
    return any(map(_is_clear_text, (row.old_memory, row.new_memory))) or any(
        type(text) is str and not is_json_sealed(text) for text in (row.context, row.cause)
    )


def _is_clear_text(text: object) -> bool:
    return type(text) is str and not text.startswith(BEGIN)
