"""How much a follower's statements in PostgreSQL read: a bounded part of the new records.

Counted by EXPLAIN (ANALYZE, BUFFERS), on tables without, with and with outdated statistics. No
time is measured.
"""

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

import asyncpg
import pytest

from async_history import open_history
from async_history._core.reading.follow_reads import PAGE_RECORDS
from async_history._postgres.reading.cursors import FollowPosition, position_from_cursor
from async_history._postgres.reading.follow import FollowReader
from async_history._postgres.schema import quoted
from tests.support.postgres_server import are_installed, with_query

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.once,
    pytest.mark.skipif(not are_installed(), reason="needs a server without autovacuum"),
]

_LIMIT: Final = 100
_ROWS_AT_ONCE: Final = 300
_MOST_ROWS: Final = 5 * _ROWS_AT_ONCE + 50
"""For one statement: the rows whose `seq` alone is read, and a few more."""
_MOST_BUFFERS: Final = 350
"""For one statement: a bound for those rows and the heads, far below the table's size."""
_MANY: Final = 10_000
_ADD: Final = """
INSERT INTO {schema}.history (id, memory_id, new_memory, event, is_deleted, occurred_at)
SELECT gen_random_uuid()::text, 'm' || n % 500, repeat('likes mate ', 6), 'UPDATE', false, now()
FROM generate_series(1, $1::integer) AS n
"""


class Counting:
    """Reads of a follower. Each of its statements is explained before it runs."""

    def __init__(self, connection: Any, schema: str) -> None:
        self._connection = connection
        self.schema = schema
        self.rows: list[int] = []
        self.buffers: list[int] = []
        self.reader = FollowReader(
            self._fetch, schema, where="it", is_distributed=False, rows_at_once=_ROWS_AT_ONCE
        )
        self.large_reader = FollowReader(self._fetch, schema, where="it", is_distributed=False)

    async def _fetch(self, sql: str, *arguments: Any) -> Sequence[Sequence[Any]]:
        await self._connection.execute(f"PREPARE page AS {sql}")
        given = ", ".join("NULL" if a is None else f"'{a}'" for a in arguments)
        explained = await self._connection.fetchval(
            f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) EXECUTE page ({given})"
        )
        await self._connection.execute("DEALLOCATE page")
        plan = json.loads(explained)[0]["Plan"]
        self.rows.append(sum(_looked_at(plan)))
        self.buffers.append(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
        return list(await self._connection.fetch(sql, *arguments))

    def start(self) -> None:
        """Count from now on."""
        self.rows.clear()
        self.buffers.clear()

    def check(self, *, rows: int = _MOST_ROWS, buffers: int = _MOST_BUFFERS) -> None:
        """Check that no statement since `start` read more."""
        assert max(self.rows) <= rows, self.rows
        assert max(self.buffers) <= buffers, self.buffers

    async def end(self) -> FollowPosition:
        position = await self.reader.end()
        assert position is not None
        return position

    async def all_after(self, position: FollowPosition | None) -> tuple[list[str], FollowPosition]:
        """Return the ids of all records after a position, and the end. Cursors are kept as text."""
        found: list[str] = []
        while True:
            read = await self.reader.page(position, None, _LIMIT)
            found += [record.id for record in read.records]
            assert read.end is not None
            position = position_from_cursor(str(read.end))
            assert position == read.end
            assert (position.witness, position.upto) == (read.end.witness, read.end.upto)
            if read.is_last:
                return found, position

    async def add(self, connection: Any, count: int) -> None:
        await connection.execute(_ADD.format(schema=self.schema), count)


def _looked_at(plan: dict[str, Any]) -> Iterator[int]:
    if plan.get("Relation Name") == "history":
        loops = plan["Actual Loops"]
        yield round(loops * (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)))
    for part in plan.get("Plans", ()):
        yield from _looked_at(part)


@pytest.fixture
async def others(url: str) -> AsyncIterator[list[Any]]:
    connections = [await asyncpg.connect(url) for _ in range(2)]
    yield connections
    for connection in connections:
        connection.terminate()


@pytest.fixture(
    params=[
        ("nothing", "generic"),
        ("analyzed", "custom"),
        ("analyzed before", "generic"),
        ("pruned", "custom"),
    ],
    ids=" ".join,
)
async def counting(
    url: str, others: list[Any], request: pytest.FixtureRequest
) -> AsyncIterator[Counting]:
    """A reader of a table of many records, with given statistics."""
    known, mode = request.param
    schema = f"s{abs(hash((request.node.name,))):x}"
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(open_history(with_query(url, schema=schema)))
        connection = await asyncpg.connect(url)
        stack.push_async_callback(connection.close)
        await connection.execute(f"SET plan_cache_mode = force_{mode}_plan")
        counting = Counting(connection, quoted(schema))
        table = f"{counting.schema}.history"
        if known == "analyzed before":
            await counting.add(others[0], 10)
            await others[0].execute(f"VACUUM ANALYZE {table}")
        for _ in range(10):
            await counting.add(others[0], _MANY // 10)
        if known in ("analyzed", "pruned"):
            await others[0].execute(f"ANALYZE {table}")
        if known == "pruned":
            await others[0].execute(f"DELETE FROM {table} WHERE seq < {_MANY * 3 // 4}")
        yield counting
        await others[0].execute(f"DROP SCHEMA {counting.schema} CASCADE")


class TestWork:
    async def test_at_the_end(self, counting: Counting) -> None:
        position = await counting.end()
        await counting.reader.mark()
        assert await counting.all_after(position) == ([], position)
        counting.check(rows=20, buffers=150)

    async def test_a_few_new_records(self, counting: Counting, others: list[Any]) -> None:
        position = await counting.end()
        await counting.add(others[0], 7)
        counting.start()
        found, _ = await counting.all_after(position)
        assert len(found) == 7
        counting.check(rows=40, buffers=150)

    async def test_many_missed_records(self, counting: Counting, others: list[Any]) -> None:
        """In many transactions: each page reads a part of them."""
        position = await counting.end()
        for _ in range(40):
            await counting.add(others[0], _MANY // 40)
        counting.start()
        page = await counting.reader.page(position, None, _LIMIT)
        assert len(page.records) == _LIMIT
        assert sum(counting.rows) <= _LIMIT + _ROWS_AT_ONCE + 50, "all new records"
        counting.start()
        found, end = await counting.all_after(position)
        assert len(set(found)) == len(found) == _MANY
        counting.check()
        assert await counting.all_after(end) == ([], end)
        counting.start()
        page = await counting.large_reader.page(position, None, PAGE_RECORDS)
        assert len(page.records) == PAGE_RECORDS
        assert counting.rows[0] <= PAGE_RECORDS + 20
        assert counting.rows[-1] <= PAGE_RECORDS + 20

    async def test_an_early_record_of_a_late_transaction(
        self, counting: Counting, others: list[Any]
    ) -> None:
        """Records that were seen after it are not all read again at once."""
        late, other = others
        async with late.transaction():
            await counting.add(late, 1)
            for _ in range(10):
                await counting.add(other, _MANY // 10)
            position = await counting.end()
            await counting.add(late, 5 * _LIMIT)
        counting.start()
        found, _ = await counting.all_after(position)
        assert len(set(found)) == len(found) == 5 * _LIMIT + 1
        counting.check()

    async def test_a_transaction_that_stays_open(
        self, counting: Counting, others: list[Any]
    ) -> None:
        """Its records are not read until it ends, wherever its number lies."""
        open_, other = others
        async with open_.transaction():
            before = await counting.end()
            await counting.add(open_, _MANY)
            counting.start()
            for _ in range(3):
                await counting.reader.mark()
                assert await counting.all_after(before) == ([], before)
                await counting.add(other, 1)
                assert len((await counting.all_after(before))[0]) == 1
                before = await counting.end()
            counting.check(rows=40, buffers=200)
        found, _ = await counting.all_after(before)
        assert len(set(found)) == len(found) == _MANY

    async def test_many_records_come_while_a_window_is_read(
        self, counting: Counting, others: list[Any]
    ) -> None:
        """Records committed after the window are not read to find its end."""
        position = await counting.end()
        for _ in range(4):
            await counting.add(others[0], _LIMIT)
        read = await counting.reader.page(position, None, _LIMIT)
        for _ in range(10):
            await counting.add(others[0], _MANY // 10)
        counting.start()
        pages = 1
        while read.end is not None and read.end.window is not None:
            read = await counting.reader.page(read.end, None, _LIMIT)
            pages += 1
        assert pages <= 5
        counting.check(rows=_LIMIT + 20)

    async def test_from_the_beginning(self, counting: Counting) -> None:
        """After a prune only the first page passes over removed records."""
        connection = counting._connection
        stored = await connection.fetchval(f"SELECT count(*) FROM {counting.schema}.history")
        read = await counting.reader.page(None, None, _LIMIT)
        counting.start()
        found, _ = await counting.all_after(read.end)
        assert len({*found, *(record.id for record in read.records)}) == stored
        counting.check(buffers=_MOST_BUFFERS)

    async def test_one_memory(self, counting: Counting, others: list[Any]) -> None:
        position = await counting.end()
        for _ in range(4):
            await counting.add(others[0], _MANY // 10)
        counting.start()
        found: list[str] = []
        next_: FollowPosition | None = position
        while next_ is not None and (not found or next_.window is not None):
            read = await counting.reader.page(next_, "m7", _LIMIT)
            found += [record.id for record in read.records]
            next_ = read.end
        assert len(set(found)) == len(found) == 4 * _MANY // 10 // 500
        counting.check()
