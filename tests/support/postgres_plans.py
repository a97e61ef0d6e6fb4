"""What PostgreSQL does for a query: the plans of a reader's statements, and the buffers touched.

No time is measured. The server itself fills the tables, with times in order or without times.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from async_history._core.reading.cursors import Cursor
from async_history._core.reading.timeline import Moment, states_at
from async_history._core.records.new_records import new_fields
from async_history._core.writing.submissions import AddFields
from async_history._postgres.detail_columns import cause_hash
from async_history._postgres.keys import InClear
from async_history._postgres.reading.read import HistoryReader
from async_history._postgres.reading.timeline import ServerStates, states_and_then
from async_history._postgres.writing.batch_reads import BatchReads
from async_history._postgres.writing.owner_steps import OwnerSteps
from async_history._postgres.writing.owners import KnownOwners
from tests.support.questions import PAGE, START, Question

IN_ORDER: Final = "n"
SHUFFLED: Final = "n * 7919::bigint % {rows}"
REPEATED: Final = "n % 5000"
"""The time of the record of a number, in seconds after `START`."""

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
"""No user adds, and each actor makes one kind of change, so that frequent values never coincide."""


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


class Explainer:
    """Reads as a manager does, and adds up the buffers that the server touched.

    Args:
        connection: of the test's own.
        schema: the quoted schema.
        is_generic: use the generic plan, made for any argument.
    """

    def __init__(self, connection: Any, schema: str, *, is_generic: bool = False) -> None:
        self._connection = connection
        self._schema = schema
        self._is_generic = is_generic
        self.reader = HistoryReader(self.fetch, schema, is_distributed=False, at_once=2)
        self.plans: list[Mapping[str, Any]] = []

    async def fetch(self, sql: str, *arguments: Any) -> Sequence[Sequence[Any]]:
        """Explain and run a SELECT."""
        mode = "force_generic_plan" if self._is_generic else "force_custom_plan"
        await self._connection.execute(f"SET plan_cache_mode = {mode}; PREPARE asked AS {sql}")
        given = f"({', '.join(map(_literal, arguments))})" if arguments else ""
        explained = await self._connection.fetchval(
            f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) EXECUTE asked {given}"
        )
        await self._connection.execute("DEALLOCATE asked")
        self.plans += json.loads(explained)
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

    async def execute(self, sql: str) -> None:
        """Run a statement that is not explained."""
        await self._connection.execute(sql)

    async def look_up(self, look_up: "LookUp") -> int:
        """Look something up as a batch's transaction does; return the buffers touched."""
        self.plans = []
        await look_up(self, self._schema)
        return self.buffers

    async def memories_at(self, when: datetime) -> None:
        """Read all memories as they were at an instant."""
        self.plans = []
        states = states_at(ServerStates(self.fetch, self._schema, is_distributed=False), when)
        async for _page in states:
            """It is read."""


LookUp = Callable[[Explainer, str], Awaitable[object]]
"""Looks something up in a quoted schema."""
_MEMORIES: Final = ("large", *(f"m{n * 7}" for n in range(9)))


def look_ups(rows: int) -> dict[str, LookUp]:
    """Return the look-ups of a batch in a history of so many rows, by what they find."""
    records = [
        AddFields(new_fields(name, None, "tea", "ADD", id=f"id-{rows - n}"))
        for n, name in enumerate(_MEMORIES)
    ]
    early, middle = START + timedelta(seconds=rows / 10), START + timedelta(seconds=rows / 2)

    def reads(explainer: Explainer, schema: str) -> BatchReads:
        return BatchReads(
            explainer, schema, InClear(), _no_keys, is_distributed=False, is_repeated=True
        )

    def owners(explainer: Explainer, schema: str) -> OwnerSteps:
        known = KnownOwners()
        return OwnerSteps(explainer, schema, "", known, is_distributed=False, owns_transaction=True)

    def texts(*moments: Moment) -> LookUp:
        asked = [(name, when) for name in _MEMORIES[1:] for when in moments]
        return lambda explainer, schema: states_and_then(explainer.fetch, schema, asked)

    return {
        "records by id": lambda *at: reads(*at).existing(records),
        "latest records": lambda *at: reads(*at).latest(_MEMORIES),
        "texts of versions": texts(1, 3),
        "texts of instants": texts(early, middle),
        "an early text of a large memory": lambda explainer, schema: states_and_then(
            explainer.fetch, schema, [("large", 3)]
        ),
        "owners": lambda *at: owners(*at).find(_MEMORIES, gives_owners=False),
    }


def _no_keys() -> Any:
    raise AssertionError("texts are in clear")


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
