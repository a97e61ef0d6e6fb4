"""What PostgreSQL does for a question: the plans of a reader's statements, and the buffers touched.

Nothing is timed. The server fills the tables itself, with times that are in order, or not at all.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from async_history._core.cursors import Cursor
from async_history._core.filters import Filter, Order, new_filter
from async_history._core.timeline import states_at
from async_history._postgres.owners import cause_hash
from async_history._postgres.read import HistoryReader
from async_history._postgres.timeline import ServerStates

PAGE: Final = 10
FULL_PAGE: Final = 500
"""What a query reads at once unless it is told."""
START: Final = datetime(2026, 1, 1, tzinfo=UTC)
IN_ORDER: Final = "n"
SHUFFLED: Final = "n * 7919::bigint % {rows}"
REPEATED: Final = "n % 5000"
"""Seconds after `START`, of the record of a number."""

_FILL: Final = """
INSERT INTO {schema}.history
    (id, memory_id, new_memory, event, is_deleted, occurred_at, actor_id, role,
        user_id, agent_id, run_id, app_id, cause, cause_request_id)
SELECT 'id-' || n,
    CASE WHEN n % 5 = 0 THEN 'large' ELSE 'm' || n * 7919::bigint % ({rows} / 20) END,
    repeat('likes tea ', 6), (ARRAY['ADD', 'UPDATE', 'UPDATE', 'DELETE'])[n % 4 + 1], n % 4 = 3,
    CASE WHEN n % 500 <> 0 THEN '{start}'::timestamptz + ({seconds} + n % 3) * interval '1 s' END,
    CASE WHEN n BETWEEN {rows} / 2 AND {rows} / 2 + 4 THEN 'rare' ELSE 'a' || n % 20 END,
    CASE WHEN n % 1000 = 7 THEN NULL WHEN n % 2 = 0 THEN 'assistant' ELSE 'user' END,
    'u' || n % ({rows} / 100), CASE WHEN n % 3 = 0 THEN 'a' || n % 4 END, 'r' || n / 10, 'app',
    '{{"request_id":"' || n / 20 || '"}}', ({requests})[n / 20 + 1]
FROM generate_series(1, {rows}) AS n
"""
"""No user adds, and each actor does one kind of change: what is often may never be together."""


async def fill(connection: Any, schema: str, rows: int, seconds: str = IN_ORDER) -> None:
    """Write so many records, without statistics."""
    times = seconds.format(rows=rows)
    hashes = ", ".join(str(cause_hash(str(n))) for n in range(rows // 20 + 1))
    requests = f"ARRAY[{hashes}]::bigint[]"
    await connection.execute(
        _FILL.format(
            schema=schema, rows=rows, start=START.isoformat(), seconds=times, requests=requests
        )
    )


_FILL_ALIKE: Final = """
INSERT INTO {schema}.history
    (id, memory_id, new_memory, event, is_deleted, occurred_at, actor_id, role)
SELECT 'id-' || n, {memory}, 'likes tea ' || n, 'ADD', false,
    '{start}'::timestamptz + n * interval '1 s', 'agent', 'user'
FROM generate_series(1, {rows}) AS n
"""


async def fill_alike(connection: Any, schema: str, rows: int, *, is_one: bool) -> None:
    """Write so many records that every filter of `alike` finds, of a memory each or all of one."""
    memory = "'m'" if is_one else "'m' || n"
    await connection.execute(
        _FILL_ALIKE.format(schema=schema, rows=rows, start=START.isoformat(), memory=memory)
    )


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and behind which record's number."""

    name: str
    wanted: Filter
    after: int | None = None


def questions(rows: int) -> Iterator[Question]:
    """Yield every filter but a text's in either order, at places in time and of cursors."""
    lists: Mapping[str, Mapping[str, Any]] = {
        "a memory": {"memory_id": "m77"},
        "a large memory": {"memory_id": "large"},
        "ten memories": {"memory_id": ["large", *(f"m{n * 7}" for n in range(9))]},
        "an actor": {"actor_id": "a7"},
        "a rare actor": {"actor_id": "rare"},
        "an event": {"event": "UPDATE"},
        "a role": {"role": "user"},
        "no role": {"role": "tool"},
        "event and role": {"event": "DELETE", "role": "user"},
        "event and role that are not together": {"event": "ADD", "role": "user"},
        "actor and event": {"actor_id": "a7", "event": "DELETE"},
        "actor and event that are not together": {"actor_id": "a7", "event": "ADD"},
        "actor and role": {"actor_id": "a7", "role": "user"},
        "actor and role that are not together": {"actor_id": "a7", "role": "assistant"},
        "all three": {"actor_id": "a7", "role": "user", "event": "DELETE"},
        "a user": {"owner": (("user_id", "u7"),)},
        "a user and event": {"owner": (("user_id", "u7"),), "event": "UPDATE"},
        "a user's agent": {
            "owner": (
                ("user_id", "u7"),
                ("agent_id", "a3"),
            )
        },
        "a user of a memory": {"memory_id": "m77", "owner": (("user_id", "u7"),)},
        "an agent": {"owner": (("agent_id", "a0"),)},
        "a run": {"owner": (("run_id", "r77"),)},
        "an app": {"owner": (("app_id", "app"),)},
        "nobody": {"owner": (("user_id", "nobody"),)},
        "a request": {"cause": {"request_id": "7"}},
        "a request of a user": {"cause": {"request_id": "7"}, "owner": (("user_id", "u47"),)},
        "a request of nobody": {"cause": {"trace_id": "7"}},
    }
    middle = START + timedelta(seconds=rows / 2)
    hour, end = timedelta(hours=1), START + timedelta(seconds=rows)
    times: Mapping[str, Mapping[str, Any]] = {
        "since the beginning": {"since": START},
        "since the middle": {"since": middle},
        "since near the end": {"since": end - timedelta(seconds=50)},
        "since afterwards": {"since": end + hour},
        "until before": {"until": START - hour},
        "until near the beginning": {"until": START + timedelta(seconds=50)},
        "until the middle": {"until": middle},
        "until the end": {"until": end + hour},
        "ten seconds of the middle": {"since": middle, "until": middle + timedelta(seconds=10)},
        "an hour of next year": {"since": end + 1000 * hour, "until": end + 1001 * hour},
    }
    everything: Mapping[str, Any] = {}
    orders: Sequence[Order] = ("oldest", "newest")
    for of, wanted in {"everything": everything, **lists}.items():
        for when, span in {"": everything, **times}.items():
            for order in orders:
                name = ", ".join(filter(None, (of, when, f"{order} first")))
                filled: dict[str, Any] = dict.fromkeys(_FIELDS) | dict(wanted) | dict(span)
                asked = new_filter(**filled, order=order)
                yield Question(name, asked)
                if not span and of in ("everything", "a large memory", "an event"):
                    yield Question(f"{name}, from the middle", asked, rows // 2)


def alike(rows: int, *, is_one: bool) -> Iterator[Question]:
    """Yield what all records of `fill_alike` answer, from either end and from the middle."""
    lists: Mapping[str, Mapping[str, Any]] = {
        "everything": {},
        "an event": {"event": "ADD"},
        "a role": {"role": "user"},
        "event and role": {"event": "ADD", "role": "user"},
        "an actor": {"actor_id": "agent"},
        "actor and event": {"actor_id": "agent", "event": "ADD"},
        "since the beginning": {"since": START},
        "until the end": {"until": START + timedelta(days=1000)},
        "an actor until the end": {"actor_id": "agent", "until": START + timedelta(days=1000)},
        **({"a memory": {"memory_id": "m"}} if is_one else {}),
    }
    orders: Sequence[Order] = ("oldest", "newest")
    for of, wanted in lists.items():
        for order in orders:
            filled: dict[str, Any] = dict.fromkeys(_FIELDS) | dict(wanted)
            asked = new_filter(**filled, order=order)
            yield Question(f"{of}, {order} first", asked)
            yield Question(f"{of}, {order} first, from the middle", asked, rows // 2)


_FIELDS: Final = ("memory_id", "actor_id", "role", "event", "text", "since", "until")


class Explainer:
    """Reads through plans: asks as a manager does, and adds up what the server touched.

    Args:
        connection: of the test's own.
        schema: the quoted schema.
        is_generic: take the plan that the server keeps, made for any argument.
    """

    def __init__(self, connection: Any, schema: str, *, is_generic: bool = False) -> None:
        self._connection = connection
        self._schema = schema
        self._is_generic = is_generic
        self.reader = HistoryReader(self._fetch, schema, is_distributed=False, at_once=2)
        self.plans: list[Mapping[str, Any]] = []

    async def _fetch(self, sql: str, *arguments: Any) -> Sequence[Sequence[Any]]:
        mode = "force_generic_plan" if self._is_generic else "force_custom_plan"
        await self._connection.execute(f"SET plan_cache_mode = {mode}; PREPARE asked AS {sql}")
        given = f"({', '.join(map(_literal, arguments))})" if arguments else ""
        told = await self._connection.fetchval(
            f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) EXECUTE asked {given}"
        )
        await self._connection.execute("DEALLOCATE asked")
        self.plans += json.loads(told)
        return list(await self._connection.fetch(sql, *arguments))

    @property
    def buffers(self) -> int:
        """How many buffers the statements touched."""
        return sum(
            plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
            for plan in self.plans
        )

    @property
    def milliseconds(self) -> float:
        """How long the server took."""
        return sum(float(plan["Execution Time"]) for plan in self.plans)

    @property
    def rows(self) -> int:
        """How many rows the statements read from tables and indexes."""
        return sum(_rows_read(plan["Plan"]) for plan in self.plans)

    async def page(self, question: Question, records: int = PAGE) -> int:
        """Read a page; return the buffers touched."""
        self.plans = []
        after = None
        if question.after is not None:
            after = Cursor(question.after, f"id-{question.after}")
        await self.reader.page(question.wanted, after, records, records)
        return self.buffers

    async def memories_at(self, when: datetime) -> None:
        """Read all memories as they were at an instant."""
        self.plans = []
        states = states_at(ServerStates(self._fetch, self._schema, is_distributed=False), when)
        async for _page in states:
            """It is read."""


def _rows_read(plan: Mapping[str, Any]) -> int:
    rows = sum(map(_rows_read, plan.get("Plans", ())))
    if "Relation Name" in plan:
        each = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)
        rows += round(each * plan["Actual Loops"])
    return rows


def _literal(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        return f"ARRAY[{', '.join(map(_literal, value))}]::text[]"
    escaped = str(value).replace("'", "''")
    return f"'{escaped}'"
