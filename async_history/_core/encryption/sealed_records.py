"""Sealing and opening (decrypting) the texts of records, rows and messages."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from async_history._core.encryption.sealing import (
    USES,
    DataKey,
    Keys,
    Token,
    damaged,
    is_json_sealed,
    is_sealed,
    json_taken_apart,
    key_id_of,
    new_nonce,
    new_nonces,
    place_of,
    stored_bytes,
    token_under,
    tokens_of,
)
from async_history._core.records.json_object import JsonObject, json_from_text, json_text
from async_history._core.records.messages import Message, message_from_row
from async_history._core.records.owners import Owner, new_owner
from async_history._core.records.records import (
    CAUSE,
    COLUMNS,
    CONTEXT,
    Event,
    Fields,
    HistoryRecord,
    fields_in_order,
    made_record,
)
from async_history._core.records.rows import Row
from async_history._core.writing.erased_names import names_of_session
from async_history._core.writing.message_buffers import MessageRow
from async_history.errors import KeyMissing, StorageCorrupt

_ID, _OLD, _NEW, _EVENT = map(COLUMNS.index, ("id", "old_memory", "new_memory", "event"))


# Sealing


def uses_of(owners: Iterable[Owner | None]) -> dict[Owner | None, int]:
    """Return the number of uses of each owner's key for some records."""
    return {owner: USES * count for owner, count in Counter(owners).items()}


SealedValues = tuple[str | None, str | None, str | None, str | None, dict[str, Any] | None]
"""A record's texts, context and cause as they are stored, and the content of the cause's JSON."""


class SealedTexts(NamedTuple):
    """The sealed values of records, one sequence for each column.

    `tokens` has the content of each cause's JSON, with its tokens.
    """

    old_memory: Sequence[str | None]
    new_memory: Sequence[str | None]
    context: Sequence[str | None]
    cause: Sequence[str | None]
    tokens: Sequence[Mapping[str, Any] | None]


def sealed_values(
    records: Iterable[Fields], keys: Sequence[DataKey | None], index_key: bytes
) -> Iterator[SealedValues]:
    """Yield the values of records sealed, each record under its key; in clear without a key.

    Each is sealed when it is requested, because the garbage collector visits all that are kept.
    """
    token = token_under(index_key)
    for record, key, nonces in zip(records, keys, new_nonces(len(keys)), strict=True):
        if key is None:
            cause = record[CAUSE]
            yield record[_OLD], record[_NEW], json_text(record[CONTEXT]), json_text(cause), cause
        else:
            yield _sealed_values(record, key, nonces, token)


def sealed_fields(
    records: Sequence[Fields], keys: Sequence[DataKey | None], index_key: bytes
) -> Iterator[Fields]:
    """Yield records' fields with texts, contexts and causes sealed, like `sealed_values`."""
    sealed = sealed_values(records, keys, index_key)
    for record, key, values in zip(records, keys, sealed, strict=True):
        yield record if key is None else _stored_fields(record, values)


def _stored_fields(record: Fields, values: SealedValues) -> Fields:
    record_id, memory_id, _, _, *middle, owner, _, _ = record
    old, new, context, cause, content = values
    return (
        record_id,
        memory_id,
        old,
        new,
        *middle,
        owner,
        None if context is None else JsonObject(context),
        None if cause is None else JsonObject(cause, content),
    )


def _sealed_values(
    record: Fields, key: DataKey, nonces: Sequence[bytes], token: Token
) -> SealedValues:
    seal, record_id = key.seal, record[_ID]
    old, new, context, cause = record[_OLD], record[_NEW], record[CONTEXT], record[CAUSE]
    content: dict[str, Any] | None = None
    if old is not None:
        old = seal(old, f"old_memory\0{record_id}".encode(), nonces[0])
    if new is not None:
        new = seal(new, f"new_memory\0{record_id}".encode(), nonces[1])
    if context is not None:
        place = f"context\0{record_id}\0".encode()
        context = f'{{"sealed":"{seal(json_text(context) or "", place, nonces[2])}"}}'
    if cause is not None:
        content, tokens = tokens_of(token, cause)
        place = f"cause\0{record_id}\0{tokens}".encode()
        text = seal(json_text(cause) or "", place, nonces[3])
        cause, content["sealed"] = f'{{{tokens}"sealed":"{text}"}}', text
    return old, new, context, cause, content


def sealed_columns(
    record_id: str,
    texts: tuple[str | None, str | None, str | None, str | None],
    key: DataKey,
    index_key: bytes,
) -> tuple[str | None, str | None, str | None, str | None]:
    """Return a record's clear texts, and the JSON of its context and cause, sealed."""
    fields: list[Any] = [record_id, *[None] * (CONTEXT - 1), *map(json_from_text, texts[-2:])]
    fields[_OLD], fields[_NEW], *_ = texts
    ((*sealed, _),) = sealed_values([tuple(fields)], [key], index_key)
    old, new, context, cause = sealed
    return old, new, context, cause


def owner_of_session(session_scope: str) -> Owner | None:
    """Return the owner that a session scope names."""
    return new_owner({name: value for name, value in names_of_session(session_scope) if value})


def sealed_message(row: MessageRow, key: DataKey) -> MessageRow:
    """Return a message's row with its content sealed."""
    message_id, scope, role, content, name, created_at = row
    if content is not None:
        content = key.seal(content, place_of("content", message_id, scope), new_nonce())
    return message_id, scope, role, content, name, created_at


def sealed_messages(rows: Sequence[MessageRow], keys: Sequence[DataKey | None]) -> list[MessageRow]:
    """Return messages' rows sealed, each under its key; in clear if its key is None."""
    return [
        row if key is None else sealed_message(row, key)
        for row, key in zip(rows, keys, strict=True)
    ]


# Opening


def texts_of(record: HistoryRecord) -> Iterator[object]:
    """Yield the values of a record that may be sealed."""
    yield record.old_memory
    yield record.new_memory
    for value in (record.context, record.cause):
        if type(value) is JsonObject:
            yield value.text


def text_record(record_id: str, text: str, context: str | None) -> HistoryRecord:
    """Return a record with only a stored text and context, to open them."""
    fields: list[Any] = [None] * (CAUSE + 1)
    fields[_ID], fields[_NEW], fields[_EVENT] = record_id, text, Event.ADD
    fields[CONTEXT] = json_from_text(context)
    return made_record(*fields)


def have_sealed(records: Iterable[HistoryRecord]) -> bool:
    """Return whether a text of some records looks like a sealed one."""
    return any(is_sealed(one.new_memory) or is_sealed(one.old_memory) for one in records)


def texts_of_row(row: Row) -> Iterator[object]:
    """Yield the values of a row that may be sealed."""
    yield row[_OLD]
    yield row[_NEW]
    yield row[-2]
    yield row[-1]


def opened_record(record: HistoryRecord, keys: Keys) -> HistoryRecord:
    """Return a record with its texts decrypted. Clear texts are unchanged.

    Raises:
        KeyMissing: the store does not have the key.
        StorageCorrupt: a text was damaged or moved.
    """
    old, new, context, cause = record.old_memory, record.new_memory, record.context, record.cause
    if not any(map(_may_be_sealed, texts_of(record))):
        return record
    record_id = record.id
    fields: Any = list(fields_in_order(record))
    if old is not None:
        fields[_OLD] = opened_text(old, "old_memory", record_id, keys)
    if new is not None:
        fields[_NEW] = opened_text(new, "new_memory", record_id, keys)
    for place, name, value in ((-2, "context", context), (-1, "cause", cause)):
        if type(value) is JsonObject and keys.is_json_sealed(value.text):
            fields[place] = JsonObject(opened_json(value.text, name, record_id, keys))
    return made_record(*fields)


def opened_row(row: Row, keys: Keys) -> Row:
    """Return a row decrypted, like `opened_record`.

    Raises:
        KeyMissing, StorageCorrupt: as `opened_record`.
    """
    if not any(map(_may_be_sealed, texts_of_row(row))):
        return row
    values = list(row)
    values[_OLD] = opened_text(row[_OLD], "old_memory", row[_ID], keys)
    values[_NEW] = opened_text(row[_NEW], "new_memory", row[_ID], keys)
    for place, name in ((-2, "context"), (-1, "cause")):
        if keys.is_json_sealed(row[place]):
            values[place] = opened_json(row[place], name, row[_ID], keys)
    return tuple(values)


def opened_if_whole(row: Row, keys: Keys) -> Row:
    """Return a row as `opened_row` does; a damaged or moved one unchanged.

    Raises:
        KeyMissing: as `opened_record`.
    """
    try:
        return opened_row(row, keys)
    except StorageCorrupt:
        return row


def opened_message(row: Sequence[Any], session_scope: str, keys: Keys) -> Message:
    """Return the message of a row, as `message_from_row`, with its content decrypted.

    Raises:
        KeyMissing, StorageCorrupt: as `opened_record`.
    """
    message_id, role, content, name, created_at = row
    content = opened_text(content, "content", message_id, keys, session_scope)
    return message_from_row((message_id, role, content, name, created_at))


def _may_be_sealed(text: object) -> bool:
    return is_sealed(text) or is_json_sealed(text)


def opened_text(text: Any, column: str, record_id: str, keys: Keys, *names: str) -> Any:
    """Return a stored text decrypted; a clear text unchanged.

    Raises:
        KeyMissing, StorageCorrupt: as `opened_record`.
    """
    if not keys.is_sealed(text):
        return text
    place = place_of(column, _as_text(record_id), *names)
    return _opened(text, column, record_id, place, keys)


def opened_json(text: str, column: str, record_id: str, keys: Keys) -> str:
    """Return the JSON inside the JSON of a sealed text.

    Raises:
        KeyMissing, StorageCorrupt: as `opened_record`.
    """
    sealed, tokens = json_taken_apart(text, column, record_id)
    place = place_of(column, _as_text(record_id), tokens)
    return _opened(sealed, column, record_id, place, keys)


def _as_text(record_id: object) -> str:
    """Return a stored id as a text: a damaged one may be of another type."""
    return record_id if isinstance(record_id, str) else repr(record_id)


def _opened(sealed: Any, column: str, record_id: str, place: bytes, keys: Keys) -> str:
    key_id = key_id_of(sealed, column, record_id)
    key = keys.by_id.get(key_id)
    if key is None:
        raise KeyMissing(
            key_id,
            f"{column} of {record_id} can't be read: the store has no data key {key_id}. It "
            "was destroyed as its owner was erased (complete an interrupted erasure by calling it "
            "again), or the text is damaged or comes from another store",
        )
    text = key.open(stored_bytes(sealed, column, record_id), place)
    if text is None:
        raise damaged(column, record_id)
    return text
