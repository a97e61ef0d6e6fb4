"""Mapping of the drivers' errors: each code of both databases, and errors of real servers."""

import asyncio
import errno
import sqlite3
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest
import trustme

from async_history import (
    HistoryClosed,
    InvalidInput,
    StorageCorrupt,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageLocked,
    StorageMissing,
    StorageReadOnly,
    StorageRefused,
    StorageUnreachable,
    open_history,
)
from async_history._postgres import errors as postgres_errors
from async_history._sqlite.connecting import errors as sqlite_errors
from async_history.postgres import PostgresHistoryManager
from tests.support.pgbouncer import pgbouncer
from tests.support.postgres_server import PostgresServer, are_installed, with_query

pytestmark = pytest.mark.once

STATES: Final = sorted(
    str(kind.__dict__["sqlstate"])
    for kind in vars(asyncpg.exceptions).values()
    if isinstance(kind, type)
    and issubclass(kind, asyncpg.PostgresError)
    and kind.__dict__.get("sqlstate")
)
"""Every SQLSTATE that asyncpg knows."""

# By SQLSTATE, the longest prefix that matches: the type, and whether a retry may work soon.
KINDS: Final[dict[str, tuple[type[StorageError], bool]]] = {
    "": (StorageError, False),
    "08": (StorageUnreachable, False),  # the statement's outcome is unknown
    "08P01": (StorageError, False),
    "0P": (StorageDenied, False),
    "21000": (StorageCorrupt, False),
    "23": (StorageRefused, False),
    "25006": (StorageReadOnly, True),
    "25P03": (StorageUnreachable, False),
    "25P04": (StorageUnreachable, False),
    "26": (StorageError, True),
    "28": (StorageDenied, False),
    "3D": (StorageMissing, False),
    "3F": (StorageMissing, False),
    "40": (StorageLocked, True),
    "42501": (StorageDenied, False),
    "42703": (StorageMissing, False),
    "42P01": (StorageMissing, False),
    "44": (StorageRefused, False),
    "53": (StorageUnreachable, True),
    "53100": (StorageFull, False),
    "53400": (StorageFull, False),
    "55006": (StorageLocked, True),
    "55P03": (StorageLocked, True),
    "57014": (StorageUnreachable, True),
    "57P": (StorageUnreachable, False),
    "57P04": (StorageMissing, False),
    "P0001": (StorageRefused, False),
    "XX001": (StorageCorrupt, False),
    "XX002": (StorageCorrupt, False),
}


def expected(state: str) -> tuple[type[StorageError], bool]:
    return next(KINDS[state[:n]] for n in range(5, -1, -1) if state[:n] in KINDS)


def server_error(state: str, level: str = "ERROR", words: str = "words", **fields: str) -> Any:
    fields = {"S": level, "V": level, "C": state, "M": words} | fields
    return asyncpg.PostgresError.new({name: text for name, text in fields.items() if text})


class TestPostgresStates:
    def test_each_sqlstate_has_its_type(self) -> None:
        for state in STATES:
            kind, may_work_later = expected(state)
            error = server_error(state)
            assert type(postgres_errors.storage_error(error, "it")) is kind, state
            assert postgres_errors.may_work_later(error) == may_work_later, state
            assert not postgres_errors.is_connection_lost(error), "an ERROR keeps the connection"

    def test_a_fatal_error_ends_the_connection(self) -> None:
        """Whatever its code. Poolers send only the translated level."""
        for state in STATES:
            for level in ("FATAL", "PANIC"):
                assert postgres_errors.is_connection_lost(server_error(state, level)), state
                assert postgres_errors.is_connection_lost(server_error(state, level, V="")), state

    def test_connecting_is_retried_if_it_may_work(self) -> None:
        for state in STATES:
            kind, is_passing = expected(state)
            is_later = is_passing or kind is StorageUnreachable
            if state == "08P01":
                is_later = True  # from a pooler: see below
            fatal = server_error(state, "FATAL")
            assert postgres_errors.may_connect_later(fatal) == is_later, state

    @pytest.mark.parametrize(
        ("words", "kind", "is_later"),
        [
            ("SSL required", StorageDenied, False),
            ("TLS connection required", StorageDenied, False),
            ("SSL connection is required", StorageDenied, False),
            ("TLS client certificate required", StorageDenied, False),
            ("certificate authentication failed", StorageDenied, False),
            ("password authentication failed", StorageDenied, False),
            ("SASL authentication failed", StorageDenied, False),
            ("no such user: ann", StorageDenied, False),
            ("login rejected", StorageDenied, False),
            ("unix socket login rejected", StorageDenied, False),
            ("not allowed", StorageDenied, False),
            ("no such database: app", StorageMissing, False),
            ("unsupported startup parameter: options", StorageError, False),
            ("server conn crashed?", StorageUnreachable, True),
            ("client_login_timeout (server down)", StorageUnreachable, True),
            ("server login has been failing, try again later", StorageUnreachable, True),
            ("query_wait_timeout", StorageUnreachable, True),
            ("no more connections allowed (max_client_conn)", StorageUnreachable, True),
            ("pgbouncer cannot connect to server", StorageUnreachable, True),
        ],
    )
    def test_errors_of_a_pooler(self, words: str, kind: type[StorageError], is_later: bool) -> None:
        """PgBouncer gives nearly every error the SQLSTATE of a broken protocol."""
        error = server_error("08P01", "FATAL", words, V="")
        assert type(postgres_errors.storage_error(error, "it")) is kind
        assert postgres_errors.may_connect_later(error) == is_later
        assert postgres_errors.is_connection_lost(error)

    @pytest.mark.parametrize(
        ("words", "is_full"),
        [
            ("no more connections allowed (max_client_conn)", True),
            ("server login has been failing, cached error: too many connections", True),
            ("server login has been failing, cached error: password authentication failed", False),
            ("server conn crashed?", False),
        ],
    )
    def test_poolers_without_a_free_connection(self, words: str, *, is_full: bool) -> None:
        error = server_error("08P01", "FATAL", words, V="")
        assert postgres_errors.is_full(error) == is_full


def made_by_driver(text: str) -> asyncpg.InterfaceError:
    return asyncpg.InterfaceError(text)


@pytest.mark.parametrize(
    ("error", "kind", "is_lost", "may_connect_later"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), StorageUnreachable, True, True),
        (ConnectionResetError(errno.ECONNRESET, "x"), StorageUnreachable, True, True),
        (FileNotFoundError(errno.ENOENT, "x"), StorageUnreachable, True, True),
        (PermissionError(errno.EACCES, "x"), StorageDenied, True, False),
        (TimeoutError(), StorageUnreachable, True, True),
        (ConnectionError("server rejected SSL upgrade"), StorageDenied, True, False),
        (ssl.SSLCertVerificationError("x"), StorageDenied, True, False),
        (ssl.SSLEOFError("x"), StorageUnreachable, True, True),
        (asyncpg.ConnectionDoesNotExistError("x"), StorageUnreachable, True, True),
        (asyncpg.exceptions.ProtocolError("x"), StorageUnreachable, True, True),
        (asyncpg.exceptions.OutdatedSchemaCacheError("x"), StorageError, False, False),
        (asyncpg.TargetServerAttributeNotMatched("x"), StorageReadOnly, True, True),
        (made_by_driver("connection is closed"), StorageUnreachable, True, True),
        (made_by_driver("connection has been released"), StorageUnreachable, True, True),
        (made_by_driver("another operation is cancelling"), StorageUnreachable, True, True),
        (made_by_driver("another operation is in progress"), StorageError, False, False),
        (made_by_driver("a manually started transaction"), StorageError, False, False),
        (made_by_driver("unsupported SASL Authentication methods"), StorageError, False, False),
        (asyncpg.DataError("invalid input for query argument"), StorageError, False, False),
        (asyncpg.exceptions.ClientConfigurationError("x"), StorageError, False, False),
        (made_by_driver("pool is closed"), StorageError, False, False),
        (made_by_driver("pool is closing"), StorageError, False, False),
        (made_by_driver("pool is not initialized"), StorageError, False, False),
    ],
    ids=lambda value: f"{type(value).__name__}-{value}" if isinstance(value, Exception) else "",
)
def test_the_drivers_own_errors(
    error: Exception, kind: type[StorageError], is_lost: bool, may_connect_later: bool
) -> None:
    assert type(postgres_errors.storage_error(error, "it")) is kind
    assert postgres_errors.is_connection_lost(error) == is_lost
    assert postgres_errors.may_connect_later(error) == may_connect_later


class TestRealStates:
    """Raised by a server, as by a trigger or a policy of the database's owner."""

    @pytest.fixture
    async def owner(self, postgres: str) -> AsyncIterator[Any]:
        connection = await asyncpg.connect(postgres)
        yield connection
        await connection.close()

    async def test_every_state_that_can_be_raised(self, owner: Any) -> None:
        for state in STATES:
            with pytest.raises(asyncpg.PostgresError) as raised:
                await owner.execute(f"DO $$ BEGIN RAISE 'x' USING ERRCODE = '{state}'; END $$")
            assert raised.value.sqlstate == state
            assert type(postgres_errors.storage_error(raised.value, "it")) is expected(state)[0]
            assert not postgres_errors.is_connection_lost(raised.value)
            assert await owner.fetchval("SELECT 1") == 1

    @pytest.mark.parametrize("state", ["55000", "55P02", "55006", "55P03", "40001", "08006"])
    async def test_a_read_is_retried_only_if_it_may_work(
        self, owner: Any, new_schema: Callable[[], str], state: str
    ) -> None:
        url = new_schema()
        schema = url.rpartition("=")[2]
        async with open_history(url) as history:
            await history.add_history("m", None, "x", "ADD")
            await owner.execute(
                f"""
                CREATE SEQUENCE {schema}.tries;
                CREATE FUNCTION {schema}.refuse_once() RETURNS boolean LANGUAGE plpgsql AS $$
                BEGIN
                    IF nextval('{schema}.tries') = 1 THEN
                        RAISE 'x' USING ERRCODE = '{state}';
                    END IF;
                    RETURN true;
                END $$;
                ALTER TABLE {schema}.history RENAME TO kept;
                CREATE VIEW {schema}.history AS
                    SELECT * FROM {schema}.kept WHERE {schema}.refuse_once();
                """
            )
            kind, is_passing = expected(state)
            if is_passing:
                assert len(await history.get_history("m")) == 1
            else:
                with pytest.raises(StorageError) as raised:
                    await history.get_history("m")
                assert type(raised.value) is kind
                assert await owner.fetchval(f"SELECT last_value FROM {schema}.tries") == 1


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    server = PostgresServer(fsync="off").create()
    (server.data / "pg_hba.conf").write_text(
        "local all all trust\n"
        "hostssl all tls_only 127.0.0.1/32 scram-sha-256\n"
        "host all rejected 127.0.0.1/32 reject\n"
        "host all tls_only 127.0.0.1/32 reject\n"
        "host all all 127.0.0.1/32 scram-sha-256\n"
    )
    server.start()

    async def prepare() -> None:
        owner = await asyncpg.connect(server.url())
        for name in ("tls_only", "rejected", "nologin"):
            await owner.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'")
        await owner.execute("ALTER ROLE nologin NOLOGIN")
        await owner.execute("CREATE DATABASE shut ALLOW_CONNECTIONS false")
        await owner.close()

    with ThreadPoolExecutor() as thread:  # a test's own loop may run in this thread
        thread.submit(asyncio.run, prepare()).result()
    yield server
    server.remove()


@pytest.mark.skipif(not are_installed(), reason="configures a server of its own")
@pytest.mark.postgres
class TestConnecting:
    """A connection that a server or pooler refuses is not retried, and not called unreachable."""

    @pytest.mark.parametrize(
        ("user", "database", "options", "kind"),
        [
            ("tls_only", "postgres", {}, StorageDenied),
            ("rejected", "postgres", {}, StorageDenied),
            ("nologin", "postgres", {}, StorageDenied),
            ("nobody_known", "postgres", {}, StorageDenied),
            ("owner", "nowhere", {}, StorageMissing),
            ("owner", "shut", {}, StorageError),
            ("owner", "postgres", {"sslmode": "require"}, StorageDenied),
            ("owner", "postgres", {"options": "-c max_connections=7"}, StorageError),
            ("owner", "postgres", {"options": "-c no_such_setting=7"}, StorageError),
            ("owner", "postgres", {"options": "-c work_mem=much"}, StorageError),
        ],
    )
    async def test_connections_that_a_server_refuses(
        self,
        server: PostgresServer,
        user: str,
        database: str,
        options: dict[str, str],
        kind: type[StorageError],
    ) -> None:
        url = with_query(server.url(database, user=user, tcp=True), **options)
        with pytest.raises(StorageError) as refused:
            await open_history(url)
        assert type(refused.value) is kind, refused.value
        assert "secret" not in str(refused.value)

    @pytest.mark.pgbouncer
    async def test_connections_that_pgbouncer_refuses(
        self, server: PostgresServer, tmp_path: Path
    ) -> None:
        certificate = tmp_path / "server.pem"
        issued = trustme.CA().issue_cert("127.0.0.1")
        issued.private_key_and_cert_chain_pem.write_to_path(certificate)
        with pgbouncer(server.url(tcp=True), certificate=certificate) as url:
            for refused, kind in (
                (with_query(url, sslmode="disable"), StorageDenied),
                (with_query(url.replace("owner", "nobody"), sslmode="require"), StorageDenied),
                (with_query(url.replace("secret", "wrong"), sslmode="require"), StorageDenied),
                (with_query(url, sslmode="require", options="-c work_mem=1MB"), StorageError),
            ):
                with pytest.raises(StorageError) as raised:
                    await open_history(refused)
                assert type(raised.value) is kind, raised.value

    async def test_a_lock_that_is_held(self, server: PostgresServer) -> None:
        """The server's own 55P03, in every attempt. No other lock is called unreachable."""
        url = with_query(server.url(), schema="held", lock_timeout="10ms")
        other = await asyncpg.connect(server.url())
        async with open_history(url, retry_timeout_s=2) as history:
            async with other.transaction():
                await other.execute("LOCK TABLE held.history IN ACCESS EXCLUSIVE MODE")
                with pytest.raises(StorageLocked):
                    await history.get_history("m")
            assert await history.get_history("m") == []
        await other.close()


class TestUsersPool:
    async def test_a_pool_that_is_not_open_is_refused(self, postgres: str) -> None:
        never_opened = asyncpg.create_pool(postgres, min_size=0, max_size=3)
        with pytest.raises(InvalidInput, match="pool is not initialized"):
            await PostgresHistoryManager(pool=never_opened)
        async with asyncpg.create_pool(postgres, min_size=0, max_size=3) as closed:
            pass
        with pytest.raises(InvalidInput, match="pool is closed"):
            await PostgresHistoryManager(pool=closed)

    async def test_a_pool_that_is_closed_meanwhile(
        self, postgres: str, new_schema: Callable[[], str]
    ) -> None:
        """Every call raises at once: a retry can't help."""
        schema = new_schema().rpartition("=")[2]
        pool = await asyncpg.create_pool(postgres, min_size=0, max_size=3)
        async with PostgresHistoryManager(pool=pool, schema=schema) as history:
            pool.terminate()
            for call in (
                lambda: history.get_history("m"),
                lambda: history.add_history("m", None, "x", "ADD"),
                history.count_history,
                history.erasures,
            ):
                with pytest.raises(HistoryClosed, match="pool is clos"):
                    await call()

    @pytest.mark.parametrize("round_", range(2))
    async def test_statements_that_a_pooler_loses(
        self, pooled: str, new_schema: Callable[[], str], round_: int
    ) -> None:
        """Also if the pooler already has servers that know some of the statements."""
        schema = new_schema().rpartition("=")[2]
        async with asyncpg.create_pool(pooled, min_size=2, max_size=4) as pool:
            with pytest.raises(InvalidInput, match="statement_cache_size=0"):
                await PostgresHistoryManager(pool=pool, schema=schema)

    async def test_statements_that_no_pooler_loses(
        self, postgres: str, new_schema: Callable[[], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As through a pooler in session mode, which invents process ids too."""
        monkeypatch.setattr(asyncpg.Connection, "get_server_pid", lambda _: -1)
        schema = new_schema().rpartition("=")[2]
        async with (
            asyncpg.create_pool(postgres, min_size=0, max_size=3) as pool,
            PostgresHistoryManager(pool=pool, schema=schema) as history,
        ):
            await history.add_history("m", None, "x", "ADD")
            assert len(await history.get_history("m")) == 1


# SQLite

SQLITE_KINDS: Final[dict[str, type[StorageError]]] = {
    "SQLITE_BUSY": StorageLocked,
    "SQLITE_LOCKED": StorageLocked,
    "SQLITE_PROTOCOL": StorageLocked,
    "SQLITE_FULL": StorageFull,
    "SQLITE_READONLY": StorageReadOnly,
    "SQLITE_PERM": StorageReadOnly,
    "SQLITE_CORRUPT": StorageCorrupt,
    "SQLITE_NOTADB": StorageCorrupt,
    "SQLITE_CANTOPEN": StorageMissing,
}
"""All other codes are a StorageError."""
RESULTS: Final = (
    "ERROR INTERNAL PERM ABORT BUSY LOCKED NOMEM READONLY INTERRUPT IOERR CORRUPT NOTFOUND FULL "
    "CANTOPEN PROTOCOL EMPTY SCHEMA TOOBIG CONSTRAINT MISMATCH MISUSE NOLFS AUTH FORMAT RANGE "
    "NOTADB"
)


@pytest.mark.parametrize("name", [f"SQLITE_{name}" for name in RESULTS.split()])
@pytest.mark.parametrize("extension", [0, 7])
def test_each_code_of_sqlite_has_its_type(name: str, extension: int) -> None:
    """An extended code has its primary code's type."""
    error = sqlite3.OperationalError("words")
    error.sqlite_errorcode = getattr(sqlite3, name) | extension << 8
    kind = SQLITE_KINDS.get(name, StorageError)
    assert type(sqlite_errors.storage_error(error, "it")) is kind
    assert sqlite_errors.is_locked(error) == (kind is StorageLocked)


@pytest.mark.parametrize("name", [name for name, kind in SQLITE_KINDS.items()])
def test_only_locks_are_waited_for(name: str) -> None:
    tries: list[int] = []

    def operation() -> int:
        tries.append(1)
        if len(tries) < 3:
            error = sqlite3.OperationalError("words")
            error.sqlite_errorcode = getattr(sqlite3, name)
            raise error
        return len(tries)

    if SQLITE_KINDS[name] is StorageLocked:
        assert sqlite_errors.wait_for_lock(operation, 60) == 3
    else:
        with pytest.raises(sqlite3.OperationalError):
            sqlite_errors.wait_for_lock(operation, 60)
        assert len(tries) == 1
