"""Calls of a batch whose first commit still waits for a standby when it is tried again."""

import asyncio
from collections.abc import Iterator

import asyncpg
import pytest

from async_history import (
    CommitUnknown,
    HistoryConflict,
    HistoryError,
    StorageLocked,
    StorageRefused,
    open_history,
)
from async_history._core.writing.commit_function import CommitTry, OutcomeUnknown, TryAgain
from async_history._core.writing.late_tries import LateTries
from async_history._core.writing.new_submissions import messages_to_save
from async_history._postgres.writing.late_tries import note
from tests.support.outcomes import outcome
from tests.support.postgres_faults import until
from tests.support.postgres_server import PostgresServer, are_installed, with_query

pytestmark = [pytest.mark.postgres, pytest.mark.once]

_WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server that waits for a standby that does not exist."""
    if not are_installed():
        pytest.skip("needs a server of its own")
    server = PostgresServer(fsync="off", synchronous_standby_names="absent").create().start()
    yield server
    server.remove()


async def test_no_call_is_said_to_be_unwritten_that_its_first_try_writes(
    server: PostgresServer,
) -> None:
    """A late try refuses the calls, because they wait for the first one. Then both commit."""
    local = with_query(server.url(), synchronous_commit="local")
    async with open_history(local):
        pass
    admin = await asyncpg.connect(local)
    names = [f"r{n}" for n in range(5)]
    async with open_history(server.url(), retry_timeout_s=6) as history:
        calls = [history.add_history("m", None, "x", "ADD", id=name) for name in names]
        outcomes = asyncio.ensure_future(asyncio.gather(*map(outcome, calls)))

        async def are_both_waiting() -> bool:
            return int(await admin.fetchval(_WAITING)) > 1

        await until(are_both_waiting)
        server.write_settings(synchronous_standby_names="")
        await admin.execute("SELECT pg_reload_conf()")
        assert set(await outcomes) <= {"ok", "CommitUnknown"}
        assert [record.id for record in await history.get_history("m")] == names
    await admin.close()


@pytest.mark.parametrize(
    ("earlier", "is_unknown"),
    [
        (OutcomeUnknown("the connection was lost"), True),
        (asyncio.CancelledError(), True),
        (TryAgain(StorageLocked("a lock")), False),
    ],
)
def test_what_a_late_try_refuses_is_unknown_if_an_earlier_one_is(
    earlier: TryAgain | OutcomeUnknown | asyncio.CancelledError, is_unknown: bool
) -> None:
    tries = LateTries(1.0)
    this, other = (CommitTry(True, float(begun), lambda: None) for begun in range(2))
    batch = [messages_to_save([{"role": "user", "content": text}], "s") for text in "abc"]
    refused: dict[int, HistoryError] = {
        0: StorageLocked("a lock"),
        1: StorageRefused("no"),
        2: HistoryConflict("changed"),
    }
    note(tries, this, earlier)
    assert tries.outcomes(batch, refused, other) == refused
    outcomes = tries.outcomes(batch, refused, this)
    assert {index: outcomes[index] for index in (1, 2)} == {1: refused[1], 2: refused[2]}
    assert isinstance(outcomes[0], CommitUnknown) == is_unknown
    if isinstance(outcomes[0], CommitUnknown):
        assert outcomes[0].ids == tuple(batch[0].ids)
