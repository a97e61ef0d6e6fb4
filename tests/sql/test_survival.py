"""Writing while connections to MariaDB are cut and killed, and the server crashes.

Every acknowledged record is there once, in order, with its whole batch."""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Any, Final

import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import create_async_engine

from async_history import HistoryManager
from async_history.ledger import Checkpoint, LedgerKey
from async_history.sql import SqlHistoryManager
from tests.subprocesses.processes import run
from tests.subprocesses.proxy import MariaDBProxy
from tests.support.mariadb_server import MariaDBServer, run_sql
from tests.support.patience import MINUTES_S, SOON_S
from tests.support.postgres_faults import submission

pytestmark = [pytest.mark.mariadb, pytest.mark.faults, pytest.mark.once]

KEY = LedgerKey.generate("example.org/history")
_FOUND: Final = "SELECT new_memory FROM async_history_records ORDER BY seq"


def texts(url: URL) -> list[str]:
    return [row[0] for row in run_sql(url, _FOUND)]


# The connection is cut at each packet of a call


async def plain(history: HistoryManager, number: int) -> list[str]:
    await history.batch_add_history(submission(number, 3, named=False))
    return [f"{number}.{index}" for index in range(3)]


async def one(history: HistoryManager, number: int) -> list[str]:
    """Write a record with marks, in a prepared statement."""
    await history.batch_add_history(
        [item | {"actor_id": "ann"} for item in submission(number, 1, named=False)]
    )
    return [f"{number}.0"]


async def many(history: HistoryManager, number: int) -> list[str]:
    """Write records with marks in bulk."""
    items = submission(number, 80, named=False)
    await history.batch_add_history([item | {"actor_id": "ann"} for item in items])
    return [f"{number}.{index}" for index in range(80)]


async def all_kinds(history: HistoryManager, number: int) -> list[str]:
    """Write a conditional record, records with marks, and messages in one batch."""
    newest = history.query_history(memory_id="m", order="newest", page_size=1)
    latest = await anext(aiter(newest), None)
    marked = [item | {"actor_id": "ann"} for item in submission(number, 2, named=True)]
    await asyncio.gather(
        history.batch_add_history(marked, if_latest=latest),
        history.save_messages([{"content": f"{number}"}], "s"),
    )
    (message,) = await history.get_last_messages("s", 1)
    assert message.content == f"{number}"
    return [f"{number}.{index}" for index in range(2)]


@pytest.mark.parametrize("ledger", [False, True])
@pytest.mark.parametrize(("way", "packets"), [(one, 2), (plain, 2), (many, 5), (all_kinds, 6)])
async def test_every_caller_gets_an_ack_wherever_the_connection_is_cut(
    own_server: MariaDBServer,
    new_own_database: Callable[[], URL],
    request: pytest.FixtureRequest,
    way: Callable[[HistoryManager, int], Awaitable[list[str]]],
    packets: int,
    ledger: bool,
) -> None:
    """Two batches without a cut come before each cut, so that plain records are one statement."""
    url = new_own_database()
    step = 1 if request.config.getoption("--nightly") else 2
    async with MariaDBProxy(own_server.socket) as proxy:
        through = url.set(query={"unix_socket": str(proxy.socket)})
        async with SqlHistoryManager(through, pool_size=2, ledger=ledger) as history:
            wanted: list[str] = []
            numbers = count()
            for cuts, place in enumerate(count(random.randrange(step), step), 1):  # noqa: S311
                for _ in range(2):
                    wanted += await way(history, next(numbers))
                proxy.cut_after(place)
                wanted += await way(history, next(numbers))
                if proxy.cuts < cuts:
                    break
            assert (await history.check()).problems == ()
            if ledger:
                await require_attested(history, len(wanted))
    assert place >= packets, "of a commit"
    assert texts(url) == wanted


async def require_attested(
    history: HistoryManager, records: int, kept: Sequence[Checkpoint] = ()
) -> None:
    report = await history.ledger.verify(*kept)
    assert report.is_intact, report.faults
    assert (report.records, report.unattested) == (records, ())


# Connections are killed, the server crashes


@pytest.mark.parametrize("ledger", [False, True])
@pytest.mark.parametrize(
    ("kills", "crashes"), [(10, 1), pytest.param(200, 5, marks=pytest.mark.nightly)]
)
@pytest.mark.timeout(MINUTES_S)
async def test_writers_and_a_follower_survive_kills_and_crashes(
    own_server: MariaDBServer,
    new_own_database: Callable[[], URL],
    kills: int,
    crashes: int,
    ledger: bool,
) -> None:
    """Three managers write batches of two, and a fourth follows, until the last kill and crash."""
    url = new_own_database()
    options: dict[str, Any] = {"retry_timeout_s": SOON_S * 3, "batch_records": 9, "ledger": ledger}
    opened = [SqlHistoryManager(url, **options) for _ in range(4)]
    await asyncio.gather(*opened)
    kept: list[Checkpoint] = []
    over = asyncio.Event()
    acked: dict[str, list[str]] = {}
    seen: list[str] = []

    async def write(history: HistoryManager, task: int) -> None:
        mine = acked[f"m{task}"] = []
        while not over.is_set():
            pair = [f"{len(mine)}", f"{len(mine) + 1}"]
            await history.batch_add_history(
                [{"memory_id": f"m{task}", "new_memory": one, "event": "UPDATE"} for one in pair]
            )
            mine += pair
        assert len(mine) > 0

    async def follow() -> None:
        async for record in opened[3].follow(after=None, poll_interval_s=0.02):
            if record.memory_id == "end":
                return
            seen.append(f"{record.memory_id} {record.new_memory}")

    try:
        following = asyncio.create_task(follow())
        writing = [
            asyncio.create_task(write(history, 10 * place + task))
            for place, history in enumerate(opened[:3])
            for task in range(4)
        ]
        rng = random.Random()  # noqa: S311
        for _ in range(crashes):
            await kill(own_server.url(), str(url.database), kills // crashes, rng)
            if ledger:
                kept.append(await opened[2].ledger.checkpoint(KEY))
            own_server.stop(signal.SIGKILL)
            await asyncio.to_thread(own_server.start)
            async with asyncio.timeout(SOON_S * 3):
                before = sum(map(len, acked.values()))
                while sum(map(len, acked.values())) < before + 50:
                    for one in (following, *writing):
                        if one.done():
                            await one
                    await asyncio.sleep(0.01)
        over.set()
        await asyncio.gather(*writing)
        await opened[0].add_history("end", None, "x", "ADD")
        await following
        for memory, wanted in acked.items():
            found = [record.new_memory for record in await opened[1].get_history(memory)]
            assert found == wanted == [str(number) for number in range(len(wanted))]
        stored = run_sql(
            url, "SELECT memory_id, new_memory, seq FROM async_history_records ORDER BY seq"
        )
        assert [row[2] for row in stored] == list(range(1, len(stored) + 1)), "no gap"
        assert len(seen) == len(set(seen)) == sum(map(len, acked.values()))
        assert seen == [f"{shown(row[0])} {row[1]}" for row in stored[:-1]]
        assert (await opened[2].check()).problems == ()
        if ledger:
            await require_attested(opened[2], len(stored), kept)
    finally:
        await asyncio.gather(*(history.aclose() for history in opened))


@pytest.mark.parametrize(
    ("records", "crashes"), [(150, 1), pytest.param(4_000, 5, marks=pytest.mark.nightly)]
)
@pytest.mark.timeout(MINUTES_S)
async def test_processes_that_write_and_one_that_follows_survive_crashes(
    own_server: MariaDBServer, new_own_database: Callable[[], URL], records: int, crashes: int
) -> None:
    """Three processes write batches of two, and a fourth follows from the beginning."""
    url = new_own_database()
    shown_url = url.render_as_string(hide_password=False)
    async with SqlHistoryManager(url):
        pass  # the table is there
    names = ("a", "b", "c")
    commands = [("write", shown_url, name, records) for name in names]
    commands.append(("read", shown_url, "-", records * len(names)))
    programs = [asyncio.create_task(asyncio.to_thread(run, "follow", *one)) for one in commands]
    for crash in range(1, crashes + 1):
        enough = records * len(names) * crash // (crashes + 1)
        while len(texts(url)) < enough:
            await asyncio.wait(programs, timeout=0.2, return_when=asyncio.FIRST_COMPLETED)
            for ended in filter(asyncio.Task.done, programs):
                ended.result()  # the error of a program
        own_server.stop(signal.SIGKILL)
        await asyncio.to_thread(own_server.start)
    *_, followed = await asyncio.gather(*programs)
    stored = texts(url)
    for name in names:
        written = [one for one in stored if one.startswith(name)]
        assert written == [f"{name} {number}" for number in range(records)]
    assert followed.splitlines() == stored


def shown(memory_id: Any) -> str:
    return memory_id.decode() if isinstance(memory_id, bytes) else memory_id


async def kill(admin: URL, database: str, times: int, rng: random.Random) -> None:
    """Kill a random connection of the database, so many times."""
    engine = create_async_engine(admin, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        killed = 0
        while killed < times:
            of_it = text("SELECT id FROM information_schema.processlist WHERE db = :d")
            numbers = (await connection.execute(of_it, {"d": database})).scalars().all()
            if numbers:
                await connection.exec_driver_sql(
                    "BEGIN NOT ATOMIC DECLARE CONTINUE HANDLER FOR 1094 BEGIN END;"
                    f" KILL CONNECTION {rng.choice(numbers)}; END"
                )
                killed += 1
            await asyncio.sleep(rng.random() * 0.05)
    await engine.dispose()
