"""The check that each record of a memory continues the previous one.

An unknown text, for example after an erasure, continues every text. The state before a memory's
first record is unknown too, because earlier records may have been pruned.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final

from async_history._core.checking.check_report import BrokenRecord, ChainFault
from async_history._core.records.records import EVENTS, Event, HistoryRecord, is_alive
from async_history._core.records.rows import Row

_MEMORY, _OLD, _NEW, _EVENT, _IS_DELETED = 1, 2, 3, 4, 7
"""Positions of columns in a row."""
_UNKNOWN_TEXT: Final = 1 << 70
_IS_SETTLED: Final = 1 << 72
"""States that no text has: see `ChainWalk`."""


def broken_records(records: Sequence[HistoryRecord]) -> list[BrokenRecord]:
    """Return the records of a memory that do not continue the previous one.

    Args:
        records: all records of the memory, oldest first.
    """
    found = list(_breaks(records))
    if not found or all(one.fault is ChainFault.UNKNOWN_EVENT for one in found):
        return found
    in_time = _in_order_of_time(records)
    if in_time is None or any(
        one.fault is not ChainFault.UNKNOWN_EVENT for one in _breaks(in_time)
    ):
        return found
    pairs = zip(records, in_time, strict=True)
    return [
        BrokenRecord(memory_id=one.memory_id, record_id=one.id, fault=ChainFault.ORDER)
        for one, other in pairs
        if one is not other
    ]


def _breaks(records: Sequence[HistoryRecord]) -> Iterator[BrokenRecord]:
    before: HistoryRecord | None = None
    for record in records:
        fault = _fault(before, record)
        if fault is not None:
            yield BrokenRecord(memory_id=record.memory_id, record_id=record.id, fault=fault)
        before = record


def _fault(before: HistoryRecord | None, record: HistoryRecord) -> ChainFault | None:
    if record.event not in EVENTS:
        return ChainFault.UNKNOWN_EVENT
    if before is None:
        return None
    if is_alive(before) is (record.event == Event.ADD):
        return ChainFault.EVENT
    texts = (before.new_memory, record.old_memory)
    if is_alive(before) and None not in texts and texts[0] != texts[1]:
        return ChainFault.TEXT
    return None


def _in_order_of_time(records: Sequence[HistoryRecord]) -> list[HistoryRecord] | None:
    """Return records in the order of their times; None if it is the same or unknown."""
    instants: list[datetime] = []
    for record in records:
        if record.occurred_at is None:
            return None
        instants.append(record.occurred_at)
    order = sorted(range(len(records)), key=instants.__getitem__)
    return None if order == list(range(len(records))) else [records[place] for place in order]


class ChainWalk:
    """A scan of rows in the order of recording, which finds memories to check closely.

    One number is kept per memory: a hash of its text and whether it exists.

    Args:
        most: memories to keep.
        bits, part: select the memories whose hash ends in the `bits` bits of `part`.
    """

    def __init__(self, most: int, bits: int, part: int) -> None:
        self._most = most
        self._mask = (1 << bits) - 1
        self._part = part
        self._states: dict[int, int] = {}

    @property
    def memories(self) -> int:
        """The number of memories seen."""
        return len(self._states)

    @property
    def is_full(self) -> bool:
        """Whether there are more memories than can be kept."""
        return len(self._states) > self._most

    def suspects(self, rows: Sequence[Row]) -> list[str]:
        """Return memories of these rows whose chains may be broken, each only once per walk."""
        found = []
        states, mask, part = self._states, self._mask, self._part
        for row in rows:
            memory_id = row[_MEMORY]
            key = hash(memory_id)
            if key & mask != part or not isinstance(memory_id, str):
                continue
            before, text, event = states.get(key), row[_NEW], row[_EVENT]
            if before == _IS_SETTLED:
                continue
            is_there = event != Event.DELETE and not row[_IS_DELETED]
            states[key] = is_there + (_UNKNOWN_TEXT if text is None else 2 * hash(text))
            if event not in EVENTS or _is_suspect(before, row[_OLD], event):
                states[key] = _IS_SETTLED
                found.append(memory_id)
        return found


def _is_suspect(before: int | None, old: Any, event: Any) -> bool:
    if before is None:
        return False
    was_there = bool(before & 1)
    if was_there is (event == Event.ADD):
        return True
    known = before - was_there
    return was_there and old is not None and known not in (_UNKNOWN_TEXT, 2 * hash(old))
