"""The rows that new records add to the tables, once their numbers are known."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from async_history._core.records.records import HistoryRecord
from async_history._sql.marks import marks_of
from async_history._sql.rows import are_plain, full_row, instant_of, plain_row
from async_history._sql.writing.known import Span, spans_of


class NumberedRecords(NamedTuple):
    """Rows of new records."""

    rows: Sequence[tuple[Any, ...]]
    """Rows of `PLAIN_COLUMNS` if `are_plain`, else of `ALL_COLUMNS`."""
    are_plain: bool
    marks: Sequence[tuple[int, int]]
    """Pairs of mark and number, without duplicates."""
    spans: dict[int, Span]
    """The spans of the records, by number, with their bounds."""


def numbered(last: int, records: Sequence[HistoryRecord]) -> NumberedRecords:
    """Number records from the one after `last`."""
    instants = [instant_of(record) for record in records]
    numbers = range(last + 1, last + 1 + len(records))
    is_plain = are_plain(records)
    rows = map(plain_row if is_plain else full_row, numbers, records, instants)
    marks = [
        (mark, seq)
        for seq, record in zip(numbers, records, strict=True)
        for mark in marks_of(record)
    ]
    return NumberedRecords(
        list(rows),
        is_plain,
        list(dict.fromkeys(marks)),
        spans_of(last + 1, records, instants),
    )
