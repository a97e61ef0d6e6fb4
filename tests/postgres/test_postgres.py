"""PostgreSQL alone: its schema, rights, URLs, refusals, the user's own pool and transactions."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
from typer.testing import CliRunner

from async_history import (
    HistoryConflict,
    HistoryOptions,
    IdConflict,
    InvalidInput,
    MigrationError,
    StorageDenied,
    StorageError,
    StorageLocked,
    StorageMissing,
    StorageReadOnly,
    StorageRefused,
    StorageUnreachable,
    open_history,
)
from async_history._postgres import citus
from async_history._postgres.schema import in_schema, migrations, quoted
from async_history.cli.app import app
from async_history.postgres import PostgresHistoryManager
from tests.support.docs_examples import example
from tests.support.ports import free_port
from tests.support.postgres_roles import ROLE_PASSWORD, NewSchema, as_role, server_of
from tests.support.postgres_schemas import schema_of
from tests.support.postgres_server import with_query

pytestmark = [pytest.mark.postgres, pytest.mark.versions, pytest.mark.once]


@pytest.fixture
async def owner(postgres: str) -> AsyncIterator[Any]:
    """A connection of the database's owner."""
    connection = await asyncpg.connect(postgres)
    yield connection
    await connection.close()


@pytest.fixture
async def role(owner: Any) -> AsyncIterator[str]:
    """A role that may only log in."""
    await owner.execute(f"CREATE ROLE agent LOGIN PASSWORD '{ROLE_PASSWORD}'")
    yield "agent"
    await owner.execute("DROP OWNED BY agent; DROP ROLE agent")


def grants(schema: str) -> str:
    """Return the rights that a program's role needs according to the documentation."""
    return re.sub(r"\basync_history\b", schema, example("rights"))


class TestSchema:
    @pytest.mark.parametrize("earlier", range(migrations.VERSION))
    async def test_every_earlier_version_is_migrated(
        self, new_schema: NewSchema, owner: Any, monkeypatch: pytest.MonkeyPatch, earlier: int
    ) -> None:
        url = new_schema()
        schema = schema_of(url)
        with monkeypatch.context() as patched:
            older = {n: text for n, text in migrations.SCRIPTS.items() if n <= earlier}
            patched.setattr(migrations, "SCRIPTS", older)
            patched.setattr(migrations, "VERSION", earlier)
            if earlier:
                await migrations.migrate(owner, schema)
        async with open_history(url) as history:
            await history.add_history("m", None, "x", "ADD")
        assert await migrations.applied_version(owner, schema) == migrations.VERSION

    async def test_eight_openings_at_once_make_one_schema(self, new_schema: NewSchema) -> None:
        url = new_schema()

        async def one(number: int) -> None:
            async with open_history(url, pool_size=2) as history:
                await history.add_history("m", None, str(number), "UPDATE")

        await asyncio.gather(*(one(number) for number in range(8)))
        async with open_history(url) as history:
            assert len(await history.get_history("m")) == 8

    async def test_migrate_false_says_what_is_missing(self, new_schema: NewSchema) -> None:
        url = new_schema()
        either: list[HistoryOptions] = [{"migrate": False}, {"create": False}]
        for options in either:
            with pytest.raises(StorageMissing, match="async-history migrate"):
                await open_history(url, **options)

        async def migrate(*options: str) -> dict[str, Any]:
            command = ["migrate", "--db", url, "--json", *options]
            result = await asyncio.to_thread(CliRunner().invoke, app, command)
            assert result.exit_code == 0, result.output
            report: dict[str, Any] = json.loads(result.stdout)
            return report

        for _ in range(2):
            report = await migrate("--dry-run")
            assert (report["done"], "async-history migrate" in report["outcome"]) == (False, True)
        assert (await migrate())["done"]
        assert (await migrate("--dry-run"))["outcome"].endswith("is up to date")
        async with open_history(url, migrate=False) as history:
            await history.add_history("m", None, "x", "ADD")

    async def test_an_older_schema_is_named(
        self, new_schema: NewSchema, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        url = new_schema()
        async with open_history(url):
            pass
        monkeypatch.setattr(migrations, "VERSION", migrations.VERSION + 1)
        with pytest.raises(MigrationError, match=f"version {migrations.VERSION - 1}"):
            await open_history(url, migrate=False)

    async def test_a_newer_schema_is_refused_and_not_changed(
        self, new_schema: NewSchema, owner: Any
    ) -> None:
        url = new_schema()
        async with open_history(url):
            pass
        notes = f"{quoted(schema_of(url))}.migrations"
        await owner.execute(f"INSERT INTO {notes} (version) VALUES (99)")
        either: list[HistoryOptions] = [{}, {"migrate": False}]
        for options in either:
            with pytest.raises(MigrationError, match="newer async_history"):
                await open_history(url, **options)
        assert await owner.fetchval(f"SELECT max(version) FROM {notes}") == 99

    async def test_a_schema_may_have_any_name(
        self, postgres: str, owner: Any, new_schema: NewSchema
    ) -> None:
        for name in ('we"ird; DROP SCHEMA {x} %s', "'", "Ünï CASE"):
            async with PostgresHistoryManager(postgres, schema=name) as history:
                await history.add_history("m", None, "x", "ADD")
                await history.save_messages([{"role": "user", "content": "x"}], "s")
                await history.batch_add_history([{"memory_id": "m", "event": "ADD", "id": "1"}])
                assert len([record async for record in history.query_history()]) == 2
                assert len(await history.get_last_messages("s")) == 1
                assert (await history.stats()).file_bytes > 0
                await history.reset()
            await owner.execute(f"DROP SCHEMA {quoted(name)} CASCADE")
        for name in ("", "a\0b", "x" * 64):
            with pytest.raises(InvalidInput, match="schema"):
                PostgresHistoryManager(postgres, schema=name)

    async def test_distributed_tables_have_fitting_keys_and_no_triggers(
        self, new_schema: NewSchema, owner: Any
    ) -> None:
        url = new_schema()
        async with open_history(url):
            pass
        schema = quoted(schema_of(url))
        await owner.execute(in_schema(citus.AS_SHARDS, schema))
        for table, column in citus.COLUMNS.items():
            keys = await owner.fetch(
                "SELECT pg_get_indexdef(indexrelid) FROM pg_index"
                " WHERE indisunique AND indrelid = $1::regclass",
                f"{schema_of(url)}.{table}",
            )
            assert keys
            assert all(column in key[0].rpartition("(")[2] for key in keys)
            triggers = "SELECT count(*) FROM pg_trigger WHERE tgrelid = $1::regclass"
            assert await owner.fetchval(triggers, f"{schema_of(url)}.{table}") == 0

    @pytest.mark.parametrize(
        ("condition", "index"),
        [
            ("memory_id = 'm7' ORDER BY seq", "history_memory"),
            ("memory_id = 'm7' ORDER BY seq DESC LIMIT 1", "history_memory"),
            ("actor_id = 'a7'", "history_actor"),
            ("seq > 50 ORDER BY seq LIMIT 50", "history_seq"),
            ("id = ANY(ARRAY['x', 'y'])", "history_pkey"),
            ("xact > pg_snapshot_xmin(pg_current_snapshot())", "history_xact"),
        ],
    )
    async def test_every_query_has_an_index(
        self, new_schema: NewSchema, owner: Any, condition: str, index: str
    ) -> None:
        url = new_schema()
        async with open_history(url) as history:
            await history.batch_add_history(
                [
                    {"memory_id": f"m{n % 500}", "event": "UPDATE", "actor_id": f"a{n % 90}"}
                    for n in range(5_000)
                ]
            )
        table = f"{schema_of(url)}.history"
        await owner.execute(f"ANALYZE {table}")
        plan = await owner.fetch(f"EXPLAIN SELECT * FROM {table} WHERE {condition}")
        assert any(f"{index} " in line[0] for line in plan), plan

    async def test_supabases_http_roles_get_no_rights(
        self, new_schema: NewSchema, owner: Any
    ) -> None:
        """Supabase grants new tables to its HTTP roles."""
        url = new_schema()
        schema = schema_of(url)
        await owner.execute(
            f"""
            CREATE ROLE anon LOGIN PASSWORD '{ROLE_PASSWORD}';
            CREATE SCHEMA {schema};
            GRANT USAGE ON SCHEMA {schema} TO anon;
            ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT ALL ON TABLES TO anon;
            """
        )
        try:
            async with open_history(url) as history:
                await history.add_history("m", None, "x", "ADD")
                assert len(await history.get_history("m")) == 1
            anon = await asyncpg.connect(as_role(server_of(url), "anon"))
            for table in ("history", "messages", "migrations"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await anon.fetch(f"SELECT * FROM {schema}.{table}")
            await anon.close()
            await owner.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO anon")
            anon = await asyncpg.connect(as_role(server_of(url), "anon"))
            assert await anon.fetch(f"SELECT * FROM {schema}.history") == []
            await anon.close()
        finally:
            await owner.execute("DROP OWNED BY anon CASCADE; DROP ROLE anon")


class TestRights:
    async def test_a_role_with_only_the_rights_it_needs(
        self, new_schema: NewSchema, owner: Any, role: str
    ) -> None:
        url = new_schema()
        async with open_history(url):
            pass
        await owner.execute(grants(schema_of(url)))
        either: list[HistoryOptions] = [{}, {"migrate": False}]
        for options in either:
            async with open_history(as_role(url, role), **options) as history:
                record = await history.add_history("m", None, "x", "ADD", id=f"named {options}")
                await history.batch_add_history([record], if_latest=None)
                await history.save_messages([{"role": "user", "content": "x"}] * 12, "s")
                assert len(await history.get_last_messages("s")) == 10
                assert record in await history.get_history("m")
                async for followed in history.follow():
                    if followed == record:
                        break
                assert (await history.stats()).file_bytes > 0
                with pytest.raises(StorageDenied, match="history"):
                    await history.reset()
                await history.add_history("m", None, "still working", "UPDATE")

    async def test_a_missing_right_is_named(
        self, new_schema: NewSchema, owner: Any, role: str
    ) -> None:
        url = new_schema()
        with pytest.raises(MigrationError, match="may not make them"):
            await open_history(as_role(url, role))
        async with open_history(url):
            pass
        with pytest.raises(StorageDenied, match="permission denied for schema"):
            await open_history(as_role(url, role))
        schema = schema_of(url)
        await owner.execute(
            grants(schema).replace(f"GRANT INSERT ON {schema}.history TO agent;", "")
        )
        async with open_history(as_role(url, role)) as history:
            with pytest.raises(StorageDenied, match="permission denied for table history"):
                await history.add_history("m", None, "x", "ADD")
            await history.save_messages([{"role": "user", "content": "x"}], "s")

    async def test_passwords_are_in_no_message(
        self, postgres: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        port = parse_qs(urlsplit(postgres).query).get("port", ["5432"])[0]
        urls = [
            f"postgresql://owner:geheim@127.0.0.1:{port}/postgres",
            f"postgresql://owner:geheim@127.0.0.1:{free_port()}/postgres",
            f"postgresql://owner@127.0.0.1:{port}/postgres?password=geheim",
            f"postgresql://owner:geheim@127.0.0.1:{port}/postgres?sslmode=geheimnis",
            "postgresql://owner:geheim@127.0.0.1:port/postgres",
        ]
        for url in urls:
            with pytest.raises((StorageError, InvalidInput)) as failed:
                await open_history(url)
            messages = [str(failed.value), str(failed.value.__cause__), caplog.text]
            assert "geheim@" not in "".join(messages), url
            assert "=geheim&" not in "".join(messages), url
            assert "'geheim'" not in "".join(messages), url


class TestFailuresAtOpening:
    async def test_no_server(self) -> None:
        with pytest.raises(StorageUnreachable, match="cannot be reached"):
            await open_history(f"postgresql://owner:secret@127.0.0.1:{free_port()}/x")

    async def test_a_server_that_does_not_answer(self) -> None:
        """It accepts the connection and sends nothing: bounded by `acquire_timeout_s`."""
        loop = asyncio.get_running_loop()
        silent = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        port = silent.sockets[0].getsockname()[1]
        with pytest.raises(StorageUnreachable, match="did not answer"):
            await open_history(
                f"postgresql://owner@127.0.0.1:{port}/x?sslmode=disable", acquire_timeout_s=0.2
            )
        silent.close()

    async def test_a_wrong_password_or_database(self, postgres: str, role: str) -> None:
        server = parse_qs(urlsplit(postgres).query)
        if "port" not in server:
            pytest.skip("needs a server of our own")
        with pytest.raises(StorageDenied, match="password"):
            await open_history(f"postgresql://{role}:wrong@127.0.0.1:{server['port'][0]}/postgres")
        with pytest.raises(StorageMissing, match="database"):
            await open_history(postgres.replace("/postgres?", "/nothing?"))

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"url": None}, "either a url or a pool"),
            ({"pool_size": 1}, "pool_size must be a whole number of at least 2"),
            ({"queue_records": 0}, "queue_records"),
        ],
    )
    async def test_bad_options_are_refused(
        self, postgres: str, options: dict[str, Any], words: str
    ) -> None:
        with pytest.raises(InvalidInput, match=words):
            await PostgresHistoryManager(**({"url": postgres} | options))

    async def test_urls_of_other_tools_and_options_in_urls(self, new_schema: NewSchema) -> None:
        url = new_schema()
        for scheme in ("postgres", "postgresql+asyncpg", "postgresql+psycopg2", "POSTGRESQL"):
            async with open_history(url.replace("postgresql", scheme, 1)) as history:
                await history.add_history("m", None, "x", "ADD")
        async with open_history(with_query(url, statement_cache_size="0")) as history:
            assert len(await history.get_history("m")) == 4
        with pytest.raises(InvalidInput, match="statement_cache_size"):
            open_history(with_query(url, statement_cache_size="7"))
        with pytest.raises(InvalidInput, match="has no option 'durability'"):
            open_history(url, durability="full")


TOO_LONG = "".join(
    chr(0x4E00 + int.from_bytes(sha256(bytes([n, m])).digest()[:2]) % 20_000)
    for n in range(60)
    for m in range(60)
)
"""A name that no index of PostgreSQL can hold, however it is compressed."""


class TestRefusals:
    """Records that a trigger refuses, or that PostgreSQL can't store."""

    @pytest.fixture
    async def ruled(self, new_schema: NewSchema, owner: Any) -> str:
        """A schema whose trigger refuses "no good" texts, and fails twice for "later" ones."""
        url = new_schema()
        async with open_history(url):
            pass
        await owner.execute(
            f"""
            SET search_path TO {schema_of(url)};
            CREATE SEQUENCE tries;
            CREATE FUNCTION rule() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF to_jsonb(NEW)::text LIKE '%no good%' THEN RAISE EXCEPTION 'never'; END IF;
                IF to_jsonb(NEW)::text LIKE '%later%' AND nextval('{schema_of(url)}.tries') < 3 THEN
                    RAISE EXCEPTION 'not yet' USING ERRCODE = TG_ARGV[0];
                END IF;
                RETURN NEW;
            END $$;
            CREATE TRIGGER rule BEFORE INSERT ON history
                FOR EACH ROW EXECUTE FUNCTION rule('40001');
            CREATE TRIGGER rule BEFORE INSERT ON messages
                FOR EACH ROW EXECUTE FUNCTION rule('40P01');
            SET search_path TO DEFAULT;
            """
        )
        return url

    @pytest.mark.parametrize("bad", [{"new_memory": "no good"}, {"memory_id": TOO_LONG}])
    async def test_a_refused_record_does_not_fail_its_neighbours(
        self, ruled: str, bad: dict[str, str]
    ) -> None:
        async with open_history(ruled) as history:
            records = [{"memory_id": "m", "new_memory": str(n), "event": "ADD"} for n in range(40)]
            records[7] |= bad
            results = await asyncio.gather(
                *(history.batch_add_history([record]) for record in records),
                history.save_messages([{"role": "user", "content": "fine"}], "s"),
                history.save_messages([{"role": "user", "content": "no good"}], "t"),
                return_exceptions=True,
            )
            refused = [n for n, result in enumerate(results) if isinstance(result, StorageRefused)]
            assert refused == [7, 41]
            assert sum(isinstance(result, Exception) for result in results) == 2
            kept = [record.new_memory for record in await history.get_history("m")]
            assert kept == [str(n) for n in range(40) if n != 7]
            assert len(await history.get_last_messages("s")) == 1
            assert await history.get_last_messages("t") == []
            writer = (await history.stats()).writer
            assert writer is not None
            assert writer.batches <= 2
            assert writer.failed_batches == 0

    async def test_a_repeated_id_of_a_refused_record_is_not_acked(self, ruled: str) -> None:
        """The batch's second record has the same id: it must not be acked because of the first."""
        async with open_history(ruled) as history:
            bad = {"memory_id": "m", "event": "ADD", "new_memory": "no good", "id": "one"}
            results = await asyncio.gather(
                *(history.batch_add_history([bad]) for _ in range(3)), return_exceptions=True
            )
            assert [type(result) for result in results] == [StorageRefused] * 3
            assert await history.get_history("m") == []

    async def test_serialization_failures_and_deadlocks_are_retried(self, ruled: str) -> None:
        async with open_history(ruled) as history:
            await history.add_history("m", None, "later", "ADD")
            assert len(await history.get_history("m")) == 1

    async def test_messages_are_retried_too(self, ruled: str) -> None:
        async with open_history(ruled) as history:
            await history.save_messages([{"role": "user", "content": "later"}], "s")
            assert [m.content for m in await history.get_last_messages("s")] == ["later"]

    async def test_a_failure_is_retried_until_the_deadline(self, ruled: str, owner: Any) -> None:
        await owner.execute(f"ALTER SEQUENCE {schema_of(ruled)}.tries MINVALUE -1000000000")
        await owner.execute(f"SELECT setval('{schema_of(ruled)}.tries', -1000000000)")
        async with open_history(ruled, retry_timeout_s=2) as history:
            with pytest.raises(StorageLocked, match="not yet"):
                await history.add_history("m", None, "later", "ADD")
            assert await history.get_history("m") == []

    async def test_a_read_only_server(self, new_schema: NewSchema) -> None:
        url = new_schema()
        async with open_history(url):
            pass
        read_only = with_query(url, default_transaction_read_only="on")
        async with open_history(read_only, retry_timeout_s=2) as history:
            with pytest.raises(StorageReadOnly, match="read-write"):
                await history.add_history("m", None, "x", "ADD")
            assert await history.get_history("m") == []

    async def test_tables_that_were_dropped(self, new_schema: NewSchema, owner: Any) -> None:
        url = new_schema()
        async with open_history(url) as history:
            await owner.execute(f"DROP SCHEMA {schema_of(url)} CASCADE")
            with pytest.raises(StorageMissing, match="async-history migrate"):
                await history.add_history("m", None, "x", "ADD")
            with pytest.raises(StorageMissing):
                await history.get_history("m")

    async def test_a_durability_that_is_turned_off_is_warned_of(
        self, new_schema: NewSchema
    ) -> None:
        url = new_schema()
        async with open_history(with_query(url, synchronous_commit="off")) as history:
            assert "synchronous_commit" in "".join((await history.stats()).warnings)
        async with open_history(url) as history:
            assert (await history.stats()).warnings == ()


class TestIds:
    async def test_two_managers_and_one_id_in_two_memories(self, new_schema: NewSchema) -> None:
        """No unique key spans memories, but an id is unique in the store."""
        url = new_schema()
        async with open_history(url) as one, open_history(url) as other:
            for n in range(30):
                results = await asyncio.gather(
                    *(
                        manager.add_history(f"m{number}", None, "x", "ADD", id=f"id-{n}")
                        for number, manager in enumerate((one, other))
                    ),
                    return_exceptions=True,
                )
                assert sorted(type(result).__name__ for result in results) == [
                    "HistoryRecord",
                    "IdConflict",
                ]
            assert len([record async for record in one.query_history()]) == 30

    @pytest.mark.parametrize(
        "texts",
        [
            ["\x1f", "a\x1fb", None, "", "\x1f\x1f"],
            [None, "\x1e", "", "a\x1e"],
            ["\x1f", "\x1e", None, "\x1f\x1e", "", "\x1e\x1e", "NULL", "{}", "\\N"],
        ],
        ids=["separator", "null", "both"],
    )
    async def test_texts_that_contain_the_separators(
        self, new_schema: NewSchema, texts: list[str | None]
    ) -> None:
        """A batch is sent as one text a column, joined by characters that a text may contain."""
        async with open_history(new_schema()) as history:
            given: list[dict[str, Any]] = [
                {"memory_id": "m", "event": "UPDATE", "old_memory": text, "new_memory": None}
                for text in texts
            ]
            written = await history.batch_add_history(given)
            assert await history.get_history("m") == written
            assert [record.old_memory for record in written] == texts

    async def test_if_latest_waits_for_another_if_latest(
        self, new_schema: NewSchema, owner: Any
    ) -> None:
        """Neither sees the other's uncommitted record: one of them must wait."""
        change = {"memory_id": "m", "new_memory": "y", "event": "UPDATE"}
        history = open_history(new_schema(), retry_timeout_s=60)
        assert isinstance(history, PostgresHistoryManager)
        async with history:
            latest = await history.add_history("m", None, "x", "ADD")
            async with owner.transaction():
                (first,) = await history.add_in_transaction(owner, [change], if_latest=latest)
                second = asyncio.create_task(history.batch_add_history([change], if_latest=latest))
                _, waiting = await asyncio.wait([second], timeout=0.5)
                assert waiting, "it did not wait"
            with pytest.raises(HistoryConflict):
                await second
            assert await history.get_history("m") == [latest, first]


class TestUsersPool:
    async def test_a_users_pool_is_used_and_never_closed(self, new_schema: NewSchema) -> None:
        url = new_schema()
        async with asyncpg.create_pool(server_of(url), min_size=2) as pool:
            for _ in range(2):
                async with PostgresHistoryManager(pool=pool, schema=schema_of(url)) as history:
                    await history.add_history("m", None, "x", "ADD")
                    assert await history.get_history("m")
                assert pool.get_idle_size() == pool.get_size()
            assert await pool.fetchval("SELECT 1") == 1

    async def test_one_connection_is_too_few(self, postgres: str) -> None:
        async with asyncpg.create_pool(postgres, min_size=1, max_size=1) as pool:
            with pytest.raises(InvalidInput, match="at least 2"):
                PostgresHistoryManager(pool=pool)

    async def test_a_page_holds_no_connection(self, new_schema: NewSchema) -> None:
        """Ten readers pause between pages, while the pool's two connections are free."""
        url = new_schema()
        async with open_history(url, pool_size=2, acquire_timeout_s=5) as history:
            await history.batch_add_history(
                [{"memory_id": "m", "new_memory": str(n), "event": "UPDATE"} for n in range(6)]
            )
            walks = [history.query_history(page_size=2).pages() for _ in range(10)]
            for _ in range(3):
                pages = [await anext(walk) for walk in walks]
                assert all(len(page.records) == 2 for page in pages)
                assert len(await history.get_history("m")) == 6
            for walk in walks:
                assert isinstance(walk, AsyncGenerator)
                await walk.aclose()

    async def test_reads_from_a_second_url(
        self, new_schema: NewSchema, owner: Any, role: str
    ) -> None:
        url = new_schema()
        async with open_history(url):
            pass
        schema = schema_of(url)
        await owner.execute(
            f"GRANT USAGE ON SCHEMA {schema} TO {role};"
            f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}"
        )
        read_url = as_role(server_of(url), role)
        async with open_history(url, read_url=read_url) as history:
            await history.add_history("m", None, "x", "ADD")
            assert len(await history.get_history("m")) == 1
            await owner.execute(f"REVOKE SELECT ON {schema}.history FROM {role}")
            with pytest.raises(StorageDenied):
                await history.get_history("m")
            await history.add_history("m", None, "x", "UPDATE")


_BLOCKED = "SELECT cardinality(pg_blocking_pids($1)) > 0"


class TestWithinATransaction:
    @pytest.fixture
    async def history(self, new_schema: NewSchema) -> AsyncIterator[PostgresHistoryManager]:
        manager = open_history(new_schema())
        assert isinstance(manager, PostgresHistoryManager)
        async with manager:
            yield manager

    async def test_records_commit_and_roll_back_with_the_transaction(
        self, history: PostgresHistoryManager, owner: Any
    ) -> None:
        change = {"memory_id": "m", "event": "ADD", "new_memory": "x"}
        async with owner.transaction():
            (record,) = await history.add_in_transaction(owner, [change])
            assert await history.get_history("m") == []
        assert await history.get_history("m") == [record]
        rolled_back = owner.transaction()
        await rolled_back.start()
        await history.add_in_transaction(owner, [change])
        await rolled_back.rollback()
        assert await history.get_history("m") == [record]

    async def test_a_transaction_is_required(
        self, history: PostgresHistoryManager, owner: Any
    ) -> None:
        with pytest.raises(InvalidInput, match="no transaction"):
            await history.add_in_transaction(owner, [{"memory_id": "m", "event": "ADD"}])
        assert await history.get_history("m") == []

    async def test_an_error_leaves_the_transaction_usable(
        self, history: PostgresHistoryManager, owner: Any
    ) -> None:
        """And it has none of the refused records."""
        first = await history.add_history("m", None, "x", "ADD", id="taken")
        await history.add_history("m", "x", "y", "UPDATE")
        new = {"memory_id": "m", "event": "UPDATE", "new_memory": "z"}
        async with owner.transaction():
            with pytest.raises(IdConflict):
                await history.add_in_transaction(owner, [new, new | {"id": "taken"}])
            with pytest.raises(HistoryConflict):
                await history.add_in_transaction(owner, [new], if_latest=first)
            with pytest.raises(StorageRefused):
                await history.add_in_transaction(owner, [new, new | {"memory_id": TOO_LONG}])
            with pytest.raises(InvalidInput):
                await history.add_in_transaction(owner, [new, {"memory_id": "m"}])
            await history.add_in_transaction(owner, [new])
        assert [r.new_memory for r in await history.get_history("m")] == ["x", "y", "z"]

    async def test_a_transaction_begun_by_sql(
        self, history: PostgresHistoryManager, owner: Any, postgres: str
    ) -> None:
        """As drivers on top of asyncpg begin them: all or none too, and nothing if cancelled."""
        new = {"memory_id": "m", "event": "UPDATE", "new_memory": "z"}
        await owner.execute("BEGIN")
        await history.add_in_transaction(owner, [new])
        with pytest.raises(StorageRefused):
            await history.add_in_transaction(owner, [new, new | {"memory_id": TOO_LONG}])
        other = await asyncpg.connect(postgres)
        async with other.transaction():
            await history.add_in_transaction(other, [new | {"id": "taken"}])
            cancelled = [new | {"memory_id": "cancelled"}, new | {"id": "taken"}]
            waiting = asyncio.create_task(history.add_in_transaction(owner, cancelled))
            while not await other.fetchval(_BLOCKED, owner.get_server_pid()):
                pass
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        await other.close()
        assert await history.get_history("cancelled") == []
        await history.add_in_transaction(owner, [new])
        await owner.execute("COMMIT")
        assert len(await history.get_history("m")) == 3
        assert await history.get_history("cancelled") == []

    async def test_a_transaction_of_another_database_is_refused(
        self, history: PostgresHistoryManager, postgres: str, owner: Any
    ) -> None:
        elsewhere = await asyncpg.connect(re.sub(r"/\w+(?=\?|$)", "/template1", postgres))
        try:
            async with elsewhere.transaction():
                with pytest.raises(StorageMissing):
                    await history.add_in_transaction(
                        elsewhere, [{"memory_id": "m", "event": "ADD"}]
                    )
                assert await elsewhere.fetchval("SELECT 1") == 1, "it can continue"
        finally:
            await elsewhere.close()


class TestDistribution:
    def test_distributing_without_citus_is_refused(self, new_schema: NewSchema) -> None:
        result = CliRunner().invoke(app, ["distribute", "--db", new_schema()])
        assert result.exit_code == 1
        assert "no Citus extension" in result.stderr

    def test_distributing_a_file_is_refused(self) -> None:
        result = CliRunner().invoke(app, ["distribute", "--db", "history.db"])
        assert result.exit_code == 2
        assert "PostgreSQL" in result.stderr


class TestSchemas:
    @pytest.mark.parametrize("name", ["$user", 'a "b" $$', "%I", "{schema}", "SELECT"])
    async def test_schemas_of_any_name(self, name: str, postgres: str, owner: Any) -> None:
        """In a search path `$user` is another schema, even in quotes."""
        await owner.execute("CREATE SCHEMA IF NOT EXISTS " + quoted("owner"))
        try:
            with pytest.MonkeyPatch.context() as patched:
                older = {n: text for n, text in migrations.SCRIPTS.items() if n == 1}
                patched.setattr(migrations, "SCRIPTS", older)
                patched.setattr(migrations, "VERSION", 1)
                assert await migrations.migrate(owner, name) == [1]
            assert await migrations.migrate(owner, name) == [*migrations.SCRIPTS][1:]
            async with PostgresHistoryManager(postgres, schema=name) as history:
                await history.add_history("m", None, "x", "ADD")
                assert len(await history.get_history("m")) == 1
                await history.erase(memory_ids=["m"], reason="asked")
            found = await owner.fetch(
                "SELECT nspname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace"
                " WHERE relname = 'operations' AND nspname IN ($1, 'owner', $2)",
                name,
                f"async_history {name}",
            )
            assert [row[0] for row in found] == [name]
        finally:
            await owner.execute(f"DROP SCHEMA IF EXISTS {quoted(name)} CASCADE")
            await owner.execute("DROP SCHEMA owner")

    @pytest.mark.parametrize(
        ("taken", "named"),
        [
            ("TABLE {}.migrations (version bigint)", "migrations"),
            ("TABLE {}.migrations (version bigint, dirty boolean)", "migrations"),
            ("TABLE {}.migrations (id serial, name text)", "migrations"),
            ("VIEW {}.migrations AS SELECT 1 AS version", "migrations"),
            ("TABLE {}.migrations AS SELECT 99 AS version, now() AS applied_at", "migrations"),
            ("TABLE {}.history (id int)", "history"),
            ("TABLE {}.messages (id int)", "messages"),
            ("TYPE {}.erasures AS ENUM ('x')", "erasures"),
        ],
    )
    async def test_a_schema_with_other_objects_is_refused(
        self, taken: str, named: str, postgres: str, owner: Any, new_schema: NewSchema
    ) -> None:
        """It is not changed, and the error asks for another schema."""
        schema = new_schema().rpartition("=")[2]
        await owner.execute(f"CREATE SCHEMA {schema}; CREATE {taken.format(schema)}")
        objects = f"SELECT relname FROM pg_class WHERE relnamespace = '{schema}'::regnamespace"
        before = await owner.fetch(objects)
        for migrate in (True, False):
            with pytest.raises((MigrationError, StorageMissing)) as refused:
                await PostgresHistoryManager(postgres, schema=schema, migrate=migrate)
            if migrate or named == "migrations":
                assert isinstance(refused.value, MigrationError)
                assert named in str(refused.value)
                assert "choose another schema" in str(refused.value)
        assert await owner.fetch(objects) == before
