"""Histories as JSON lines: one object per record, with mem0's columns, owner, context and cause."""

import json
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from typing import Any, Final

from async_history._core.json_line import json_line
from async_history._core.manager import HistoryManager
from async_history._core.records.json_object import parse_json
from async_history._core.records.records import COLUMNS, DETAILS, Event
from async_history._core.records.rows import ROW_FIELDS, Row, details_given
from async_history._core.validation import shown
from async_history._transfer.sources import (
    PAGE_BYTES,
    PAGE_RECORDS,
    HistorySource,
    RecordSource,
    check_row,
)
from async_history.errors import InvalidInput


def dump_lines(history: HistoryManager) -> AsyncIterator[str]:
    """Yield every record as a line of JSON, without the line end, in the order of recording.

    The lines are those of `async-history log --json`. `copy_history(JsonLines(lines), target)`
    restores exactly the same history. Message buffers are not included.

    Args:
        history: an open manager.

    Raises:
        InvalidInput: while iterating: a column has bytes, stored by another program.
    """
    if not isinstance(history, HistoryManager):
        raise InvalidInput(f"history must be a HistoryManager, not {type(history).__name__}")
    _ = history.store  # raises where it is not open
    return _lines(history)


async def _lines(history: HistoryManager) -> AsyncIterator[str]:
    async for rows in HistorySource(history).pages():
        for row in rows:
            try:
                yield json_line(_object(row))
            except TypeError:
                check_row(row)
                raise


def _object(row: Row) -> dict[str, Any]:
    line = dict(zip(COLUMNS, row[: len(COLUMNS)], strict=True))
    for name, text in zip(DETAILS, row[len(COLUMNS) :], strict=True):
        if text is not None:
            line[name] = parse_json(text)
    return line


class JsonLines(RecordSource):
    """JSON lines of `dump_lines`, as the source of a copy.

    Each line is an object with at least an id, memory_id and event (use `async-history record` for
    lines without ids). Missing fields are None; a missing `is_deleted` follows from the event.
    `owner`, `context` and `cause` are objects. Events and times are not changed. Empty lines are
    skipped.

    Args:
        lines: texts, or bytes of UTF-8. An open file can be used, if reading it may block the loop.
            What can be iterated over once only, such as a file or a generator, can be copied once:
            to repeat a copy, make another `JsonLines` of all the lines.
    """

    def __init__(self, lines: Iterable[str | bytes] | AsyncIterable[str | bytes]) -> None:
        if isinstance(lines, str | bytes) or not isinstance(lines, Iterable | AsyncIterable):
            raise InvalidInput(f"lines must be several lines, not {type(lines).__name__}")
        self._lines = lines
        self._were_read = False

    def __repr__(self) -> str:
        return f"<JsonLines of {type(self._lines).__name__}>"

    async def pages(self, records: int = PAGE_RECORDS) -> AsyncIterator[Sequence[Row]]:
        """Yield the lines' records.

        Raises:
            InvalidInput: a line is not a record (the message has its number), or lines that can be
                iterated over once only were read before.
        """
        if self._were_read and isinstance(self._lines, Iterator | AsyncIterator):
            raise InvalidInput(
                "these lines were read before, in part or all of them, and can be read once only; "
                "make JsonLines of all of them again"
            )
        self._were_read = True
        rows: list[Row] = []
        size = number = 0
        async for line in _each(self._lines):
            number += 1
            if not isinstance(line, str | bytes):
                raise InvalidInput(f"line {number}: not text or bytes, but {shown(line)}")
            if line.strip():
                try:
                    rows.append(_row(line))
                except InvalidInput as error:
                    raise InvalidInput(f"line {number}: {error}") from error
                size += len(line)
            if len(rows) == records or size >= PAGE_BYTES:
                yield rows
                rows, size = [], 0
        if rows:
            yield rows


async def _each(
    lines: Iterable[str | bytes] | AsyncIterable[str | bytes],
) -> AsyncIterator[str | bytes]:
    if isinstance(lines, AsyncIterable):
        async for line in lines:
            yield line
    else:
        for line in lines:
            yield line


def _row(line: str | bytes) -> Row:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidInput("not a JSON object with a record's fields")
    if not fields.keys() <= _KNOWN:
        raise InvalidInput(f"{min(fields.keys() - _KNOWN)!r} is not a field of a history record")
    row = (*map(fields.get, _TEXTS_BEFORE), _is_deleted(fields), *map(fields.get, _TEXTS_AFTER))
    row += details_given(*map(fields.get, DETAILS))
    check_row(row)
    return row


def _is_deleted(fields: dict[str, Any]) -> bool:
    value = fields.get("is_deleted")
    if value is None:
        return bool(fields.get("event") == Event.DELETE)
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise InvalidInput(f"is_deleted must be true, false, 0 or 1, not {shown(value)}")


_KNOWN: Final = frozenset(ROW_FIELDS)
_IS_DELETED: Final = COLUMNS.index("is_deleted")
_TEXTS_BEFORE: Final = COLUMNS[:_IS_DELETED]
_TEXTS_AFTER: Final = COLUMNS[_IS_DELETED + 1 :]
