"""A pooler in transaction mode, beyond the contract suite."""

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest
import trustme

from async_history import HistoryManager, StorageDenied, StorageError, open_history
from async_history._postgres.writing.plain_statements import PlainStatements
from async_history.postgres import PostgresHistoryManager
from async_history.testing import NewStore, RandomCallCases
from tests.conftest import new_stores
from tests.support.patience import LONG_S
from tests.support.pgbouncer import pgbouncer
from tests.support.postgres_server import with_query

pytestmark = [pytest.mark.postgres, pytest.mark.pgbouncer, pytest.mark.once]


class TestRandomCalls(RandomCallCases):
    examples = 8

    @pytest.fixture
    def new_store(self, request: pytest.FixtureRequest, tmp_path: Path) -> NewStore:
        return new_stores("pgbouncer", request, tmp_path)


async def test_many_managers_share_two_connections(
    pooled: str, new_schema: Callable[[], str]
) -> None:
    """Programs take turns on a server's connection, so no statement is kept there."""
    url = with_query(pooled, schema=new_schema().rpartition("=")[2])

    async def program(number: int) -> None:
        async with open_history(url) as history:
            await asyncio.gather(*(use(history, f"{number}.{n}") for n in range(20)))

    async def use(history: HistoryManager, name: str) -> None:
        for n in range(5):
            await history.add_history(name, None, str(n), "UPDATE")
            await history.save_messages([{"role": "user", "content": str(n)}], name)
            assert [r.new_memory for r in await history.get_history(name)] == [
                str(m) for m in range(n + 1)
            ]
        assert len(await history.get_last_messages(name)) == 5

    async with open_history(url):
        pass  # the tables, once
    await asyncio.gather(*(program(number) for number in range(6)))


async def test_no_statement_is_made_that_a_pooler_does_not_take(
    pooled: str, new_schema: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a pooler a batch has settings, and so a transaction, and none of these statements."""
    made: list[object] = []

    def note(self: PlainStatements, submissions: object) -> None:
        made.append(submissions)

    monkeypatch.setattr(PlainStatements, "begin", note)

    async def record_many(url: str) -> None:
        async with PostgresHistoryManager(url, batch_records=100) as history:
            calls = (history.add_history(f"m{n}", None, "tea", "ADD") for n in range(400))
            await asyncio.gather(*calls)

    await record_many(with_query(pooled, schema=new_schema().rpartition("=")[2]))
    assert made == []
    direct = new_schema()
    async with asyncio.timeout(LONG_S):
        while not made:  # if a commit lasts until the callers of the one before it are woken
            await record_many(direct)


async def test_a_pooler_in_statement_mode_is_refused(
    postgres: str, new_schema: Callable[[], str]
) -> None:
    with (
        pgbouncer(postgres, mode="statement") as url,
        pytest.raises(StorageError, match="statement mode") as refused,
    ):
        await open_history(with_query(url, schema=new_schema().rpartition("=")[2]))
    assert type(refused.value) is StorageError


async def test_a_statement_and_its_parameters_travel_together(
    pooled: str, new_schema: Callable[[], str]
) -> None:
    """Otherwise one program's parameters would meet another's unnamed statement."""
    url = with_query(pooled, schema=new_schema().rpartition("=")[2])

    async def program(number: int) -> None:
        async with open_history(url) as history:
            for n in range(60):
                records = [{"memory_id": f"m{number}", "event": "ADD"}] * (1 + n % 2)
                await history.batch_add_history(records)
            assert len(await history.get_history(f"m{number}")) == 90

    async with open_history(url):
        pass
    await asyncio.gather(*(program(number) for number in range(12)))


async def test_a_users_pool_through_a_pooler(pooled: str, new_schema: Callable[[], str]) -> None:
    schema = new_schema().rpartition("=")[2]
    for _ in range(4):  # other pools leave statements in the server's sessions
        careless = await asyncpg.connect(pooled)
        with contextlib.suppress(asyncpg.PostgresError):
            await careless.fetchval("SELECT 1")
        careless.terminate()
    async with (
        asyncpg.create_pool(pooled, min_size=2, max_size=4, statement_cache_size=0) as pool,
        PostgresHistoryManager(pool=pool, schema=schema) as history,
    ):
        await asyncio.gather(*(history.add_history(str(n), None, "x", "ADD") for n in range(50)))
        assert len([record async for record in history.query_history()]) == 50


class TestTLS:
    """asyncpg's own TLS, as the URL requires; the certificates are made for the test."""

    @pytest.fixture
    def authority(self) -> trustme.CA:
        return trustme.CA()

    @pytest.fixture
    def trusted(self, authority: trustme.CA, tmp_path: Path) -> str:
        file = tmp_path / "authority.pem"
        authority.cert_pem.write_to_path(file)
        return str(file)

    @pytest.mark.parametrize(
        ("name", "authority_is_known", "refusal"),
        [
            ("127.0.0.1", True, None),
            ("elsewhere.example", True, "IP address mismatch"),
            ("127.0.0.1", False, "unable to get local issuer|self.signed"),
        ],
    )
    async def test_verify_full(
        self,
        postgres: str,
        new_schema: Callable[[], str],
        authority: trustme.CA,
        trusted: str,
        tmp_path: Path,
        name: str,
        authority_is_known: bool,
        refusal: str | None,
    ) -> None:
        certificate = tmp_path / "server.pem"
        authority.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(certificate)
        root = trusted
        if not authority_is_known:
            root = str(tmp_path / "another.pem")
            trustme.CA().cert_pem.write_to_path(root)
        with pgbouncer(postgres, certificate=certificate) as url:
            schema = new_schema().rpartition("=")[2]
            over_tls = with_query(url, schema=schema, sslmode="verify-full", sslrootcert=root)
            if refusal is None:
                async with open_history(over_tls) as history:
                    await history.add_history("m", None, "x", "ADD")
                with pytest.raises(StorageDenied, match="TLS"):
                    await open_history(with_query(url, schema=schema, sslmode="disable"))
            else:
                with pytest.raises(StorageDenied, match=refusal) as failed:
                    await open_history(over_tls)
                assert isinstance(failed.value.__cause__, ssl.SSLError)
                assert "secret" not in str(failed.value)
