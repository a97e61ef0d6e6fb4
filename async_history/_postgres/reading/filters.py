"""A query filter as SQL of PostgreSQL: the index ranges to read, and the conditions on their rows.

Results are in the order of `seq`. The code calls an index range in that order a list: the records
of a memory, those of an owner's scope or a cause, those of an event, a role and an actor, or all
records. A filter reads one list, or merges several. Conditions that no list covers (times, texts,
the actor of a named memory) are checked row by row.

With a time range, a list is read from the first record in it (see `time_chunks`), for the size of a
page and some more. If few of those rows are in the time range, the rest of the page is read the
other way: chunk by chunk, all records in the time range.

The SQL leaves the planner no choice, because without statistics, or with those of another memory,
it reads whole tables and lists. It uses an index for its order only if it expects many rows of
which few are read. So a list is a range condition on row values, in the order of the whole index.
The values and the page's limit are each in a SELECT of their own, so that the planner can't guess
from them: for an unknown LIMIT it expects a tenth of the rows.
"""

from collections.abc import Sequence
from typing import Any, Final

from async_history._core.reading.cursors import Cursor
from async_history._core.reading.filters import Filter
from async_history._core.records.json_object import json_object
from async_history._core.records.owners import SCOPES
from async_history._postgres.detail_columns import CAUSE_COLUMNS, cause_hash
from async_history._postgres.reading.direction import BACKWARD, FORWARD
from async_history._postgres.reading.lists import DETAIL_LISTS, KIND, Lists
from async_history._postgres.reading.time_chunks import TimeChunks
from async_history._postgres.rows import RECORD_COLUMNS, RECORD_NULLS

_NULLS: Final = ", ".join(RECORD_NULLS[1:])
"""NULLs in place of all columns of `RECORD_COLUMNS` except the first."""

Statement = tuple[str, Sequence[Any]]
"""SQL with a `{schema}` placeholder, and its arguments."""


def _pair(key: str, value: str) -> str:
    """Return a text that the JSON of a cause contains only if it has this value."""
    return json_object("cause", {key: value}).text[1:-1]


class Arguments(list[Any]):
    """A statement's arguments, numbered in the order in which they are added."""

    def take(self, value: object, kind: str = "text") -> str:
        """Add a value and return its placeholder in the SQL."""
        self.append(value)
        return f"${len(self)}::pg_catalog.{kind}"


class Search:
    """The statements of one filter.

    Args:
        is_distributed: whether the tables are distributed over the nodes of a Citus cluster, which
            can't join lists row by row: there the planner chooses.
    """

    def __init__(self, wanted: Filter, *, is_distributed: bool) -> None:
        self._is_distributed = is_distributed
        self._arguments = Arguments()
        take = self._arguments.take
        self._direction = direction = FORWARD if wanted.order == "oldest" else BACKWARD
        through = ""
        if wanted.through is not None:
            through = f"(SELECT {take(wanted.through, 'int8')})"
        self._within = [f"seq {direction.until} {through}"] if through else []
        given: dict[str, str | None] = {name: getattr(wanted, name) for name in ("actor_id", *KIND)}
        self._named = {name: take(str(value)) for name, value in given.items() if value is not None}
        self._memory = self._memories = None
        if wanted.memory_ids is not None and len(wanted.memory_ids) == 1:
            self._memory = take(wanted.memory_ids[0])
        elif wanted.memory_ids is not None:
            self._memories = take(list(wanted.memory_ids), "text[]")
        self._owner = {name: take(value) for name, value in wanted.owner}
        self._detail = self._list_of_details(wanted)
        self._of_list = wanted.memory_ids is not None or self._detail is not None
        self._lists = Lists(
            direction,
            memory=self._memory,
            memories=self._memories,
            detail=self._detail,
            named=self._named,
            through=through,
        )
        self._times = " AND ".join(
            # As text: see `joined_columns`. In a SELECT, or it would be parsed for each row.
            f"occurred_at {comparison} (SELECT {take(moment.isoformat())}::pg_catalog.timestamptz)"
            for comparison, moment in ((">=", wanted.since), ("<", wanted.until))
            if moment is not None
        )
        self._chunks = TimeChunks(self._times, direction, self._within)
        self._details = [
            *(f"{name} = {value}" for name, value in self._owner.items()),
            *(f"pg_catalog.strpos(cause, {take(_pair(*one))}) > 0" for one in wanted.cause),
        ]
        self._names = [f"{name} = {value}" for name, value in self._named.items()]
        self._texts = []
        if wanted.text is not None:
            text = take(wanted.text)
            self._texts.append(
                f"(pg_catalog.strpos(old_memory, {text}) > 0"
                f" OR pg_catalog.strpos(new_memory, {text}) > 0)"
            )
        not_in_lists = [
            *([self._times] if self._times else []),
            *(self._names if self._of_list else []),
            *self._details_by_row(),
            *self._texts,
        ]
        self._misses_some = bool(not_in_lists)
        self._by_row = not_in_lists if self._of_list else [*not_in_lists, *self._of_kind()]

    def _list_of_details(self, wanted: Filter) -> tuple[str, str] | None:
        """Return the column and the value of the list of a cause or an owner, if one is read.

        It is the first one of `DETAIL_LISTS`, which is likely to have the fewest records.
        """
        if wanted.memory_ids is not None:
            return None
        causes = {CAUSE_COLUMNS.get(key): value for key, value in wanted.cause}
        for name in DETAIL_LISTS:
            if name in causes:
                return name, self._arguments.take(cause_hash(causes[name]), "int8")
            if name in self._owner:
                return name, self._owner[name]
        return None

    def _details_by_row(self) -> list[str]:
        """Return the conditions on owner and cause; an owner's list is exact and needs none."""
        name, value = self._detail or ("", "")
        return [one for one in self._details if one != f"{name} = {value}"]

    @property
    def looks_at_rows(self) -> bool:
        """Whether some rows of the lists may not match."""
        return self._misses_some and not self._is_distributed

    @property
    def reads_on(self) -> bool:
        """Whether one list may be read row by row until enough rows match."""
        return self.looks_at_rows and not (self._times or self._memories or self._lists.of_kinds)

    def page(self, after: Cursor | None, beyond: int | None, limit: int, reach: int) -> Statement:
        """Return the SELECT of the first `limit` records that match, after a position.

        Its rows are NULL, the record's `seq`, and `RECORD_COLUMNS`. The first row is the record of
        `after`, if it exists. If rows may not match, and fewer than `limit` of `reach` rows do, a
        last row has the number of rows read, the last one's `seq`, and how many were in the
        filter's time range.
        """
        columns = f"NULL::pg_catalog.int8, seq, {RECORD_COLUMNS}"
        arguments = Arguments(self._arguments)
        begin = arguments.take(
            self._direction.following(after.position if after else beyond), "int8"
        )
        most = arguments.take(limit, "int8")
        there = ""
        if after is not None:
            there = (
                f"(SELECT {columns} FROM {{schema}}.history WHERE id = {arguments.take(after.id)}"
                f" AND seq = {arguments.take(after.position, 'int8')}) UNION ALL "
            )
        if self._is_distributed:
            where = " AND ".join([*self._conditions(), f"seq {self._direction.onward} {begin}"])
            order = f"ORDER BY seq {self._direction.order} LIMIT {most}"
            return (
                f"{there}(SELECT {columns} FROM {{schema}}.history WHERE {where} {order})",
                arguments,
            )
        ctes = [self._lists.kinds()] if self._lists.of_kinds else []
        if self._times:
            ctes += [
                self._chunks.ctes(begin),
                f"first AS MATERIALIZED ({self._chunks.first(begin)})",
            ]
            begin = f"coalesce((SELECT first.seq FROM first), {self._direction.end})"
        else:
            begin = f"(SELECT {begin})"
        most_read = f"(SELECT {arguments.take(reach, 'int8')})"
        ctes.append(f"read AS MATERIALIZED ({self._lists.rows(begin, most_read)})")
        matching = f" WHERE {' AND '.join(self._by_row)}" if self._by_row else ""
        ctes.append(f"page AS MATERIALIZED (SELECT {columns} FROM read{matching} LIMIT {most})")
        page = "SELECT * FROM page"
        if self._by_row:
            last = "max" if self._direction is FORWARD else "min"
            page += (
                f" UNION ALL SELECT pg_catalog.count(*), pg_catalog.{last}(seq),"
                f" (pg_catalog.count(*) FILTER (WHERE {self._times or 'true'}))::pg_catalog.text,"
                f" {_NULLS} FROM read HAVING (SELECT pg_catalog.count(*) FROM page) < {most}"
            )
        return f"WITH RECURSIVE {', '.join(ctes)} {there}{page}", arguments

    def refs(self, beyond: int | None, limit: int) -> Statement:
        """Return the SELECT of `seq`, id and memory of the first records in the filter's lists."""
        arguments = Arguments(self._arguments)
        begin = arguments.take(self._direction.following(beyond), "int8")
        columns = "SELECT seq, id, memory_id FROM"
        if self._is_distributed:
            where = " AND ".join([*self._conditions(), f"seq {self._direction.onward} {begin}"])
            order = f"ORDER BY seq {self._direction.order} LIMIT {limit}"
            return f"{columns} {{schema}}.history WHERE {where} {order}", arguments
        kinds = f"WITH RECURSIVE {self._lists.kinds()} " if self._lists.of_kinds else ""
        lists = self._lists.rows(f"(SELECT {begin})", f"(SELECT {arguments.take(limit, 'int8')})")
        return f"{kinds}{columns} ({lists}) AS listed", arguments

    def page_of_time(self, beyond: int, limit: int) -> Statement:
        """Return the SELECT of the first `limit` records that match, as `page`, searched by time.

        It reads all records in the filter's time range, chunk by chunk, until the page is full.
        """
        arguments = Arguments(self._arguments)
        begin = arguments.take(self._direction.following(beyond), "int8")
        conditions = [*self._conditions(), f"seq {self._direction.onward} {begin}"]
        sql = f"""
WITH RECURSIVE {self._chunks.ctes(begin)}
SELECT one.* FROM chunk CROSS JOIN LATERAL (
    SELECT NULL::pg_catalog.int8, seq, {RECORD_COLUMNS} FROM ({self._chunks.rows()}) AS history
    WHERE {" AND ".join(conditions)} ORDER BY seq {self._direction.order}
) AS one
LIMIT {arguments.take(limit, "int8")}
"""
        return sql, arguments

    def _of_kind(self) -> list[str]:
        """Return the conditions on event and role, which an index has only as a number."""
        return [f"{name} = {value}" for name, value in self._named.items() if name in KIND]

    def count(self) -> Statement:
        """Return the SELECT that counts the records that match."""
        if self._is_distributed or self._of_list or not self._times:
            conditions = self._conditions()
            where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
            return f"SELECT pg_catalog.count(*) FROM {{schema}}.history{where}", self._arguments
        sql, arguments = self.in_time("pg_catalog.count(*)")
        matching = [*self._names, *self._details, *self._texts, *self._within]
        return f"{sql} WHERE {' AND '.join(matching or ['true'])}", arguments

    def in_time(self, columns: str) -> Statement:
        """Return the SELECT of all records in the filter's time range, chunk by chunk."""
        arguments = Arguments(self._arguments)
        chunks = self._chunks.ctes(arguments.take(self._direction.begin, "int8"))
        sql = f"""
WITH RECURSIVE {chunks}
SELECT {columns} FROM chunk CROSS JOIN LATERAL ({self._chunks.rows()}) AS history"""
        return sql, arguments

    def _conditions(self) -> list[str]:
        """Return all conditions of the filter."""
        conditions = [
            *self._names,
            *self._details,
            *self._texts,
            *([self._times] if self._times else []),
            *self._within,
        ]
        if self._detail is not None and self._detail[0] not in SCOPES:
            conditions.append(f"{self._detail[0]} = {self._detail[1]}")
        if self._memory is not None:
            conditions.append(f"memory_id = {self._memory}")
        if self._memories is not None:
            conditions.append(f"memory_id = ANY ({self._memories})")
        return conditions
