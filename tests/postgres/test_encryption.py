"""Encrypted histories in PostgreSQL: nothing in clear, missing keys, shared keys."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from async_history import HistoryManager, open_history
from async_history._core.encryption.key_statements import KEY_COLUMNS
from async_history._core.encryption.sealing import BEGIN
from async_history._postgres.grants import Grants, grant
from async_history._postgres.key_statements import LOCK_KEYS
from async_history._postgres.schema import migrations
from async_history.errors import (
    HistoryError,
    IdConflict,
    InvalidInput,
    KeyMissing,
    MigrationError,
    StorageCorrupt,
    StorageDenied,
)
from async_history.postgres import PostgresHistoryManager
from tests.support.encrypted_cases import ANN, texts, write_each_way
from tests.support.keys import ring
from tests.support.postgres_roles import ROLE_PASSWORD, as_role, server_of
from tests.support.postgres_schemas import schema_of, until
from tests.support.postgres_server import PostgresServer

pytestmark = [pytest.mark.postgres, pytest.mark.once]


def opened(url: str, *names: str, **options: Any) -> HistoryManager:
    return open_history(url, keys=ring(*(names or ("one",))), **options)


async def test_records_of_many_tasks_open_though_some_are_cancelled(url: str) -> None:
    """Records that wait are sealed ahead, and some of these are never written."""

    async def agent(name: int) -> None:
        for number in range(4):
            await history.add_history(
                f"{name}",
                None,
                f"likes {number}",
                "ADD",
                owner={"user_id": f"{name % 9}"},
                cause={"run_id": f"{name}"},
            )
            acked.append(name)
            if len(acked) == 500:
                for one in agents[1::7]:
                    one.cancel()

    acked: list[int] = []
    async with opened(url) as history:
        agents = [asyncio.create_task(agent(name)) for name in range(400)]
        await asyncio.wait(agents)
        found = [record async for record in history.query_history()]
        assert 1_200 < len(acked) <= len(found) < 1_600
        for record in found:
            assert record.owner is not None
            assert record.owner.user_id == f"{int(record.memory_id) % 9}"
            assert record.cause == {"run_id": record.memory_id}
            assert str(record.new_memory).startswith("likes ")
        assert await history.count_history(cause={"run_id": "0"}) == 4
        assert [one.code for one in (await history.stats()).warnings if "clear" in one.code] == []


async def test_no_text_is_in_any_file_of_the_cluster() -> None:
    words = ("OldWord", "NewWord", "ContextWord", "CauseWord", "RunWord", "ContentWord", "Later")
    # The server's log has all statements and their parameters.
    server = PostgresServer(fsync="off", log_min_messages="log", log_min_duration_statement="0")
    server.create().start()
    details: dict[str, Any] = {
        "context": {"ContextWord": "ContextWord"},
        "cause": {"why": "CauseWord", "run_id": "RunWord"},
    }
    try:
        async with opened(server.url()) as history:
            await history.add_history("lone", "OldWord", "NewWord", "UPDATE")
            await history.update_history("m", "OldWord", owner=ANN, **details)
            await history.update_history("m", "NewWord", **details)
            await write_each_way(history, 0, "NewWord")
            await history.save_messages([{"role": "user", "content": "ContentWord"}], "user_id=ann")
            assert await history.count_history(cause={"run_id": "RunWord"}) == 2
            await history.rollback(to=datetime.now(UTC) - timedelta(days=1), memory_ids=["m"])
            await history.prune(older_than=timedelta(0), keep_last=1)
            await history.encryption.rotate_keys()
            await history.erase(**ANN, reason="asked")
            connection = await asyncpg.connect(server.url())
            async with connection.transaction():
                record = {"memory_id": "own", "new_memory": "Later", "event": "ADD"}
                await added_in(history, connection, record)
            await connection.execute("CHECKPOINT")
            await connection.close()
        files = b"".join(file.read_bytes() for file in server.folder.rglob("*") if file.is_file())
        assert {word for word in words if word.encode() in files} == set()
        assert b"many49" in files, "the check finds what is there"
        assert b"DETAIL:  Parameters: $1 = " in files, "the server's log has the parameters"
    finally:
        server.remove()


async def added_in(history: HistoryManager, connection: Any, record: dict[str, Any]) -> None:
    assert isinstance(history, PostgresHistoryManager)
    await history.add_in_transaction(connection, [record])


async def test_managers_agree_on_an_owners_first_key(url: str, raw: asyncpg.Connection) -> None:
    managers = [await manager for manager in [opened(url) for _ in range(4)]]
    # A history's first owner takes a separate lock, under which they would not collide.
    await managers[0].add_history("first", None, "x", "ADD", owner={"user_id": "first"})
    await asyncio.gather(
        *[
            manager.add_history(f"m{n}", None, str(n), "ADD", owner=ANN)
            for n, manager in enumerate(managers)
        ],
        *[
            manager.save_messages([{"role": "user"}], f"user_id=bob {n}")
            for n, manager in enumerate(managers)
        ],
    )
    for n in range(4):
        assert await texts(managers[-1], f"m{n}") == [str(n)]
    for manager in managers:
        await manager.aclose()
    assert (
        await raw.fetchval(
            "SELECT max(count) FROM (SELECT count(*) FROM data_keys GROUP BY owner) AS c"
        )
        == 1
    )


async def test_a_key_that_the_store_has_lost_encrypts_nothing_more(
    url: str, raw: asyncpg.Connection, postgres: str
) -> None:
    """As after a failover to a standby without the key, with a manager that has it in memory."""
    async with opened(url) as history:
        await write_each_way(history, 0)
        await history.save_messages([{"role": "user", "content": "hello"}], "scope")
        for number, kind in enumerate(("lone", "owned", "latest", "named", "many", "scope"), 1):
            await raw.execute("DELETE FROM data_keys WHERE owner <> 'index'")
            if kind == "scope":
                await history.save_messages([{"role": "user", "content": "again"}], "other")
                continue
            await raw.execute("TRUNCATE history, messages")
            for name in await write_each_way(history, number):
                assert await texts(history, name) == ["tea"]
        await raw.execute("DELETE FROM data_keys WHERE owner <> 'index'")
        connection = await asyncpg.connect(postgres)
        async with connection.transaction():
            await added_in(
                history, connection, {"memory_id": "own", "new_memory": "x", "event": "ADD"}
            )
        await connection.close()
    async with opened(url) as history:
        assert await texts(history, "own") == ["x"]


async def test_a_batch_through_a_pooler_checks_its_keys_too(
    url: str, raw: asyncpg.Connection
) -> None:
    async with opened(url, statement_cache_size=0) as history:
        await write_each_way(history, 0)
        await raw.execute("DELETE FROM data_keys WHERE owner <> 'index'")
        for name in await write_each_way(history, 1):
            assert await texts(history, name) == ["tea"]


async def test_a_key_that_is_made_while_an_owner_is_noted_is_destroyed(
    url: str, raw: asyncpg.Connection, connect: Any
) -> None:
    watching = await connect()
    async with opened(url) as history:
        await history.add_history("m", None, "tea", "ADD", owner=ANN)
        await raw.execute("BEGIN")
        await raw.execute(LOCK_KEYS, f'"{schema_of(url)}"')
        columns = ", ".join(KEY_COLUMNS[1:])
        await raw.execute(
            f"INSERT INTO data_keys (id, {columns}) SELECT 'another', {columns} FROM data_keys"
            " WHERE user_id IS NOT NULL"
        )
        erasing = asyncio.ensure_future(history.erase(**ANN, reason="asked", vacuum=False))
        await until(
            watching,
            "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)"
            f" OR EXISTS (SELECT FROM {schema_of(url)}.erased)",
        )
        await raw.execute("COMMIT")
        await erasing
        assert await raw.fetch("SELECT FROM data_keys WHERE user_id IS NOT NULL") == []


async def test_a_backup_from_before_an_erasure_needs_the_master_key_of_its_time(
    url: str, raw: asyncpg.Connection
) -> None:
    tables = ("history", "data_keys", "wrapping_keys")
    async with opened(url) as history:
        await history.add_history("a", None, "before", "ADD", owner=ANN)
        for table in tables:
            await raw.execute(f"CREATE TABLE backup_{table} AS TABLE {table}")
        await history.erase(**ANN, reason="asked")
    async with opened(url, "two", "one") as history:
        await history.encryption.rotate_keys()
    for table in tables:
        await raw.execute(f"TRUNCATE {table}")
        await raw.execute(f"INSERT INTO {table} OVERRIDING SYSTEM VALUE TABLE backup_{table}")
    with pytest.raises(KeyMissing, match="'one'"):
        await opened(url, "two")
    async with opened(url, "two", "one") as history:
        assert await texts(history, "a") == ["before"]


async def test_a_text_that_was_moved_is_refused(url: str, raw: asyncpg.Connection) -> None:
    async with opened(url) as history:
        for name in ("a", "b"):
            await history.add_history("m", f"old {name}", f"new {name}", "UPDATE", id=name)
        await raw.execute(
            "UPDATE history SET new_memory = (SELECT new_memory FROM history WHERE id = 'b')"
        )
        with pytest.raises(StorageCorrupt, match="of a does not open"):
            await history.get_history("m")


async def test_texts_in_clear_are_read_and_counted(url: str, raw: asyncpg.Connection) -> None:
    async with open_history(url) as history:
        await history.add_history("m", None, "before", "ADD", cause={"run_id": "r"})
        with pytest.raises(InvalidInput, match="not encrypted"):
            _ = history.encryption
    with pytest.raises(MigrationError, match="migrate=True once"):
        await opened(url, migrate=False)
    async with opened(url) as history:
        await history.add_history("m", "before", "after", "UPDATE", cause={"run_id": "r"})
        assert await texts(history, "m") == ["before", "after"]
        assert await history.count_history(cause={"run_id": "r"}) == 2
        assert await history.count_history(text="after") == 1
        (clear,) = [one for one in (await history.stats()).warnings if one.code == "clear-records"]
        assert clear.startswith("1 record has texts in clear")
    assert (
        await raw.fetchval("SELECT new_memory FROM history WHERE old_memory IS NOT NULL")
    ).startswith(BEGIN)
    for keys, name in ((None, ""), (ring("two"), "one")):
        with pytest.raises(KeyMissing) as missing:
            await open_history(url, keys=keys)
        assert missing.value.name == name
    async with opened(url, migrate=False) as history:
        assert await texts(history, "m") == ["before", "after"]


@pytest.fixture
async def reader(url: str, raw: asyncpg.Connection) -> AsyncIterator[str]:
    """The URL of a role with a reader's rights on the existing history."""
    async with open_history(url):
        pass
    role = f"role_{secrets.token_hex(8)}"
    await raw.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{ROLE_PASSWORD}'")
    wanted = Grants(role=role, level="reader")
    await grant(server_of(url), schema_of(url), wanted, is_dry_run=False)
    yield as_role(url, role)
    await raw.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_only_the_tables_owner_can_turn_encryption_on(url: str, reader: str) -> None:
    with pytest.raises(HistoryError, match="own"):
        await opened(reader)
    async with open_history(url) as history:
        await history.add_history("m", None, "in clear", "ADD")


async def test_keys_and_leaves_are_read_where_they_are_written(
    url: str, reader: str, raw: asyncpg.Connection
) -> None:
    """Even with `read_url`: a replica may not have the newest yet."""
    role = reader.partition("//")[2].partition(":")[0]
    async with opened(url, ledger=True) as history:
        await history.add_history("m", None, "tea", "ADD", owner=ANN)
    for table in ("data_keys", "wrapping_keys", "history_ledger"):
        await raw.execute(f"REVOKE ALL ON {table} FROM {role}")
    async with opened(url, read_url=server_of(reader)) as history:
        assert await texts(history, "m") == ["tea"]
        await raw.execute(f"REVOKE ALL ON history FROM {role}")
        assert (await history.ledger.verify()).records == 1
        with pytest.raises(StorageDenied):
            await history.get_history("m")


async def test_a_citus_cluster_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def is_distributed(*_: object) -> bool:
        return True

    monkeypatch.setattr(migrations, "is_distributed", is_distributed)
    with pytest.raises(InvalidInput, match="Citus"):
        await opened(url)


async def batch_on_a_condition(history: HistoryManager, _: Any) -> None:
    record = {"memory_id": "m", "old_memory": "tea", "new_memory": "mate", "event": "UPDATE"}
    await history.batch_add_history([record], if_latest="0")


async def batch_of_a_known_id(history: HistoryManager, _: Any) -> None:
    await history.add_history("m", None, "tea", "ADD", id="0", owner=ANN)
    with pytest.raises(IdConflict):
        await history.add_history("m", None, "milk", "ADD", id="0", owner=ANN)


async def add_in_a_transaction(history: HistoryManager, connection: Any) -> None:
    async with connection.transaction():
        again = {"memory_id": "m", "new_memory": "tea", "event": "ADD", "id": "0", "owner": ANN}
        await added_in(history, connection, again)


async def erase_a_record(history: HistoryManager, _: Any) -> None:
    await history.erase(record_ids=["0"], reason="asked", vacuum=False)
    report = await history.ledger.verify()
    assert (report.faults, report.erased) == ((), 1)


async def erase_an_actor(history: HistoryManager, _: Any) -> None:
    await history.erase(actor_id="bo", reason="asked", vacuum=False)


@pytest.mark.parametrize(
    "call",
    [
        batch_on_a_condition,
        batch_of_a_known_id,
        add_in_a_transaction,
        erase_a_record,
        erase_an_actor,
    ],
)
async def test_a_write_reads_again_if_a_key_was_replaced(
    url: str, raw: asyncpg.Connection, call: Callable[[HistoryManager, Any], Awaitable[None]]
) -> None:
    async with opened(url, ledger=True) as other:
        await other.add_history("m", None, "tea", "ADD", id="0", owner=ANN)
        await other.add_history("n", None, "tea", "ADD", owner=ANN, actor_id="bo")
        async with opened(url) as history:
            store: Any = history.store
            keys = store.encryption.keys
            load, replaced = keys.load, 0

            async def load_late(ids: Any, *given: Any, **options: Any) -> Any:
                nonlocal replaced
                if ids and not replaced:
                    replaced = (await other.encryption.replace_data_keys()).data_keys
                return await load(ids, *given, **options)

            keys.load = load_late
            await call(history, raw)
            assert replaced
            assert (await history.ledger.verify()).is_intact
