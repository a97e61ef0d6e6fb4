"""Ids that callers give, and repeated attempts: each record is there once and delays no other."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from async_history import HistoryManager, IdConflict, StorageLocked, open_history
from async_history._core.writing.commit_function import OutcomeUnknown
from async_history.postgres import PostgresHistoryManager
from tests.conftest import stores
from tests.support.outcomes import outcome
from tests.support.patience import LONG_S

pytestmark = pytest.mark.once

NewSchema = Callable[[], str]


def record(memory_id: str, record_id: str) -> dict[str, Any]:
    return {"id": record_id, "memory_id": memory_id, "new_memory": memory_id, "event": "ADD"}


def opened(url: str, **options: Any) -> PostgresHistoryManager:
    history = open_history(url, **options)
    assert isinstance(history, PostgresHistoryManager)
    return history


async def test_an_open_transaction_delays_no_other_id(postgres: str, new_schema: NewSchema) -> None:
    url = new_schema()
    owner = await asyncpg.connect(postgres)
    async with opened(url) as one, opened(url) as other:
        async with owner.transaction():
            await one.add_in_transaction(owner, [record("m", "mine")])
            calls = [other.batch_add_history([record("k", f"other {n}")]) for n in range(200)]
            async with asyncio.timeout(LONG_S):
                await asyncio.gather(*calls)
        assert await outcome(other.batch_add_history([record("k", "mine")])) == "IdConflict"
    await owner.close()


async def test_only_the_call_with_an_id_of_an_open_transaction_waits(
    postgres: str, new_schema: NewSchema
) -> None:
    url = new_schema()
    owner = await asyncpg.connect(postgres)
    async with opened(url) as one, opened(url, retry_timeout_s=4) as other:
        async with owner.transaction():
            await one.add_in_transaction(owner, [record("m", "mine")])
            calls = [record("k", "mine" if n == 3 else f"other {n}") for n in range(8)]
            outcomes = await asyncio.gather(
                *(outcome(other.batch_add_history([call])) for call in calls)
            )
        assert outcomes.pop(3) in ("StorageLocked", "CommitUnknown")
        assert outcomes == ["ok"] * 7
        assert await one.count_history() == 8
    await owner.close()


@pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read", "serializable"])
async def test_an_id_that_was_committed_after_a_transactions_snapshot_is_refused(
    isolation: Any, postgres: str, new_schema: NewSchema
) -> None:
    url = new_schema()
    user = await asyncpg.connect(postgres)
    async with opened(url) as history:
        transaction = user.transaction(isolation=isolation)
        await transaction.start()
        await user.fetchval("SELECT count(*) FROM pg_class")  # its snapshot is taken
        await history.batch_add_history([record("a", "x")])
        with pytest.raises((StorageLocked, IdConflict)):
            await history.add_in_transaction(user, [record("b", "x")])
        await transaction.rollback()
        assert [one.memory_id async for one in history.query_history()] == ["a"]
    await user.close()


async def test_eight_writers_with_the_same_ids_in_any_order(new_schema: NewSchema) -> None:
    url = new_schema()
    managers = [await opened(url) for _ in range(4)]
    ids = [str(n) for n in range(20)]
    calls = [
        manager.batch_add_history([record("m", one) for one in (ids if n % 2 else ids[::-1])])
        for n, manager in enumerate(managers * 2)
    ]
    assert [await outcome(call) for call in asyncio.as_completed(calls)] == ["ok"] * 8
    assert await managers[0].count_history() == 20
    for manager in managers:
        await manager.aclose()


@pytest.fixture(params=stores("file", "postgres"))
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return str(tmp_path / "history.db")
    new_schema: NewSchema = request.getfixturevalue("new_schema")
    return new_schema()


async def committed_twice(
    history: HistoryManager, call: Awaitable[Any], between: Callable[[], Awaitable[Any]]
) -> Any:
    """Make a call whose first acknowledgement is lost. Others act before it is repeated."""
    writer: Any = history.store.writer
    commit = writer._commit
    is_committed, others_are_done = asyncio.Event(), asyncio.Event()

    async def commit_unheard(batch: Any, this: Any) -> Any:
        if this.is_repeated:
            return await commit(batch, this)
        await commit(batch, this)
        is_committed.set()
        await others_are_done.wait()
        raise OutcomeUnknown("not heard of")

    writer._commit = commit_unheard
    task = asyncio.ensure_future(call)
    await is_committed.wait()
    writer._commit = commit
    await between()
    others_are_done.set()
    return await task


def messages(*contents: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content} for content in contents]


@pytest.mark.parametrize("others", [0, 1, 9, 10, 11, 25])
@pytest.mark.parametrize("before", [0, 4, 30])
async def test_a_retry_does_not_save_messages_that_others_pushed_out(
    before: int, others: int, url: str
) -> None:
    async with open_history(url) as history, open_history(url) as other:
        for n in range(before):
            await other.save_messages(messages(f"before {n}"), "s")

        async def save_others() -> None:
            for n in range(others):
                await other.save_messages(messages(f"other {n}"), "s")

        await committed_twice(history, history.save_messages(messages("a", "b"), "s"), save_others)
        contents = [f"before {n}" for n in range(before)]
        contents += ["a", "b", *(f"other {n}" for n in range(others))]
        kept = [message.content for message in await history.get_last_messages("s")]
        assert kept == contents[-10:]


async def test_a_record_that_was_erased_before_the_retry_is_acknowledged(url: str) -> None:
    async with open_history(url) as history, open_history(url) as other:

        async def erase() -> None:
            await other.erase(actor_id="ann", reason="asked", vacuum=False)

        add = history.add_history("m", None, "secret", "ADD", actor_id="ann")
        record = await committed_twice(history, add, erase)
        assert (record.new_memory, record.actor_id) == (None, None)
        update = history.update_history("n", "secret", actor_id="ann")
        assert (await committed_twice(history, update, erase)).new_memory is None
        assert await history.count_history() == 2


async def refuse_messages(url: str, postgres: str | None, content: str) -> None:
    """Let the database refuse messages with a content."""
    if postgres is None:
        with contextlib.closing(sqlite3.connect(url)) as file:
            file.execute(
                f"CREATE TRIGGER refuses BEFORE INSERT ON messages WHEN new.content = '{content}' "
                "BEGIN SELECT raise(ABORT, 'refused'); END"
            )
        return
    schema = url.rpartition("schema=")[2]
    owner = await asyncpg.connect(postgres)
    await owner.execute(f"ALTER TABLE {schema}.messages ADD CHECK (content <> '{content}')")
    await owner.close()


async def test_a_retry_acknowledges_no_messages_that_were_refused(
    url: str, request: pytest.FixtureRequest
) -> None:
    """Later ones of their scope are stored."""
    postgres = request.getfixturevalue("postgres") if "://" in url else None
    async with open_history(url) as history:
        await history.save_messages(messages("first"), "s")
        await refuse_messages(url, postgres, "bad")
        saves = [history.save_messages(messages(content), "s") for content in ("bad", "good")]
        outcomes = asyncio.gather(*map(outcome, saves))
        assert await committed_twice(history, outcomes, nothing) == ["StorageRefused", "ok"]
        kept = [message.content for message in await history.get_last_messages("s")]
        assert kept == ["first", "good"]


async def nothing() -> None: ...
