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
    position: int
    id: str
    message: Message


class Position(Protocol):
    """A position in the order: after the record with this id."""

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

    def after(self, position: Position | None) -> list[tuple[int, HistoryRecord]]:
        """Return the records after a position, whose own record must still exist."""
        if position is not None and self.positions.get(position.id) != position.position:
            raise CursorGone(f"the record {position.id} is gone; begin again without the cursor")
        start = 0 if position is None else position.position
        return [item for item in self.records.items() if item[0] > start]
