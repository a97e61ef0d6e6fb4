"""A query filter as SQL of PostgreSQL: the index ranges to read, and the conditions on their rows.

Results are in the order of `seq`. The code calls an index range in that order a list: the records
of a memory, those of an owner's scope or a cause, those of an event, a role and an actor, or all
records. A filter reads one list, or merges several. Conditions that no list covers (times, texts,
the actor of a named memory) are checked row by row.

Times are not in the order of `seq`, so no index has both. But an index has the times in each chunk
of the history. A list is read from the first record in the filter's time range, for the size of a
page and some more. If few of those rows are in the time range, the rest of the page is read the
other way: chunk by chunk, all records in the time range.

The indexes have an event and a role as one number, their kind. Different pairs may share a kind, so
the rows are compared with the filter too.

The SQL leaves the planner no choice, because without statistics, or with those of another memory,
it reads whole tables and lists. It uses an index for its order only if it expects many rows of
which few are read. So a list is a range condition on row values, in the order of the whole index.
The values and the page's limit are each in a SELECT of their own, so that the planner can't guess
from them: for an unknown LIMIT it expects a tenth of the rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from async_history._core.cursors import Cursor
from async_history._core.filters import Filter
from async_history._core.json_object import json_object
from async_history._core.owners import SCOPES
from async_history._postgres.owners import CAUSE_COLUMNS, cause_hash
from async_history._postgres.rows import RECORD_COLUMNS, RECORD_NULLS

CHUNK_BITS: Final = 14
"""A chunk is a range of 16,384 values of `seq`: 3 million records have 184. At most this many rows
are read to find the first one in a time range."""
_CHUNKS_AT_ONCE: Final = 256
"""More chunks than 3 million records have, so that one look-up covers all."""

_HISTORY: Final = "{schema}.history"
_KIND: Final = ("event", "role")
_EVENT_BITS: Final = 24
"""A kind is the code of the event's first letter, followed by this many bits of the role's hash."""
_EVENT_PART: Final = f"(pg_catalog.ascii({{}}) << {_EVENT_BITS})"
_ROLE_PART: Final = f"(coalesce(pg_catalog.hashtext({{}}), 0) & {(1 << _EVENT_BITS) - 1})"
_KEYS: Final[Mapping[str, str]] = {
    "kind": f"({_EVENT_PART.format('event')} | {_ROLE_PART.format('role')})"
}
"""The expressions that an index has instead of a column."""
_NULLS: Final = ", ".join(RECORD_NULLS[1:])
"""NULLs in place of all columns of `RECORD_COLUMNS` except the first."""
_LISTS: Final = (
    *("cause_request_id", "cause_trace_id", "cause_run_id"),
    *("run_id", "user_id", "agent_id", "app_id"),
)
"""The columns of causes and owners that an index has."""
_NULLABLE: Final = ("actor_id", *_LISTS)
"""The columns whose index has no NULL."""
_ENDS: Final = (-(1 << 63), (1 << 63) - 1)

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
        self._is_forward = wanted.order == "oldest"
        self._direction = "ASC" if self._is_forward else "DESC"
        self._from, self._to = (">=", "<=") if self._is_forward else ("<=", ">=")
        self._begin, self._end = _ENDS if self._is_forward else _ENDS[::-1]
        self._through = ""
        if wanted.through is not None:
            self._through = f"(SELECT {take(wanted.through, 'int8')})"
        self._within = [f"seq {self._to} {self._through}"] if self._through else []
        given: dict[str, str | None] = {
            name: getattr(wanted, name) for name in ("actor_id", *_KIND)
        }
        self._named = {name: take(str(value)) for name, value in given.items() if value is not None}
        self._memory = self._memories = None
        if wanted.memory_ids is not None and len(wanted.memory_ids) == 1:
            self._memory = take(wanted.memory_ids[0])
        elif wanted.memory_ids is not None:
            self._memories = take(list(wanted.memory_ids), "text[]")
        self._owner = {name: take(value) for name, value in wanted.owner}
        self._detail = self._list_of_details(wanted)
        self._of_list = wanted.memory_ids is not None or self._detail is not None
        # If only one of event and role is given, one list for each kind that has it.
        self._of_kinds = not self._of_list and bool(self._named) and not {*_KIND} <= {*self._named}
        self._times = " AND ".join(
            # As text: see `joined_columns`. In a SELECT, or it would be parsed for each row.
            f"occurred_at {comparison} (SELECT {take(moment.isoformat())}::pg_catalog.timestamptz)"
            for comparison, moment in ((">=", wanted.since), ("<", wanted.until))
            if moment is not None
        )
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

        It is the first one of `_LISTS`, which is likely to have the fewest records.
        """
        if wanted.memory_ids is not None:
            return None
        causes = {CAUSE_COLUMNS.get(key): value for key, value in wanted.cause}
        for name in _LISTS:
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
        return self.looks_at_rows and not (self._times or self._memories or self._of_kinds)

    def page(self, after: Cursor | None, beyond: int | None, limit: int, reach: int) -> Statement:
        """Return the SELECT of the first `limit` records that match, after a position.

        Its rows are NULL, the record's `seq`, and `RECORD_COLUMNS`. The first row is the record of
        `after`, if it exists. If rows may not match, and fewer than `limit` of `reach` rows do, a
        last row has the number of rows read, the last one's `seq`, and how many were in the
        filter's time range.
        """
        columns = f"NULL::pg_catalog.int8, seq, {RECORD_COLUMNS}"
        arguments = Arguments(self._arguments)
        begin = arguments.take(self._following(after.position if after else beyond), "int8")
        most = arguments.take(limit, "int8")
        there = ""
        if after is not None:
            there = (
                f"(SELECT {columns} FROM {_HISTORY} WHERE id = {arguments.take(after.id)}"
                f" AND seq = {arguments.take(after.position, 'int8')}) UNION ALL "
            )
        if self._is_distributed:
            where = " AND ".join([*self._conditions(), f"seq {self._from} {begin}"])
            order = f"ORDER BY seq {self._direction} LIMIT {most}"
            return f"{there}(SELECT {columns} FROM {_HISTORY} WHERE {where} {order})", arguments
        ctes = [self._kinds()] if self._of_kinds else []
        if self._times:
            ctes += [
                self._chunks(begin),
                f"first AS MATERIALIZED ({self._first_in_time(begin)})",
            ]
            begin = f"coalesce((SELECT first.seq FROM first), {self._end})"
        else:
            begin = f"(SELECT {begin})"
        most_read = f"(SELECT {arguments.take(reach, 'int8')})"
        ctes.append(f"read AS MATERIALIZED ({self._lists(begin, most_read)})")
        matching = f" WHERE {' AND '.join(self._by_row)}" if self._by_row else ""
        ctes.append(f"page AS MATERIALIZED (SELECT {columns} FROM read{matching} LIMIT {most})")
        page = "SELECT * FROM page"
        if self._by_row:
            last = "max" if self._is_forward else "min"
            page += (
                f" UNION ALL SELECT pg_catalog.count(*), pg_catalog.{last}(seq),"
                f" (pg_catalog.count(*) FILTER (WHERE {self._times or 'true'}))::pg_catalog.text,"
                f" {_NULLS} FROM read HAVING (SELECT pg_catalog.count(*) FROM page) < {most}"
            )
        return f"WITH RECURSIVE {', '.join(ctes)} {there}{page}", arguments

    def refs(self, beyond: int | None, limit: int) -> Statement:
        """Return the SELECT of `seq`, id and memory of the first records in the filter's lists."""
        arguments = Arguments(self._arguments)
        begin = arguments.take(self._following(beyond), "int8")
        columns = "SELECT seq, id, memory_id FROM"
        if self._is_distributed:
            where = " AND ".join([*self._conditions(), f"seq {self._from} {begin}"])
            order = f"ORDER BY seq {self._direction} LIMIT {limit}"
            return f"{columns} {_HISTORY} WHERE {where} {order}", arguments
        kinds = f"WITH RECURSIVE {self._kinds()} " if self._of_kinds else ""
        lists = self._lists(f"(SELECT {begin})", f"(SELECT {arguments.take(limit, 'int8')})")
        return f"{kinds}{columns} ({lists}) AS listed", arguments

    def page_of_time(self, beyond: int, limit: int) -> Statement:
        """Return the SELECT of the first `limit` records that match, as `page`, searched by time.

        It reads all records in the filter's time range, chunk by chunk, until the page is full.
        """
        arguments = Arguments(self._arguments)
        begin = arguments.take(self._following(beyond), "int8")
        conditions = [*self._conditions(), f"seq {self._from} {begin}"]
        sql = f"""
WITH RECURSIVE {self._chunks(begin)}
SELECT one.* FROM chunk CROSS JOIN LATERAL (
    SELECT NULL::pg_catalog.int8, seq, {RECORD_COLUMNS} FROM ({self._of_chunk()}) AS history
    WHERE {" AND ".join(conditions)} ORDER BY seq {self._direction}
) AS one
LIMIT {arguments.take(limit, "int8")}
"""
        return sql, arguments

    def _of_kind(self) -> list[str]:
        """Return the conditions on event and role, which an index has only as a number."""
        return [f"{name} = {value}" for name, value in self._named.items() if name in _KIND]

    def _of_chunk(self) -> str:
        """Return SQL for the rows of a chunk in the filter's time range."""
        return (
            f"SELECT * FROM {_HISTORY} WHERE (seq >> {CHUNK_BITS}) = chunk.number"
            f" AND {self._times} OFFSET 0"
        )

    def _following(self, seq: int | None) -> int:
        if seq is None:
            return self._begin
        return min(seq + 1, self._end) if self._is_forward else max(seq - 1, self._end)

    def count(self) -> Statement:
        """Return the SELECT that counts the records that match."""
        if self._is_distributed or self._of_list or not self._times:
            conditions = self._conditions()
            where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
            return f"SELECT pg_catalog.count(*) FROM {_HISTORY}{where}", self._arguments
        sql, arguments = self.in_time("pg_catalog.count(*)")
        matching = [*self._names, *self._details, *self._texts, *self._within]
        return f"{sql} WHERE {' AND '.join(matching or ['true'])}", arguments

    def in_time(self, columns: str) -> Statement:
        """Return the SELECT of all records in the filter's time range, chunk by chunk."""
        arguments = Arguments(self._arguments)
        chunks = self._chunks(arguments.take(self._begin, "int8"))
        sql = f"""
WITH RECURSIVE {chunks}
SELECT {columns} FROM chunk CROSS JOIN LATERAL ({self._of_chunk()}) AS history"""
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

    # Lists

    def _lists(self, begin: str, limit: str) -> str:
        """Return SQL for the first `limit` rows of the filter's lists, in order, from a `seq`
        on."""

        def part(**values: str) -> str:
            keys = [*(_KEYS.get(name, name) for name in values), "seq"]
            row = f"({', '.join(keys)})"
            conditions = [f"{row} {self._from} ({', '.join([*values.values(), begin])})"]
            if values or self._through:
                end = ", ".join([*values.values(), self._through or str(self._end)])
                conditions.append(f"{row} {self._to} ({end})")
            conditions += [f"{name} IS NOT NULL" for name in values if name in _NULLABLE]
            order = ", ".join(f"{key} {self._direction}" for key in keys)
            return (
                f"SELECT * FROM {_HISTORY} WHERE {' AND '.join(conditions)}"
                f" ORDER BY {order} LIMIT {limit}"
            )

        def merged(lists: str, each: str) -> str:
            return (
                f"SELECT one.* FROM {lists} CROSS JOIN LATERAL ({each}) AS one"
                f" ORDER BY one.seq {self._direction} LIMIT {limit}"
            )

        if self._memory is not None:
            return part(memory_id=f"(SELECT {self._memory})")
        if self._memories is not None:
            named = f"pg_catalog.unnest({self._memories}) AS named (memory)"
            return merged(named, part(memory_id="named.memory"))
        if self._detail is not None:
            return part(**{self._detail[0]: f"(SELECT {self._detail[1]})"})
        values = {
            name: f"(SELECT {value})" for name, value in self._named.items() if name not in _KIND
        }
        parts = [
            part.format(self._named[name])
            for name, part in zip(_KIND, (_EVENT_PART, _ROLE_PART), strict=True)
            if name in self._named
        ]
        if not self._of_kinds:
            if parts:
                values["kind"] = f"(SELECT {' | '.join(parts)})"
            return part(**values)
        bits = "~" if "event" in self._named else ""
        among = f"number & {bits}{(1 << _EVENT_BITS) - 1}"
        kinds = f" WHERE {among} = {parts[0]}" if parts else ""
        lists = f"(SELECT number FROM kind{kinds}) AS kind"
        return merged(lists, part(**values, kind="kind.number"))

    def _kinds(self) -> str:
        """Return SQL for the kinds that exist, from the highest to the lowest.

        It reads the newest record of each: after a removal the oldest are dead index entries.
        """
        keys, at, conditions = [_KEYS["kind"]], ["kind.number"], []
        if "actor_id" in self._named:
            actor = f"(SELECT {self._named['actor_id']})"
            keys.insert(0, "actor_id")
            at.insert(0, actor)
            conditions = [f"actor_id >= {actor}", f"actor_id <= {actor}"]
        order = ", ".join(f"{key} DESC" for key in keys)

        def highest(where: Sequence[str]) -> str:
            return (
                f"(SELECT {_KEYS['kind']} AS number FROM {_HISTORY}"
                f" WHERE {' AND '.join([*where, 'true'])} ORDER BY {order} LIMIT 1)"
            )

        lower = [f"({', '.join(keys)}) < ({', '.join(at)})", *conditions[:1]]
        return f"""kind (number) AS (
    {highest(conditions)} UNION ALL
    SELECT lower.* FROM kind CROSS JOIN LATERAL {highest(lower)} AS lower
)"""

    # Times

    def _chunks(self, begin: str) -> str:
        """Return SQL for the chunks, from a `seq` on, with records in the filter's time range, in
        order.

        Many are looked up at once: one by one would take four times as long. Chunks whose
        records were all removed are skipped.
        """
        chunk, most = f"(seq >> {CHUNK_BITS})", _CHUNKS_AT_ONCE - 1
        if self._is_forward:
            newest = f"(SELECT {chunk} FROM {_HISTORY} ORDER BY seq DESC LIMIT 1)"
            tail, step = f"least(head + {most}, {newest})", 1
            following = f"(coalesce(run.number, run.tail) + 1) << {CHUNK_BITS}"
        else:
            # Not from the oldest: dead index entries may come before it.
            zero = "0::pg_catalog.int8"
            tail = f"CASE WHEN head BETWEEN 0 AND {most} THEN {zero} ELSE head - {most} END"
            step = -1
            following = f"(coalesce(run.number, run.tail) << {CHUNK_BITS}) - 1"

        def first(place: str) -> str:
            numbers = f"pg_catalog.generate_series(head, tail, {step}::pg_catalog.int8)"
            return f"""
    SELECT head, tail, (
        SELECT {chunk} FROM {_HISTORY}
        WHERE {chunk} = ANY (ARRAY(SELECT {numbers})) AND {self._times}
        ORDER BY {chunk} {self._direction}, occurred_at {self._direction} LIMIT 1
    ) AS number
    FROM (
        SELECT head, {tail} AS tail FROM (
            SELECT {chunk} AS head FROM {_HISTORY}
            WHERE {" AND ".join([f"seq {self._from} {place}", *self._within])}
            ORDER BY seq {self._direction} LIMIT 1
        ) AS found OFFSET 0
    ) AS found"""

        return f"""run (head, tail, number) AS (
    {first(begin)} UNION ALL
    SELECT following.* FROM run CROSS JOIN LATERAL ({first(following)}) AS following
), chunk (number) AS (SELECT number FROM run WHERE number IS NOT NULL)"""

    def _first_in_time(self, begin: str) -> str:
        """Return SQL for the `seq` of the first record in the filter's time range, from a `seq`
        on."""
        within = " AND ".join([f"seq {self._from} {begin}", *self._within])
        return f"""
SELECT one.seq FROM chunk
CROSS JOIN LATERAL (
    SELECT seq FROM {_HISTORY}
    WHERE seq >= (chunk.number << {CHUNK_BITS}) AND seq < ((chunk.number + 1) << {CHUNK_BITS})
        AND {within} AND {self._times}
    ORDER BY seq {self._direction} LIMIT 1
) AS one
LIMIT 1
"""
