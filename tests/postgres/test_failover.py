"""PostgreSQL on several servers: failover, synchronous standbys, restored dumps."""

import asyncio
import contextlib
import json
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Final

import asyncpg
import pytest

from async_history import (
    CommitUnknown,
    HistoryManager,
    HistoryOptions,
    StorageUnreachable,
    open_history,
)
from async_history.ledger import Checkpoint, LedgerKey
from tests.subprocesses import processes
from tests.subprocesses.checks import Wrote, check_submissions
from tests.subprocesses.postgres_load import Load, check_calls_in_order, texts
from tests.support.postgres_faults import (  # noqa: F401 - fixtures are used by name
    a_server,
    add,
    again,
    connected,
    paused,
    submission,
    taken_into_a_batch,
    until,
    until_more_wait,
    waiting_for_locks,
)
from tests.support.postgres_server import PostgresServer, are_installed, with_query

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.faults,
    pytest.mark.once,
    pytest.mark.skipif(not are_installed(), reason="kills servers of its own"),
]

_PROCESSES: Final = 4
_ROUNDS: Final = 15
_COUNTED_LESS: Final = """
SELECT xact > pg_snapshot_xmax(pg_current_snapshot()) FROM async_history.history
ORDER BY xact DESC LIMIT 1
"""
_FOLLOWED: Final = """
SELECT new_memory FROM async_history.history
WHERE xact < pg_snapshot_xmin(pg_current_snapshot())
   OR xact >= pg_snapshot_xmax(pg_current_snapshot())
ORDER BY xact, seq
"""
"""Return the rows that may be read in commit order: no commit can come before them any more, or
they came with a dump from a cluster with higher transaction numbers."""


@pytest.fixture
def pair() -> Iterator[tuple[PostgresServer, PostgresServer]]:
    """A primary whose commits wait for its standby."""
    primary = PostgresServer(fsync="off").create().start()
    standby = primary.standby()
    try:
        standby.start()
        with_synchronous_standby(primary)
        yield primary, standby
    finally:
        standby.remove()
        primary.remove()


def with_synchronous_standby(primary: PostgresServer) -> None:
    settings = ("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
    for command in settings:
        primary.run("psql", "--quiet", "--command", command, primary.url())


async def synchronous(primary: PostgresServer) -> Any:
    """Return a connection to the primary, once commits wait for the standby."""
    connection = await asyncpg.connect(primary.url())

    async def is_synchronous() -> bool:
        return bool(
            await connection.fetchval("SELECT sync_state = 'sync' FROM pg_stat_replication")
        )

    await until(is_synchronous)
    return connection


class TestFailover:
    @pytest.mark.parametrize("fails", ["killed", "stands still"])
    async def test_a_failover_under_load(
        self, pair: tuple[PostgresServer, PostgresServer], fails: str
    ) -> None:
        """No acked record is lost, and the manager switches to the new primary by itself."""
        primary, standby = pair
        (await synchronous(primary)).terminate()
        hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
        url = f"postgresql://owner:secret@{hosts}/postgres?target_session_attrs=read-write"
        options: HistoryOptions = {}
        if fails != "killed":
            options = {"acquire_timeout_s": 1, "retry_timeout_s": 3}
        with contextlib.ExitStack() as failed:
            async with open_history(url, **options) as history:
                async with Load(history) as load:
                    await load.more_acks(100)
                    if fails == "killed":
                        primary.stop("kill")
                    else:
                        failed.enter_context(paused(primary))
                    await asyncio.to_thread(standby.promote)
                    await load.more_acks(100)
                async with connected(standby) as connection:
                    await load.check(history, connection, "async_history")
            assert {type(error) for error in load.refused.values()} <= {StorageUnreachable}

    @pytest.mark.parametrize(
        "fails", ["killed", pytest.param("stands still", marks=pytest.mark.nightly)]
    )
    async def test_checkpoints_from_before_a_failover_stay_valid(
        self, pair: tuple[PostgresServer, PostgresServer], fails: str
    ) -> None:
        primary, standby = pair
        (await synchronous(primary)).terminate()
        hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
        url = f"postgresql://owner:secret@{hosts}/postgres?target_session_attrs=read-write"
        key = LedgerKey.generate("example.org/history")
        kept: list[Checkpoint] = []

        async def checkpoints(history: HistoryManager) -> None:
            while True:
                with contextlib.suppress(StorageUnreachable):
                    kept.append(await history.ledger.checkpoint(key))

        with contextlib.ExitStack() as failed:
            async with open_history(
                url, ledger=True, acquire_timeout_s=1, retry_timeout_s=3
            ) as history:
                async with Load(history) as load:
                    keeping = asyncio.create_task(checkpoints(history))
                    await load.more_acks(100)
                    if fails == "killed":
                        primary.stop("kill")
                    else:
                        failed.enter_context(paused(primary))
                    await asyncio.to_thread(standby.promote)
                    await load.more_acks(100)
                    keeping.cancel()
                    await asyncio.wait([keeping])
                kept.append(await history.ledger.checkpoint(key))
                report = await history.ledger.verify(*kept)
                assert report.is_intact, report.faults
                assert not report.unattested
                assert report.records == await history.count_history()
                await history.ledger.prove_growth(kept[0], kept[-1])


class TestSynchronousStandby:
    """A commit that waits for a standby is already visible, but may be lost."""

    @pytest.mark.parametrize("function", ["pg_terminate_backend", "pg_cancel_backend"])
    async def test_no_ack_when_the_wait_for_the_standby_is_ended(
        self, pair: tuple[PostgresServer, PostgresServer], function: str
    ) -> None:
        """The server then commits without the standby. A cancelled session is only warned."""
        primary, standby = pair
        admin = await synchronous(primary)
        async with open_history(primary.url()) as history:
            await add(history, "before")
            with paused(standby):
                calls = await sent_and_queued(history)
                waits: Any = None
                for _ in range(3):
                    waits = await another_wait(admin, calls, waits)
                    await admin.execute(f"SELECT {function}($1)", waits["pid"])
                await another_wait(admin, calls, waits)
            await asyncio.gather(*calls)
            assert await texts(admin, "async_history") == ["before", *_TWICE_TWO]
        await admin.close()

    async def test_no_ack_when_the_deadline_passes(
        self, pair: tuple[PostgresServer, PostgresServer]
    ) -> None:
        """Unknown; the records are submitted again while the first commit still waits."""
        primary, standby = pair
        admin = await synchronous(primary)
        async with (
            open_history(primary.url()) as patient,
            open_history(primary.url(), retry_timeout_s=1.5) as history,
        ):
            await add(patient, "before")
            with paused(standby):
                sent = await sent_and_queued(history)
                results = await asyncio.gather(*sent, return_exceptions=True)
                assert {type(result) for result in results} == {CommitUnknown}
                waiting = await waiting_for_locks(admin)
                calls = [
                    asyncio.create_task(patient.batch_add_history(again(n, result)))
                    if isinstance(result, CommitUnknown)
                    else pytest.fail("it was not unknown")
                    for n, result in zip((1, 2), results, strict=True)
                ]
                await until_more_wait(admin, waiting)
                assert not any(call.done() for call in calls)
            await asyncio.gather(*calls)
            assert await texts(admin, "async_history") == ["before", *_TWICE_TWO]
        await admin.close()


_TWICE_TWO: Final = ["1.0", "1.1", "2.0", "2.1"]


async def sent_and_queued(history: HistoryManager) -> "list[asyncio.Task[Any]]":
    """Return a call whose commit waits for the standby, and a call that is queued behind it."""
    calls = []
    for number in (1, 2):
        items = submission(number, 2, named=False)
        calls.append(asyncio.create_task(history.batch_add_history(items)))
        if number == 1:
            await taken_into_a_batch(history)
    return calls


async def another_wait(admin: Any, calls: "list[asyncio.Task[Any]]", before: Any) -> Any:
    """Return the commit that now waits for the standby, if not as before; no call may end."""

    found: Any = None

    async def is_there() -> bool:
        nonlocal found
        assert not any(call.done() for call in calls), "acked without the standby"
        found = await admin.fetchrow(
            "SELECT pid, query_start FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        )
        return found is not None and found != before

    await until(is_there)
    return found


async def test_a_dump_restored_into_another_cluster(server: PostgresServer) -> None:
    """All records are there in order, new ones come after them, and a follower skips none.

    The other cluster has had fewer transactions: those of the dump lie in its future.
    """
    other = PostgresServer(fsync="off").create().start()
    try:
        async with open_history(server.url()) as history, connected(server) as connection:
            for _ in range(500):  # more transactions than the dump has
                await connection.execute("SELECT pg_catalog.pg_current_xact_id()")
            async with Load(history) as load:
                await load.more_acks(300)
            await load.check(history, connection, "async_history")
            await history.save_messages([{"content": "kept"}], "s")
            before = await texts(connection, "async_history")
            memory = await history.get_history("m1")
        dump = str(server.folder / "dump.sql")
        await asyncio.to_thread(server.run, "pg_dump", f"--file={dump}", server.url())
        (server.folder / "dump.sql").chmod(0o644)
        await asyncio.to_thread(other.run, "psql", "--quiet", "--file", dump, other.url())
        async with open_history(other.url(), migrate=False) as history:
            assert await history.get_history("m1") == memory
            assert [r.new_memory async for r in history.query_history()] == before
            await history.add_history("m1", None, "new", "UPDATE")
            assert (await history.get_history("m1"))[-1].new_memory == "new"
            assert [m.content for m in await history.get_last_messages("s")] == ["kept"]
            async with connected(other) as connection:
                assert await texts(connection, "async_history") == [*before, "new"]
                assert await connection.fetchval(_COUNTED_LESS)
                followed = await connection.fetch(_FOLLOWED)
                assert sorted(text for (text,) in followed) == sorted([*before, "new"])
    finally:
        other.remove()


@pytest.mark.subprocess
async def test_four_processes_open_a_new_schema_and_write(server: PostgresServer) -> None:
    schema = f"test_{secrets.token_hex(8)}"
    url = with_query(server.url(), schema=schema)
    acked: set[Wrote] = set()
    with ExitStack() as ending:
        programs = [
            ending.enter_context(processes.started("postgres_load", url, run, _ROUNDS))
            for run in range(_PROCESSES)
        ]
        for program in programs:
            assert program.stdin is not None
            program.stdin.close()  # all processes may begin
        for program in programs:
            assert program.stdout is not None
            acked |= {Wrote(*wrote) for wrote in json.loads(program.stdout.read())}
    async with connected(server) as connection:
        assert check_submissions(await texts(connection, schema)) == acked
        rows = await connection.fetch(
            f'SELECT memory_id, new_memory FROM "{schema}".history ORDER BY seq'
        )
    check_calls_in_order(rows)
    assert {wrote.run for wrote in acked} == set(range(_PROCESSES))
