"""Warnings of `stats()` on PostgreSQL: settings that silently lose or hide acknowledged records."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable

import asyncpg
import pytest

from async_history import HistoryManager, open_history
from tests.support.pgbouncer import pgbouncer
from tests.support.postgres_schemas import schema_of
from tests.support.postgres_server import PostgresServer, are_installed, with_query

pytestmark = [pytest.mark.postgres, pytest.mark.once]

NewSchema = Callable[[], str]


async def warned(history: HistoryManager) -> dict[str, str]:
    """Return the severity of each warning by code; the store has unlimited time."""
    while True:
        found: dict[str, str] = {
            warning.code: warning.severity for warning in (await history.stats()).warnings
        }
        if "store-unreachable" not in found:
            return found
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


DURABILITIES = [
    ("on", {}),
    ("remote_apply", {}),
    ("off", {"asynchronous-commit": "critical"}),
    ("local", {"local-commit": "warning"}),
]


class TestDurability:
    @pytest.mark.parametrize(("setting", "expected"), DURABILITIES)
    @pytest.mark.parametrize("how", ["URL", "role", "read_url"])
    async def test_the_durability_of_the_writers_connection(
        self,
        setting: str,
        expected: dict[str, str],
        how: str,
        postgres: str,
        new_schema: NewSchema,
    ) -> None:
        """However it is set. Readers' connections may have any."""
        url = new_schema()
        async with connected(postgres) as owner:
            if how == "role":
                await owner.execute(f"ALTER ROLE CURRENT_USER SET synchronous_commit TO {setting}")
                written, read = url, None
            else:
                written = with_query(url, synchronous_commit=setting)
                read = with_query(url, synchronous_commit="off") if how == "read_url" else None
                if setting == "off":
                    read = read and url
            try:
                async with open_history(written, read_url=read) as history:
                    assert await warned(history) == expected
            finally:
                await owner.execute("ALTER ROLE CURRENT_USER RESET synchronous_commit")

    async def test_durability_through_a_pooler(self, pooled: str, new_schema: NewSchema) -> None:
        url = with_query(pooled, schema=schema_of(new_schema()))
        async with open_history(url) as history:
            assert await warned(history) == {}


@pytest.mark.skipif(not are_installed(), reason="configures a server of its own")
class TestServer:
    @pytest.mark.pgbouncer
    async def test_settings_with_which_a_crash_can_damage_the_database(self) -> None:
        server = PostgresServer(fsync="off", full_page_writes="off").create().start()
        try:
            async with open_history(server.url()) as history:
                assert await warned(history) == {
                    "fsync-off": "critical",
                    "full-page-writes-off": "critical",
                }
                with pgbouncer(server.url(tcp=True)) as url:
                    async with open_history(url) as through:
                        assert (await warned(through)).keys() == {
                            "fsync-off",
                            "full-page-writes-off",
                        }
            async with connected(server.url()) as owner:
                for name, value in (
                    ("fsync", "on"),
                    ("full_page_writes", "on"),
                    ("synchronous_standby_names", "'a'"),
                ):
                    await owner.execute(f"ALTER SYSTEM SET {name} TO {value}")
                await owner.execute("SELECT pg_reload_conf()")
                while await owner.fetchval("SHOW synchronous_standby_names") != "a":
                    pass
            local = with_query(server.url(), synchronous_commit="local")
            async with open_history(local) as history:
                while await warned(history) != {"local-commit": "critical"}:
                    pass  # the pool's connections learn of the settings one by one
        finally:
            server.remove()


class TestTables:
    @pytest.fixture
    async def owner(self, postgres: str) -> AsyncIterator[asyncpg.Connection]:
        async with connected(postgres) as owner:
            await owner.execute("CREATE ROLE secured LOGIN PASSWORD 'secret'; CREATE ROLE others")
            yield owner
            await owner.execute("DROP OWNED BY secured, others CASCADE")
            await owner.execute("DROP ROLE secured; DROP ROLE others")

    @pytest.mark.parametrize("table", ["history", "messages"])
    async def test_a_table_that_a_crash_empties(
        self, table: str, new_schema: NewSchema, owner: asyncpg.Connection
    ) -> None:
        url = new_schema()
        async with open_history(url) as history:
            assert await warned(history) == {}
            await owner.execute(f"ALTER TABLE {schema_of(url)}.{table} SET UNLOGGED")
            assert await warned(history) == {"unlogged-table": "critical"}

    @pytest.mark.parametrize("is_replica", [False, True])
    @pytest.mark.parametrize(
        ("rule", "severity"),
        [
            ("SELECT 1", "critical"),
            ("CREATE POLICY p ON {} FOR INSERT WITH CHECK (true)", "critical"),
            ("CREATE POLICY p ON {} AS RESTRICTIVE USING (true)", "critical"),
            ("CREATE POLICY p ON {} TO others USING (true)", "critical"),
            ("CREATE POLICY p ON {} USING (true)", "warning"),
            ("CREATE POLICY p ON {} FOR SELECT TO secured USING (actor_id = 'x')", "warning"),
            ("CREATE POLICY p ON {} TO others USING (true); GRANT others TO secured", "warning"),
            ("ALTER TABLE {} DISABLE ROW LEVEL SECURITY", None),
            ("ALTER ROLE secured BYPASSRLS", None),
        ],
    )
    async def test_a_table_whose_rows_are_hidden(
        self,
        rule: str,
        severity: str | None,
        is_replica: bool,
        new_schema: NewSchema,
        owner: asyncpg.Connection,
    ) -> None:
        """From the reading role, on any server."""
        url = new_schema()
        schema = schema_of(url)
        secured = re.sub("//[^@]*@", "//secured:secret@", url)
        async with open_history(url) as history:
            await history.add_history("m", None, "x", "ADD")
            await owner.execute(
                f"GRANT USAGE ON SCHEMA {schema} TO secured;"
                f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO secured;"
                f"ALTER TABLE {schema}.history ENABLE ROW LEVEL SECURITY;"
            )
            await owner.execute(rule.format(f"{schema}.history"))
            assert await warned(history) == {}, "the owner sees everything"
        written, read = (url, secured) if is_replica else (secured, None)
        async with open_history(written, read_url=read) as history:
            expected = {} if severity is None else {"row-security": severity}
            assert await warned(history) == expected
            if severity == "critical":
                assert await history.get_history("m") == []
