"""After a large change the server has statistics of the history, even with autovacuum off."""

import asyncio
from collections.abc import Awaitable, Callable
from secrets import token_hex
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest

from async_history import HistoryManager, copy_history, open_history
from async_history._postgres.removing.statistics import Statistics
from tests.support.postgres_plans import Explainer, fill
from tests.support.questions import START, questions

pytestmark = [pytest.mark.postgres, pytest.mark.once]

LARGE = 11_000
KNOWN = "SELECT count(*) FROM pg_stats WHERE schemaname = $1 AND tablename = 'history'"
ROWS = "SELECT reltuples FROM pg_class WHERE oid = to_regclass($1 || '.history')"
HAS_A_MILLION = "UPDATE pg_class SET reltuples = 1e6 WHERE oid = to_regclass($1 || '.history')"
VACUUMED = "SELECT pg_stat_get_vacuum_count(to_regclass($1 || '.history'))"


@pytest.fixture
def schema() -> str:
    return f"changed_{token_hex(4)}"


async def add(history: HistoryManager, records: int) -> None:
    await history.batch_add_history(
        {"memory_id": f"m{number}", "new_memory": "likes tea", "event": "ADD"}
        for number in range(records)
    )


async def test_statistics_after_large_batches(url: str, connection: Any, schema: str) -> None:
    async with open_history(url, schema=schema) as history:
        await add(history, 9_000)
    assert not await connection.fetchval(KNOWN, schema)
    async with open_history(url, schema=schema) as history:
        await add(history, LARGE)
    assert await connection.fetchval(KNOWN, schema)
    assert await connection.fetchval(ROWS, schema) == 9_000 + LARGE


async def test_statistics_after_a_copy(url: str, connection: Any, schema: str) -> None:
    async with open_history("memory://") as source, open_history(url, schema=schema) as target:
        await add(source, LARGE)
        await copy_history(source, target)
    assert await connection.fetchval(KNOWN, schema)


async def test_statistics_after_pruning(url: str, connection: Any, schema: str) -> None:
    async with open_history(url, schema=schema) as history:
        await fill(connection, schema, 2 * LARGE)
        await connection.execute(f"ANALYZE {schema}.history")
        assert await connection.fetchval(ROWS, schema) == 2 * LARGE
        pruned = await history.prune(older_than=START.replace(year=2027), dry_run=True)
        assert pruned.records > 15_000
    assert await connection.fetchval(ROWS, schema) == 2 * LARGE
    async with open_history(url, schema=schema) as history:
        pruned = await history.prune(older_than=START.replace(year=2027))
    assert await connection.fetchval(ROWS, schema) == 2 * LARGE - pruned.records
    assert await connection.fetchval(VACUUMED, schema) == 1


async def test_after_pruning_the_first_reader_passes_over_no_dead_rows(
    url: str, connection: Any, schema: str
) -> None:
    async with open_history(url, schema=schema) as history:
        await fill(connection, schema, 2 * LARGE)
        await connection.execute(HAS_A_MILLION, schema)  # these are a small part of them
        await history.prune(older_than=START.replace(year=2027))
    reads = Explainer(connection, f'"{schema}"')
    by_name = {question.name: question for question in questions(2 * LARGE)}
    for name in ("everything", "an event", "an actor"):
        assert await reads.page(by_name[f"{name}, oldest first"]) < 100


async def test_a_large_batch_is_not_vacuumed(url: str, connection: Any, schema: str) -> None:
    async with open_history(url, schema=schema) as history:
        await add(history, LARGE)
    assert await connection.fetchval(KNOWN, schema)
    assert await connection.fetchval(VACUUMED, schema) == 0


async def test_a_large_history_is_analyzed_after_a_tenth_of_it(
    url: str, connection: Any, schema: str
) -> None:
    async with open_history(url, schema=schema) as history:
        await connection.execute(HAS_A_MILLION, schema)
        await add(history, LARGE)
    assert not await connection.fetchval(KNOWN, schema)


async def test_a_table_with_fresh_statistics_is_not_analyzed_again(
    url: str, connection: Any, schema: str
) -> None:
    analyzed = "SELECT pg_stat_get_analyze_count(to_regclass($1 || '.history'))"
    async with open_history(url, schema=schema) as history:
        await add(history, 9_000)
        await connection.execute(f"ANALYZE {schema}.history")
        await add(history, 2_000)
    assert await connection.fetchval(analyzed, schema) == 1


async def test_a_locked_table_is_left_alone(url: str, connection: Any, schema: str) -> None:
    async with open_history(url, schema=schema) as history, connection.transaction():
        await connection.execute(f"LOCK TABLE {schema}.history IN SHARE UPDATE EXCLUSIVE MODE")
        await add(history, LARGE)
        await history.aclose()  # ANALYZE does not wait
    assert not await connection.fetchval(KNOWN, schema)


async def test_a_role_without_the_right_gets_no_error(
    url: str, connection: Any, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_history(url, schema=schema):
        pass  # opening makes the tables
    role = f"writer_{token_hex(4)}"
    await connection.execute(
        f"CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA {schema} TO {role};"
        f" GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA {schema} TO {role}"
    )
    async with open_history(url.replace("owner@", f"{role}@"), schema=schema) as history:
        await add(history, LARGE)
        stats = await history.stats()
    assert not await connection.fetchval(KNOWN, schema)
    assert "analyze" not in f"{caplog.text} {stats.warnings}".lower()


class Recorder:
    """A pool and its only connection to a server with statistics of 20,000 rows."""

    is_behind_pooler = False

    def __init__(self) -> None:
        self.analyzed = 0
        self.is_analyzed = asyncio.Event()

    async def use(self, work: Callable[[Any], Awaitable[None]]) -> None:
        await work(self)

    def get_server_version(self) -> Any:
        return SimpleNamespace(major=18)

    async def execute(self, sql: str) -> None:
        if sql.startswith("ANALYZE"):
            self.analyzed += 1
            self.is_analyzed.set()

    async def fetchval(self, *_: Any) -> bool:
        return True

    async def fetchrow(self, *_: Any) -> tuple[float, float | None, float | None]:
        return 20_000.0, None, None


async def test_a_growing_table_is_not_analyzed_all_the_time() -> None:
    server: Any = Recorder()
    statistics = Statistics(server, '"a"', is_distributed=False)
    for _ in range(5):
        statistics.add_changes(20_000)
        await server.is_analyzed.wait()
        await asyncio.sleep(0)
    assert server.analyzed == 1
    await statistics.aclose()
    assert server.analyzed == 2


class LateRecorder(Recorder):
    """A server whose table was analyzed after the changes began, and whose answers take longer than
    the time from one to the other."""

    def __init__(self) -> None:
        super().__init__()
        self.before_changes = monotonic()

    async def use(self, work: Callable[[Any], Awaitable[None]]) -> None:
        self.analyzed_at = monotonic()
        await super().use(work)

    async def fetchval(self, *_: Any) -> bool:
        await asyncio.sleep(2 * (self.analyzed_at - self.before_changes))
        return True

    async def fetchrow(self, *_: Any) -> tuple[float, float | None, float | None]:
        return 20_000.0, monotonic() - self.analyzed_at, None


async def test_a_late_answer_does_not_make_statistics_look_older() -> None:
    server: Any = LateRecorder()
    statistics = Statistics(server, '"a"', is_distributed=False)
    statistics.add_changes(20_000)
    await statistics.aclose()
    assert server.analyzed == 0


@pytest.mark.parametrize(("is_pooler", "is_distributed"), [(True, False), (False, True)])
async def test_a_pooler_and_a_cluster_are_left_out(is_pooler: bool, is_distributed: bool) -> None:
    server: Any = Recorder()
    server.is_behind_pooler = is_pooler
    statistics = Statistics(server, '"a"', is_distributed=is_distributed)
    statistics.add_changes(1_000_000)
    await statistics.aclose()
    assert server.analyzed == 0
