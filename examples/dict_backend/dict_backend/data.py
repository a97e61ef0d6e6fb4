"""The stored data. Like a file or a server, it outlives its managers."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from typing import NamedTuple, Protocol

from async_history import backend as api
from async_history.backend import HistoryRecord, Message
from async_history.errors import CursorGone


class Saved(NamedTuple):
    place: int
    id: str
    message: Message


class RecordPlace(Protocol):
    """The place of a record: its position and its id."""

    @property
    def position(self) -> int: ...

    @property
    def id(self) -> str: ...


@dataclass(slots=True)
class Kept:
    """The data. Positions grow and are never reused, not even after a reset."""

    records: dict[int, HistoryRecord] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    messages: dict[str, list[Saved]] = field(default_factory=lambda: defaultdict(list))
    operations: dict[str, api.StoreOperation] = field(default_factory=dict)
    owners: dict[str, api.Owner] = field(default_factory=dict)
    erased: dict[bytes, datetime] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def of_memory(self, memory_id: str) -> list[tuple[int, HistoryRecord]]:
        return [item for item in self.records.items() if item[1].memory_id == memory_id]

    def after(self, place: RecordPlace | None) -> list[tuple[int, HistoryRecord]]:
        """Return the records after a place, whose own record must still exist."""
        if place is not None and self.positions.get(place.id) != place.position:
            raise CursorGone(f"the record {place.id} is gone; begin again without the cursor")
        start = 0 if place is None else place.position
        return [item for item in self.records.items() if item[0] > start]
