"""A writer's cache between batches, so that most batches need no look-up.

It is valid while `state.version` is unchanged. Each batch compares the version when it reserves its
numbers, and that they follow its own: else the tables are others, or were restored.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from async_history._core.records.owners import Owner
from async_history._core.records.records import HistoryRecord
from async_history._core.writing.erased_names import earliest_begin
from async_history._core.writing.submissions import AddRecords
from async_history._sql.rows import event_bit
from async_history._sql.tables import SPAN_BITS

_MOST: Final = 100_000
"""Most memories in the cache."""
_SLACK: Final = 3_600_000_000
"""An hour in microseconds, by which spans are widened, so that not every batch updates them."""


@dataclass(slots=True)
class Span:
    """Bounds of a span's records: their times, events, and whether one has no time."""

    first_time: int | None = None
    last_time: int | None = None
    events: int = 0
    has_undated: bool = False

    def join(self, other: "Span") -> None:
        """Extend it to cover another."""
        times = [one for one in (self.first_time, other.first_time) if one is not None]
        self.first_time = min(times, default=None)
        times = [one for one in (self.last_time, other.last_time) if one is not None]
        self.last_time = max(times, default=None)
        self.events |= other.events
        self.has_undated = self.has_undated or other.has_undated


def spans_of(
    first: int, records: Sequence[HistoryRecord], instants: Sequence[int | None]
) -> dict[int, Span]:
    """Return the spans of records whose numbers begin with `first`."""
    spans: dict[int, Span] = {}
    begin = 0
    while begin < len(records):
        number = (first + begin) >> SPAN_BITS
        end = ((number + 1) << SPAN_BITS) - first
        times = [one for one in instants[begin:end] if one is not None]
        events = 0
        for event in {record.event for record in records[begin:end]}:
            events |= event_bit(event)
        spans[number] = Span(
            min(times) - _SLACK if times else None,
            max(times) + _SLACK if times else None,
            events,
            None in instants[begin:end],
        )
        begin = end
    return spans


@dataclass(slots=True)
class Known:
    """The cached owners of memories and spans, as of a version, and whether others write.

    Attributes:
        last: the number of the newest record after this writer's latest batch; None before it.
        is_alone: whether no other process wrote between its latest two batches.
        complete: the spans whose bounds are known completely.
    """

    version: int = 0
    erased_at: int | None = None
    owners: OrderedDict[str, Owner | None] = field(default_factory=OrderedDict)
    spans: dict[int, Span] = field(default_factory=dict)
    last: int | None = None
    is_alone: bool = False
    complete: set[int] = field(default_factory=set)

    @property
    def has_owners(self) -> bool:
        """Whether a memory may have an owner: see `Transaction.version`."""
        return self.version > 0

    def forget(self) -> None:
        """Clear the cache."""
        self.version = 0
        self.erased_at = None
        self.owners.clear()
        self.spans.clear()
        self.complete.clear()

    def learn(
        self, version: int, erased_at: int | None, owners: Mapping[str, Owner | None]
    ) -> None:
        """Add what a committed transaction has read and written."""
        if version != self.version:
            self.forget()
        self.version = version
        self.erased_at = erased_at
        if self.has_owners:
            self.owners.update(owners)
            while len(self.owners) > _MOST:
                self.owners.popitem(last=False)

    def learn_numbers(self, before: int, last: int) -> None:
        """Store the number before a committed batch, and its last number."""
        self.is_alone = before == self.last
        if not self.is_alone:
            self.complete.clear()
        self.last = last

    def owners_of(
        self, additions: Sequence[AddRecords], records: Iterable[HistoryRecord]
    ) -> list[Owner | None] | None:
        """Return the owners of the records' memories; None if they have to be looked up.

        A memory in the cache was not erased.
        """
        if self.erased_at is not None and earliest_begin(additions) <= self.erased_at:
            return None
        found: list[Owner | None] = []
        for record in records:
            given = record.owner
            if not self.has_owners:
                if given is not None:
                    return None
                found.append(None)
                continue
            if record.memory_id not in self.owners:
                return None
            owner = self.owners[record.memory_id]
            if given is not None and (owner is None or owner.contradictions(given)):
                return None
            found.append(owner)
        return found

    def unknown_spans(self, spans: Mapping[int, Span]) -> dict[int, Span]:
        """Return the spans that exceed their cached bounds."""
        found: dict[int, Span] = {}
        for number, span in spans.items():
            known = self.spans.get(number)
            if known is None or not _covers(known, span):
                found[number] = span
        return found

    def widened_spans(self, spans: Mapping[int, Span], last: int) -> dict[int, Span] | None:
        """Return the spans that exceed their cached bounds, with their new bounds.

        None if the bounds of one are not known: it has records up to the number `last`.
        """
        found = self.unknown_spans(spans)
        for number, span in found.items():
            if number in self.complete:
                span.join(self.spans[number])
            elif number << SPAN_BITS <= last:
                return None
        return found

    def learn_spans(self, spans: Mapping[int, Span]) -> None:
        """Store the complete bounds of the newest spans."""
        for number, span in spans.items():
            self.spans[number] = span
        while len(self.spans) > 2:
            del self.spans[min(self.spans)]
        self.complete.update(spans)
        self.complete &= self.spans.keys()


def _covers(known: Span, span: Span) -> bool:
    if span.events & ~known.events or (span.has_undated and not known.has_undated):
        return False
    if span.first_time is None or span.last_time is None:
        return True
    return (
        known.first_time is not None
        and known.last_time is not None
        and known.first_time <= span.first_time + _SLACK
        and known.last_time >= span.last_time - _SLACK
    )
