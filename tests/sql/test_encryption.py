"""Encrypted histories through SQLAlchemy: the contract, nothing in clear, shared keys."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from async_history import open_history
from async_history.errors import (
    InvalidInput,
    KeyMissing,
    MigrationError,
    StorageCorrupt,
    StorageRefused,
)
from async_history.sql import SqlHistoryManager
from async_history.testing import (
    ContractCases,
    FollowCases,
    NewStore,
    OpenStore,
)
from tests.sql.encrypted import opened
from tests.support.encrypted_cases import ANN, EncryptedCases, texts, write_each_way
from tests.support.keys import ring
from tests.support.mariadb_server import MariaDBServer, run_sql

pytestmark = pytest.mark.once


@pytest.mark.mariadb
class TestEncrypted(ContractCases, FollowCases):
    """Some of the cases in each run; all with `--nightly`."""

    @pytest.fixture
    def new_store(self, new_database: Callable[[], URL]) -> NewStore:
        def new_store() -> OpenStore:
            url = new_database()
            return lambda: SqlHistoryManager(url, keys=ring("one"))

        return new_store


@pytest.mark.nightly
@pytest.mark.mariadb
class TestEncryptedMariaDB(TestEncrypted, EncryptedCases):
    examples = 3


@pytest.mark.nightly
class TestEncryptedSQLite(EncryptedCases):
    examples = 3

    @pytest.fixture
    def new_store(self, tmp_path: Path, engines: Callable[[str], AsyncEngine]) -> NewStore:
        def new_store() -> OpenStore:
            file = f"sqlite+aiosqlite:///{tmp_path / os.urandom(4).hex()}.db"
            return lambda: open_history(engine=engines(file), keys=ring("one"))

        return new_store


@pytest.mark.nightly
@pytest.mark.postgres
class TestEncryptedPostgres(EncryptedCases):
    examples = 3

    @pytest.fixture
    def new_store(self, new_schema: Callable[[], str], postgres: str) -> NewStore:
        plain = make_url(postgres).set(drivername="postgresql+asyncpg")

        def new_store() -> OpenStore:
            schema = str(make_url(new_schema()).query["schema"])
            return lambda: SqlHistoryManager(plain, schema=schema, keys=ring("one"))

        return new_store


# Beyond the shared cases

CHANGE: Any = {"memory_id": "own", "new_memory": "own", "event": "ADD"}
_KEYS_OF_OWNERS = "async_history_data_keys WHERE owner <> 'index'"


@pytest.fixture
def url(new_database: Callable[[], URL]) -> URL:
    return new_database()


@pytest.mark.mariadb
async def test_no_text_is_in_any_file_of_the_server() -> None:
    """Tables, undo and redo log, and the binary log."""
    words = (
        "OldWord",
        "NewWord",
        "ContextWord",
        "CauseWord",
        "RunWord",
        "ContentWord",
        "LaterWord",
    )
    server = MariaDBServer(**{"log-bin": "binlog", "innodb-doublewrite": "ON"}).create().start()
    details: Any = {
        "context": {"ContextWord": "ContextWord"},
        "cause": {"why": "CauseWord", "run_id": "RunWord"},
    }
    try:
        run_sql(server.url(), "CREATE DATABASE h")
        engine = create_async_engine(server.url("h"))
        async with opened(server.url("h")) as history:
            for _ in range(3):  # the third is one statement
                await history.add_history("lone", "OldWord", "NewWord", "UPDATE", **details)
            await history.update_history("m", "OldWord", owner=ANN, **details)
            await history.update_history("m", "NewWord", **details)
            await write_each_way(history, 0, "NewWord")
            await history.save_messages([{"role": "user", "content": "ContentWord"}], "user_id=ann")
            assert await history.count_history(cause={"run_id": "RunWord"}) == 5
            await history.rollback(to=datetime.now(UTC) - timedelta(days=1), memory_ids=["m"])
            await history.prune(older_than=timedelta(0), keep_last=1)
            await history.encryption.rotate_keys()
            await history.erase(**ANN, reason="asked")
            async with engine.begin() as connection:
                later = CHANGE | {"new_memory": "LaterWord", "cause": {"run_id": "RunWord"}}
                await history.add_in_transaction(connection, [later])
        await engine.dispose()
        server.stop()
        files = b"".join(file.read_bytes() for file in server.folder.rglob("*") if file.is_file())
        assert {word for word in words if word.encode() in files} == set()
        assert b"many49" in files, "the check finds what is there"
    finally:
        server.remove()


async def test_managers_agree_on_an_owners_first_key(url: URL) -> None:
    managers = await asyncio.gather(*[opened(url) for _ in range(4)])
    await asyncio.gather(
        *[
            manager.add_history(f"m{n}", None, str(n), "ADD", owner=ANN)
            for n, manager in enumerate(managers)
        ],
        *[
            manager.save_messages([{"role": "user", "content": "x"}], f"user_id=bob {n}")
            for n, manager in enumerate(managers)
        ],
    )
    for n in range(4):
        assert await texts(managers[-1], f"m{n}") == [str(n)]
    for manager in managers:
        await manager.aclose()
    keys = run_sql(url, "SELECT owner FROM async_history_data_keys")
    assert len(set(keys)) == len(keys) == 6, "of ann, four scopes of bob, and the index"


async def test_a_key_that_the_store_has_lost_encrypts_nothing_more(url: URL) -> None:
    """As after restoring a backup without the key, with a manager that has it in memory."""
    engine = create_async_engine(url)

    async def in_transaction(number: int) -> None:
        async with engine.begin() as connection:
            await history.add_in_transaction(connection, [CHANGE | {"memory_id": f"m{number}"}])

    async with opened(url) as history:
        writes: list[Callable[[int], Awaitable[Any]]] = [
            lambda number: history.add_history(f"m{number}", None, "own", "ADD"),
            lambda number: history.add_history(f"m{number}", None, "own", "ADD", owner=ANN),
            lambda number: history.update_history(f"m{number}", "own"),
            in_transaction,
        ]
        for number, write in enumerate(writes):
            for _ in range(3):  # the third is one statement, as the next would be
                await history.add_history("m", None, "tea", "ADD")
            run_sql(url, f"DELETE FROM {_KEYS_OF_OWNERS}")
            await write(number)
            async with opened(url) as other:
                assert await texts(other, f"m{number}") == ["own"]
        await history.save_messages([{"role": "user", "content": "x"}], "scope")
        run_sql(url, f"DELETE FROM {_KEYS_OF_OWNERS}")
        await history.save_messages([{"role": "user", "content": "again"}], "other")
        async with opened(url) as other:
            assert [one.content for one in await other.get_last_messages("other")] == ["again"]
    await engine.dispose()


async def test_a_text_that_was_moved_is_refused(url: URL) -> None:
    async with opened(url) as history:
        for name in ("a", "b"):
            await history.add_history("m", f"old {name}", f"new {name}", "UPDATE", id=name)
        run_sql(url, "UPDATE async_history_records SET new_memory = old_memory WHERE id = 'a'")
        with pytest.raises(StorageCorrupt, match="of a does not open"):
            await history.get_history("m")


async def test_without_keys_nothing_is_written_once_encryption_is_on(url: URL) -> None:
    """Even by a manager that was open before. Existing texts in clear are read, and counted."""
    engine = create_async_engine(url)
    async with SqlHistoryManager(url) as before:
        for _ in range(3):
            await before.add_history("m", None, "before", "ADD", cause={"run_id": "r"})
        with pytest.raises(InvalidInput, match="not encrypted"):
            _ = before.encryption
        with pytest.raises(MigrationError, match="migrate=True once"):
            await opened(url, migrate=False)
        async with opened(url) as history:
            for write in (
                lambda: before.add_history("m", None, "clear", "ADD"),
                lambda: before.update_history("m", "clear"),
                lambda: before.save_messages([{"role": "user", "content": "clear"}], "s"),
                lambda: before.erase(memory_ids=["m"], reason="asked"),
                lambda: before.reset(),
            ):
                with pytest.raises(KeyMissing, match="open it with keys"):
                    await write()
            async with engine.begin() as connection:
                with pytest.raises(KeyMissing):
                    await before.add_in_transaction(connection, [CHANGE])
            await history.add_history("m", "before", "after", "UPDATE", cause={"run_id": "r"})
            assert await texts(history, "m") == ["before", "before", "before", "after"]
            assert await history.count_history(cause={"run_id": "r"}) == 4
            assert await history.count_history(text="after") == 1
            assert await history.get_last_messages("s") == []
            (clear,) = [w for w in (await history.stats()).warnings if w.code == "clear-records"]
            assert clear.startswith("3 records have texts in clear")
    await engine.dispose()
    for keys, name in ((None, ""), (ring("two"), "one")):
        with pytest.raises(KeyMissing) as missing:
            await SqlHistoryManager(url, keys=keys)
        assert missing.value.name == name
    async with opened(url, migrate=False) as history:
        assert (await texts(history, "m"))[-1] == "after"


async def test_keys_of_a_rolled_back_transaction_are_not_used(url: URL) -> None:
    engine = create_async_engine(url)
    async with opened(url) as history:
        async with engine.connect() as connection:
            await history.add_in_transaction(connection, [CHANGE | {"owner": ANN}])
            await history.add_in_transaction(connection, [CHANGE])
            await connection.rollback()
        await write_each_way(history, 0)
    await engine.dispose()
    async with opened(url) as history:
        assert await texts(history, "owned0") == ["tea"]
        assert await texts(history, "own") == []


async def test_owners_are_not_looked_up_if_there_are_none(url: URL) -> None:
    """As in a history in clear: encryption needs no look-ups for a batch of new memories."""
    engine = create_async_engine(url)
    seen: list[str] = []
    async with open_history(engine=engine, keys=ring("one")) as history:
        await history.add_history("first", None, "tea", "ADD")
        event.listen(
            engine.sync_engine, "before_cursor_execute", lambda *sent: seen.append(sent[2])
        )
        for number in range(3):
            await history.add_history(f"m{number}", None, "tea", "ADD")
        assert seen
        assert not any("async_history_owners" in sql for sql in seen)
    await engine.dispose()


async def test_a_text_that_is_too_large_once_encrypted_is_refused(url: URL) -> None:
    run_sql(url, "SET GLOBAL max_allowed_packet = 1048576")
    try:
        async with SqlHistoryManager(url, schema=url.database) as history:
            await history.add_history("m", None, "x" * 900_000, "ADD")
        async with opened(url) as history:
            for size, fits in ((700_000, True), (720_000, False), (900_000, False)):
                writing = history.add_history("m", None, "\u00e9" * (size // 2), "ADD")
                if fits:
                    await writing
                else:
                    with pytest.raises(StorageRefused, match="max_allowed_packet"):
                        await writing
    finally:
        run_sql(url, "SET GLOBAL max_allowed_packet = 134217728")


async def test_tables_of_version_2_are_migrated(
    tmp_path: Path, engines: Callable[[str], AsyncEngine]
) -> None:
    engine = engines(f"sqlite+aiosqlite:///{tmp_path / 'history.db'}")
    async with open_history(engine=engine) as history:
        await history.add_history("m", None, "before", "ADD")
    async with engine.begin() as connection:
        for name in ("data_keys", "wrapping_keys", "encryption"):
            await connection.exec_driver_sql(f"DROP TABLE async_history_{name}")
        await connection.exec_driver_sql("UPDATE async_history_state SET layout = 2")
    with pytest.raises(MigrationError, match="version 2 and 3 is needed"):
        await open_history(engine=engine, keys=ring("one"), migrate=False)
    async with open_history(engine=engine, keys=ring("one")) as history:
        await history.add_history("m", "before", "after", "UPDATE")
        assert await texts(history, "m") == ["before", "after"]
