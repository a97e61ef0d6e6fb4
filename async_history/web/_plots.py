"""Plots as plain numbers, for templates to draw: bars in time, and shares of a whole."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from async_history._core.records.records import HistoryRecord

WIDTH: Final = 720
HEIGHT: Final = 140
_COLUMNS: Final = 48
_OTHER_EVENT: Final = "other"
EVENTS: Final = ("ADD", "UPDATE", "DELETE", _OTHER_EVENT)


@dataclass(frozen=True, slots=True)
class Box:
    """A part of a column: its event, records, and position and size in the drawing."""

    event: str
    x: float
    y: float
    width: float
    height: float
    count: int
    begin: datetime


@dataclass(frozen=True, slots=True)
class Timeline:
    """Records in time, in columns of equal duration, stacked by event."""

    boxes: Sequence[Box]
    begin: datetime
    end: datetime
    highest: int


@dataclass(frozen=True, slots=True)
class Share:
    """The number of records that have a value, and the length of its bar in percent."""

    name: str | None
    count: int
    percent: float


def timeline(records: Iterable[HistoryRecord]) -> Timeline | None:
    """Return the plot of when records occurred; None if no time is known."""
    times = [(found, _event(one)) for one in records if (found := one.occurred_at) is not None]
    if not times:
        return None
    begin, end = min(times)[0], max(times)[0]
    span = (end - begin) or timedelta(seconds=1)
    counts = Counter((min(int((at - begin) / span * _COLUMNS), _COLUMNS - 1), e) for at, e in times)
    columns = Counter[int]()
    for (column, _), count in counts.items():
        columns[column] += count
    highest = max(columns.values())
    boxes = []
    for column in columns:
        y = float(HEIGHT)
        for event in EVENTS:
            if count := counts[column, event]:
                height = HEIGHT * count / highest
                y -= height
                x = column * WIDTH / _COLUMNS
                at = begin + span * column / _COLUMNS
                boxes.append(Box(event, x, y, WIDTH / _COLUMNS - 1, height, count, at))
    return Timeline(boxes, begin, end, highest)


def by_event(records: Iterable[HistoryRecord]) -> Sequence[Share]:
    """Return the number of records of each event."""
    return _shares(map(_event, records), len(EVENTS))


def by_actor(records: Iterable[HistoryRecord], most: int) -> Sequence[Share]:
    """Return the number of records of the `most` most frequent actors; None: not known."""
    return _shares((one.actor_id for one in records), most)


def _event(record: HistoryRecord) -> str:
    return str(record.event) if record.event in EVENTS else _OTHER_EVENT


def _shares(values: Iterable[Hashable], most: int) -> Sequence[Share]:
    counts = Counter(values).most_common(most)
    return [
        Share(None if value is None else str(value), count, 100 * count / counts[0][1])
        for value, count in counts
    ]
