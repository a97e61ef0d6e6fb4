"""The conditions of a query, and the access path that finds its records in order.

An index finds a memory's records. A mark finds the records of an owner, an actor, a role or a
cause. Both give the records in order, and start where the spans say that records of the time may
begin. Spans alone find the records of a time or an event. Other queries read all records in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

from sqlalchemy import ColumnElement, FromClause, Select, and_, or_, select, union_all
from sqlalchemy.engine import Dialect

from async_history._core.reading.filters import Filter
from async_history._core.records.recording import INDEXED_CAUSES
from async_history._core.records.values import plain
from async_history._core.writing.erased_names import microseconds
from async_history._sql.dialects import contains, has_name, in_parts
from async_history._sql.marks import mark_of
from async_history._sql.names import key_of, keys_of
from async_history._sql.rows import columns_read, event_bit
from async_history._sql.tables import SPAN_BITS, Tables

_MOST_RANGES: Final = 8
"""Most ranges, with one statement each, for records that an index finds."""
_MOST_MERGED: Final = 100
"""Most memories whose records are merged, with one look-up each; the records of more are sorted."""


@dataclass(frozen=True, slots=True)
class Range:
    """A range of record numbers, both ends included; None is open."""

    first: int | None = None
    last: int | None = None


def parts_of(wanted: Filter) -> list[Filter]:
    """Return a filter as several, each of as many memories as one statement takes."""
    if wanted.memory_ids is None or len(wanted.memory_ids) <= 1:
        return [wanted]
    return [replace(wanted, memory_ids=tuple(part)) for part in in_parts(wanted.memory_ids)]


class Search:
    """The statements that find the records of a filter."""

    def __init__(self, wanted: Filter, tables: Tables, dialect: Dialect) -> None:
        self._wanted = wanted
        self._tables = tables
        self._dialect = dialect
        self._is_newest = wanted.order == "newest"
        history = tables.history
        conditions: list[ColumnElement[bool]] = []
        self._keys = keys_of(wanted.memory_ids or ())
        for name, value in (
            ("actor_id", wanted.actor_id),
            ("role", wanted.role),
            ("event", plain(wanted.event)),
            *wanted.owner,
        ):
            if value is not None:
                conditions.append(history.c[name] == key_of(value))
        if wanted.since is not None:
            conditions.append(history.c.occurred_at >= microseconds(wanted.since))
        if wanted.until is not None:
            conditions.append(history.c.occurred_at < microseconds(wanted.until))
        if wanted.text is not None:
            conditions.append(
                or_(
                    contains(dialect, history.c.old_memory, wanted.text),
                    contains(dialect, history.c.new_memory, wanted.text),
                )
            )
        if wanted.cause:
            conditions.append(history.c.cause.is_not(None))
        self._conditions = conditions

    @property
    def is_exact(self) -> bool:
        """Whether all found records match. If not, their causes have to be compared."""
        return not self._wanted.cause

    @property
    def marks(self) -> list[int]:
        """The marks that all matching records have."""
        wanted = self._wanted
        marks = [
            mark_of(f"cause {key}", text) for key, text in wanted.cause if key in INDEXED_CAUSES
        ]
        marks += [mark_of(name, value) for name, value in wanted.owner]
        if wanted.actor_id is not None:
            marks.append(mark_of("actor_id", wanted.actor_id))
        if wanted.role is not None:
            marks.append(mark_of("role", wanted.role))
        return marks

    @property
    def by_spans(self) -> bool:
        """Whether the spans limit where records may be."""
        wanted = self._wanted
        if (wanted.since, wanted.until) != (None, None):
            return True
        return wanted.event is not None and not self._has_index

    @property
    def _has_index(self) -> bool:
        """Whether an index finds the records, whatever their time."""
        return self._wanted.memory_ids is not None or bool(self.marks)

    def spans(self) -> Select[Any]:
        """Return the SELECT of the spans that may have matching records, in order."""
        wanted, spans = self._wanted, self._tables.spans
        found = select(spans.c.span).order_by(spans.c.span)
        if wanted.since is not None:
            found = found.where(spans.c.last_time >= microseconds(wanted.since))
        if wanted.until is not None:
            found = found.where(spans.c.first_time < microseconds(wanted.until))
        if wanted.event is not None:
            bit = event_bit(wanted.event)
            found = found.where(spans.c.events.in_([n for n in range(16) if n & bit]))
        return found

    def ranges(self, spans: Sequence[int], after: int | None) -> list[Range]:
        """Return the ranges of adjacent spans after a position, in the order of the query."""
        starts = [b for a, b in pairwise([-2, *spans]) if b != a + 1]
        ends = [a for a, b in pairwise([*spans, (spans[-1] if spans else 0) + 2]) if b != a + 1]
        found = [
            Range(first << SPAN_BITS, ((last + 1) << SPAN_BITS) - 1)
            for first, last in zip(starts, ends, strict=True)
        ]
        if self._has_index and len(found) > _MOST_RANGES:
            found = [Range(found[0].first, found[-1].last)]
        through = self._wanted.through
        if self._is_newest:
            found.reverse()
            found = [one for one in found if after is None or (one.first or 0) < after]
            return [one for one in found if through is None or (one.last or 0) >= through]
        found = [one for one in found if after is None or (one.last or 0) > after]
        return [one for one in found if through is None or (one.first or 0) <= through]

    def page(self, within: Range, after: int | None, limit: int) -> Select[Any]:
        """Return the SELECT of the next records in a range, after a position."""
        history, columns = self._tables.history, columns_read(self._tables)
        if len(self._keys) == 1:
            return self._of_memory(self._keys[0], columns, within, after, limit)
        if 1 < len(self._keys) <= _MOST_MERGED:
            each = [
                self._of_memory(key, [history.c.seq], within, after, limit) for key in self._keys
            ]
            first = union_all(*[select(one.subquery().c.seq) for one in each]).subquery()
            merged = select(*columns).join(first, history.c.seq == first.c.seq)
            return merged.order_by(self._in_order(first.c.seq)).limit(limit)
        position, found = self._found(*columns)
        found = self._within(found, position, within, after)
        # An index finds the records of several memories, but not in the table's order.
        return found.order_by(self._in_order(position + 0 if self._keys else position)).limit(limit)

    def count(self, within: Range, *columns: Any) -> Select[Any]:
        """Return a SELECT over all matching records in a range."""
        position, found = self._found(*columns)
        return self._within(found, position, within, None)

    def _of_memory(
        self, key: str, columns: Sequence[Any], within: Range, after: int | None, limit: int
    ) -> Select[Any]:
        """Return the SELECT of the next records of a memory."""
        history = self._tables.history
        found = select(*columns).where(
            has_name(self._dialect, history.c.memory_id, key), *self._conditions
        )
        found = self._within(found, history.c.seq, within, after)
        order = (history.c.memory_id, history.c.seq)
        return found.order_by(*map(self._in_order, order)).limit(limit)

    def _in_order(self, column: Any) -> Any:
        return column.desc() if self._is_newest else column

    def _within(
        self, found: Select[Any], position: Any, within: Range, after: int | None
    ) -> Select[Any]:
        """Return a SELECT limited to the records in a range, after a position."""
        if within.first is not None:
            found = found.where(position >= within.first)
        if within.last is not None:
            found = found.where(position <= within.last)
        if after is not None:
            found = found.where(position < after if self._is_newest else position > after)
        through = self._wanted.through
        if through is not None:
            found = found.where(position >= through if self._is_newest else position <= through)
        return found

    def _found(self, *columns: Any) -> tuple[Any, Select[Any]]:
        """Return the column of positions, and a SELECT from the marks or from the records."""
        history, marks = self._tables.history, self._tables.marks
        found = select(*columns).where(*self._conditions)
        if self._wanted.memory_ids is not None:
            found = found.where(history.c.memory_id.in_(self._keys))
        elif self.marks:
            first, *others = self.marks
            joined: FromClause = marks
            for mark in others:  # so that records are read only if they have all marks
                other = marks.alias()
                joined = joined.join(other, and_(other.c.seq == marks.c.seq, other.c.mark == mark))
            joined = joined.join(history, history.c.seq == marks.c.seq)
            return marks.c.seq, found.select_from(joined).where(marks.c.mark == first)
        return history.c.seq, found.select_from(history)
