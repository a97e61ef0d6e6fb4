"""Values that other programs stored and that can't be read: the check names them and goes on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from types import NoneType
from typing import Any, Final

from async_history._core.records.json_object import JsonObject, is_readable
from async_history._core.records.records import HistoryRecord
from async_history._core.wording import counted
from async_history._sql.rows import ALL_COLUMNS, instant_of, record_from_row
from async_history.errors import StorageCorrupt

_NAMED: Final = 10
"""Most records that are named."""
_WHOLE: Final = (int, bool, Decimal)
_NUMBERS: Final = {"seq", "is_deleted", "occurred_at"}
_INSTANT: Final = ALL_COLUMNS.index("occurred_at")
_NO_INSTANT: Final = (
    "The row with seq {seq} of {table} is damaged: occurred_at is not a number. UPDATE {table} "
    "SET occurred_at = {right} WHERE seq = {seq}, and check again."
)


def is_whole(value: object) -> bool:
    """Return whether a column of numbers has one; SQLite also stores texts in it."""
    return type(value) in _WHOLE


def read_record(row: Sequence[Any], table: str) -> HistoryRecord | str:
    """Return the record of a row of `ALL_COLUMNS`, or a sentence about its damaged value."""
    wrong = _wrong_column(tuple(map(type, row)))
    if wrong == "occurred_at":
        record = read_record([*row[:_INSTANT], None, *row[_INSTANT + 1 :]], table)
        if isinstance(record, str):
            return record
        instant = instant_of(record)
        right = "NULL" if instant is None else instant
        return _NO_INSTANT.format(table=table, seq=row[0], right=right)
    if wrong is not None:
        kind = "number" if wrong in _NUMBERS else "text"
        return damaged(row[0], table, f"{wrong} is not a {kind}")
    if row[-1] is not None and not is_readable(JsonObject(row[-1])):
        return damaged(row[0], table, "long_names is not a JSON object")
    try:
        record = record_from_row(row)
    except StorageCorrupt as error:
        return damaged(row[0], table, str(error))
    if isinstance(record.cause, JsonObject) and not is_readable(record.cause):
        return damaged(row[0], table, "cause is not a JSON object")
    return record


def fault_of_texts(names: Sequence[str], texts: Sequence[Any], encoding: str) -> str | None:
    """Return the first fault of texts given as bytes, with None in the place of NULL.

    Args:
        encoding: that of the SQLite file: UTF-8, UTF-16le or UTF-16be.
    """
    for name, text in zip(names, texts, strict=True):
        if text is None:
            continue
        if not isinstance(text, bytes):
            return f"{name} is not a text"
        try:
            text.decode(encoding)
        except UnicodeDecodeError:
            return f"{name} is not {encoding}"
    return None


def damaged(seq: int, table: str, fault: str) -> str:
    """Return the sentence about a row of the records' table."""
    return f"The row with seq {seq} of {table} is damaged: {fault}. Restore it from a backup."


@lru_cache(1_024)
def _wrong_column(types: tuple[type, ...]) -> str | None:
    """Return the first column whose value has another type than the table; None if none has."""
    for name, kind in zip(ALL_COLUMNS, types, strict=True):
        if kind is not NoneType and kind not in (_WHOLE if name in _NUMBERS else (str,)):
            return name
    return None


@dataclass(slots=True)
class Damaged:
    """The sentences about the first damaged records, and the number of all."""

    count: int = 0
    sentences: list[str] = field(default_factory=list)

    def add(self, sentence: str) -> None:
        """Add a damaged record."""
        self.count += 1
        if len(self.sentences) < _NAMED:
            self.sentences.append(sentence)

    def faults(self) -> list[str]:
        """Return the sentences, and one about the records that are not named."""
        if self.count <= _NAMED:
            return self.sentences
        more = counted(self.count - _NAMED, "more record is", "more records are")
        return [*self.sentences, f"{more} damaged: check again after mending the first ones."]
