"""The lists of a filter, as SQL of PostgreSQL: index ranges in the order of `seq`.

The indexes have an event and a role as one number, their kind. Different pairs may share a kind, so
the rows are compared with the filter too.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from async_history._postgres.reading.direction import Direction

KIND: Final = ("event", "role")
_EVENT_BITS: Final = 24
"""A kind is the code of the event's first letter, followed by this many bits of the role's hash."""
_EVENT_PART: Final = f"(pg_catalog.ascii({{}}) << {_EVENT_BITS})"
_ROLE_PART: Final = f"(coalesce(pg_catalog.hashtext({{}}), 0) & {(1 << _EVENT_BITS) - 1})"
_KEYS: Final[Mapping[str, str]] = {
    "kind": f"({_EVENT_PART.format('event')} | {_ROLE_PART.format('role')})"
}
"""The expressions that an index has instead of a column."""
DETAIL_LISTS: Final = (
    *("cause_request_id", "cause_trace_id", "cause_run_id"),
    *("run_id", "user_id", "agent_id", "app_id"),
)
"""The columns of causes and owners that an index has."""
_NULLABLE: Final = ("actor_id", *DETAIL_LISTS)
"""The columns whose index has no NULL."""


class Lists:
    """SQL for the lists of a filter.

    Args:
        memory: the placeholder of the memory; None if there are several, or none.
        memories: the placeholder of the memories, if there are several.
        detail: the column and the placeholder of an owner or a cause, one of `DETAIL_LISTS`.
        named: the placeholders of event, role and actor; used if there is no memory and no detail.
        through: SQL for the last position; "" if there is none.
    """

    def __init__(
        self,
        direction: Direction,
        *,
        memory: str | None,
        memories: str | None,
        detail: tuple[str, str] | None,
        named: Mapping[str, str],
        through: str,
    ) -> None:
        self._direction = direction
        self._memory = memory
        self._memories = memories
        self._detail = detail
        self._named = named
        self._through = through
        is_one = memory is not None or memories is not None or detail is not None
        self.of_kinds = not is_one and bool(named) and not {*KIND} <= {*named}
        """Whether there is one list for each kind: only one of event and role is given."""

    def rows(self, begin: str, limit: str) -> str:
        """Return SQL for the first `limit` rows of the lists, in order, from a `seq` on.

        If `of_kinds`, it uses the CTE `kind`.
        """
        direction = self._direction

        def part(**values: str) -> str:
            keys = [*(_KEYS.get(name, name) for name in values), "seq"]
            row = f"({', '.join(keys)})"
            conditions = [f"{row} {direction.onward} ({', '.join([*values.values(), begin])})"]
            if values or self._through:
                end = ", ".join([*values.values(), self._through or str(direction.end)])
                conditions.append(f"{row} {direction.until} ({end})")
            conditions += [f"{name} IS NOT NULL" for name in values if name in _NULLABLE]
            order = ", ".join(f"{key} {direction.order}" for key in keys)
            return (
                f"SELECT * FROM {{schema}}.history WHERE {' AND '.join(conditions)}"
                f" ORDER BY {order} LIMIT {limit}"
            )

        def merged(lists: str, each: str) -> str:
            return (
                f"SELECT one.* FROM {lists} CROSS JOIN LATERAL ({each}) AS one"
                f" ORDER BY one.seq {direction.order} LIMIT {limit}"
            )

        if self._memory is not None:
            return part(memory_id=f"(SELECT {self._memory})")
        if self._memories is not None:
            named = f"pg_catalog.unnest({self._memories}) AS named (memory)"
            return merged(named, part(memory_id="named.memory"))
        if self._detail is not None:
            return part(**{self._detail[0]: f"(SELECT {self._detail[1]})"})
        values = {
            name: f"(SELECT {value})" for name, value in self._named.items() if name not in KIND
        }
        parts = [
            part.format(self._named[name])
            for name, part in zip(KIND, (_EVENT_PART, _ROLE_PART), strict=True)
            if name in self._named
        ]
        if not self.of_kinds:
            if parts:
                values["kind"] = f"(SELECT {' | '.join(parts)})"
            return part(**values)
        bits = "~" if "event" in self._named else ""
        among = f"number & {bits}{(1 << _EVENT_BITS) - 1}"
        kinds = f" WHERE {among} = {parts[0]}" if parts else ""
        lists = f"(SELECT number FROM kind{kinds}) AS kind"
        return merged(lists, part(**values, kind="kind.number"))

    def kinds(self) -> str:
        """Return the CTE `kind` of the kinds that exist, from the highest to the lowest.

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
                f"(SELECT {_KEYS['kind']} AS number FROM {{schema}}.history"
                f" WHERE {' AND '.join([*where, 'true'])} ORDER BY {order} LIMIT 1)"
            )

        lower = [f"({', '.join(keys)}) < ({', '.join(at)})", *conditions[:1]]
        return f"""kind (number) AS (
    {highest(conditions)} UNION ALL
    SELECT lower.* FROM kind CROSS JOIN LATERAL {highest(lower)} AS lower
)"""
