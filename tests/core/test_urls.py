"""URLs and paths as people paste them: understood, or refused by name; no password is shown."""

import asyncio
import contextlib
import logging
import os
import re
import struct
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import asyncmy  # noqa: F401 - the guard must not see the first test that uses it read it
import asyncpg
import pytest

import async_history._sql.manager  # noqa: F401
from async_history import HistoryError, HistoryManager, InvalidInput, StorageError, open_history
from async_history._opening import sqlite_file, without_secrets
from async_history._postgres.connecting.url import server_url
from async_history.postgres import ForeignTable
from async_history.sqlite import adopt
from tests.conftest import OpenStore
from tests.support.patience import LONG_S
from tests.support.postgres_server import with_query

pytestmark = pytest.mark.once

NewSchema = Callable[[], str]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, with a home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


# What clients send to a server


class FakeServer:
    """Notes the first messages of clients, and refuses each client."""

    def __init__(self) -> None:
        self.asked_for_tls = False
        self.sent: dict[str, str] = {}
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with (
            contextlib.suppress(asyncio.IncompleteReadError, ConnectionError),
            contextlib.closing(writer),
        ):
            while True:
                (size,) = struct.unpack("!I", await reader.readexactly(4))
                body = await reader.readexactly(size - 4)
                if struct.unpack("!I", body[:4])[0] == 80877103:
                    self.asked_for_tls = True
                    writer.write(b"N")
                    continue
                texts = body[4:].rstrip(b"\0").split(b"\0")
                pairs = zip(texts[::2], texts[1::2], strict=False)
                self.sent = {name.decode(): value.decode() for name, value in pairs}
                refusal = b"SFATAL\0VFATAL\0C28000\0Mno\0\0"
                writer.write(b"E" + struct.pack("!I", len(refusal) + 4) + refusal)
                return


@pytest.fixture
async def fake() -> AsyncIterator[FakeServer]:
    fake = FakeServer()
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    fake.port = server.sockets[0].getsockname()[1]
    yield fake
    server.close()
    await server.wait_closed()


PROVIDERS: Mapping[str, Mapping[str, str]] = {
    # libpq, psycopg, Django
    "connect_timeout=10&keepalives=1&keepalives_idle=30": {},
    "keepalives_interval=10&keepalives_count=5": {},
    "gssencmode=disable&sslcompression=0&sslsni=1&tcp_user_timeout=5000": {},
    "gssencmode=prefer&channel_binding=prefer&load_balance_hosts=disable": {},
    "client_encoding=utf8&application_name=app": {"application_name": "app"},
    "fallback_application_name=app": {"application_name": "app"},
    "options=-c%20statement_timeout%3D5000": {"options": "-c statement_timeout=5000"},
    "options=-csearch_path%3Dx%20-cjit%3Doff": {"options": "-csearch_path=x -cjit=off"},
    "target_session_attrs=read-write&sslmode=prefer": {},
    # Neon, besides TLS
    "options=endpoint%3Dep-cool-darkness-123456": {"options": "endpoint=ep-cool-darkness-123456"},
    # Supabase, Vercel, Prisma
    "pgbouncer=true&connection_limit=5&pool_timeout=20&connect_timeout=15": {},
    "supa=base-pooler.x&pgbouncer=true": {},
    "workaround=supabase-pooler.vercel": {},
    "schema=public&statement_cache_size=0": {},
    # SQLAlchemy, asyncpg
    "ssl=prefer&prepared_statement_cache_size=0": {},
    "ssl=disable": {},
    "ssl=false": {},
    # settings of the server that are given on purpose
    "synchronous_commit=local&TimeZone=UTC": {"synchronous_commit": "local", "timezone": "UTC"},
    "app.tenant=7&lock_timeout=5000": {"app.tenant": "7", "lock_timeout": "5000"},
    # several hosts, SQLAlchemy's way, and empty values
    "application_name=&sslmode=&connect_timeout=0": {},
}


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg_async"])
@pytest.mark.parametrize("query", PROVIDERS)
async def test_only_settings_given_on_purpose_reach_the_server(
    scheme: str, query: str, fake: FakeServer
) -> None:
    with pytest.raises(StorageError):
        await open_history(f"{scheme}://agent:geheim@127.0.0.1:{fake.port}/app?{query}")
    ours = {"user": "agent", "database": "app", "client_encoding": "'utf-8'"}
    assert fake.sent == {**ours, **PROVIDERS[query]}


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://",
        "postgres:///",
        "postgresql://agent@",
        "postgresql+asyncpg://agent@/?application_name=",
        "postgresql://127.0.0.1:{port}",
        "postgresql://agent@127.0.0.1:{port}/",
        "postgresql://?service=mine",
    ],
)
async def test_the_environment_fills_in_what_the_url_leaves_out(
    url: str, fake: FakeServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the database. By default it would be the one with the user's name."""
    said = {"HOST": "127.0.0.1", "PORT": str(fake.port), "USER": "agent", "DATABASE": "app"}
    if "service" in url:
        lines = [f"{name.lower()}={value}" for name, value in said.items()]
        (home / "services").write_text("\n".join(["[mine]", *lines]))
        said = {"SERVICEFILE": str(home / "services")}
    for name, value in said.items():
        monkeypatch.setenv(f"PG{name}", value)
    with pytest.raises(StorageError):
        await open_history(url.format(port=fake.port))
    assert fake.sent == {"user": "agent", "database": "app", "client_encoding": "'utf-8'"}


@pytest.mark.parametrize(
    "query",
    [
        "ssl=require",
        "ssl=true",
        "ssl=1",
        "ssl=verify-full&sslrootcert=system",
        "sslmode=require",
        "sslmode=require&channel_binding=require",
        "channel_binding=require",
        "sslrootcert=system",
        "ssl=no-verify",
        "sslmode=verify_full&sslrootcert=system",
    ],
)
async def test_with_tls_required_nothing_is_sent_in_clear(query: str, fake: FakeServer) -> None:
    with pytest.raises(StorageError, match="TLS"):
        await open_history(f"postgresql://agent:geheim@127.0.0.1:{fake.port}/app?{query}")
    assert fake.asked_for_tls
    assert fake.sent == {}


@pytest.mark.parametrize(
    ("query", "is_verified", "mode"),
    [
        ("sslmode=require&channel_binding=require", True, None),  # as Neon prints it
        ("sslmode=require&channel_binding=require&sslrootcert=%2Fca.pem", False, "verify-full"),
        ("ssl=require", False, "require"),
        ("ssl=true", True, None),
        ("sslmode=verify-full&sslrootcert=%2Fca.pem", False, "verify-full"),
    ],
)
def test_the_servers_certificate_is_verified_as_the_url_says(
    query: str, is_verified: bool, mode: str | None
) -> None:
    """asyncpg can't use channel binding. A URL that requires it gets a verified certificate."""
    server = server_url(f"postgresql://u:p@h/d?{query}")
    assert (server.is_verified, server.parameters.get("sslmode")) == (is_verified, mode)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("hostaddr=10.0.0.1", "hostaddr"),
        ("gssencmode=require", "gssencmode"),
        ("require_auth=scram-sha-256", "require_auth"),
        ("requirepeer=postgres", "requirepeer"),
        ("client_encoding=latin1", "client_encoding"),
        ("replication=database", "replication"),
        ("sslmode=on", "sslmode"),
        ("ssl=maybe", "ssl"),
        ("sslmode=disable&ssl=require", "twice"),
        ("sslmode=disable&channel_binding=require", "no TLS"),
        ("channel_binding=always", "channel_binding"),
        ("connect_timeout=soon", "connect_timeout"),
        ("connect_timeout=-5", "connect_timeout"),
        ("connection_limit=many", "connection_limit"),
        ("connection_limit=1", "connection_limit"),
        ("pgbouncer=perhaps", "pgbouncer"),
        ("statement_cache_size=7", "statement_cache_size"),
        ("command_timeout=60", "retry_timeout_s"),
        ("socket_timeout=60", "retry_timeout_s"),
        ("queue_records=5", "queue_records"),
        ("max_idle_connection_lifetime=5", "connection_idle_s"),
        ("currentSchema=x", "schema="),
        ("sslaccept=strict", "sslmode"),
        ("binary_parameters=yes", "binary_parameters"),
        ("default_query_exec_mode=simple", "default_query_exec_mode"),
        ("pool_max_conns=10", "pool_max_conns"),
        ("autosave=conservative", "options=-c autosave"),
        ("geheim", "without a value"),
        ("table=memory_history", "table="),
        ("port=5432,5433", "1 hosts and 2 ports"),
        ("port=0", "port"),
        ("host=other", "host twice"),
        ("dbname=other", "dbname twice"),
        ("user=other", "user twice"),
        ("password=other", "password twice"),
        ("schema=" + "x" * 64, "63 bytes"),
    ],
)
def test_unknown_parameters_are_refused_by_name(query: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as refused:
        open_history(f"postgresql://agent:geheim@host/app?{query}")
    assert "geheim" not in str(refused.value)


def test_an_option_overrides_the_url() -> None:
    url = "postgresql://agent@host/app?schema=a&connection_limit=1&connect_timeout=3"
    history: Any = open_history(url, schema="b", pool_size=4, acquire_timeout_s=7)
    assert history.backend.schema_name == "b"
    assert (history.backend.limits.size, history.backend.limits.acquire_timeout_s) == (4, 7)
    history = open_history("postgresql://agent@host/app?pgbouncer=true&connection_limit=3")
    assert (history.backend.limits.size, history.backend.limits.statement_cache_size) == (3, 0)


@pytest.mark.parametrize(
    ("url", "hosts", "where"),
    [
        ("postgresql://u:p@h/d", ["h"], "postgresql://u@h/d"),
        ("postgresql://u@h:1/d", ["h:1"], "postgresql://u@h:1/d"),
        ("postgresql://h1:1,h2:2,h3/d", ["h1:1", "h2:2", "h3"], "postgresql://h1:1,h2:2,h3/d"),
        ("postgresql://[::1]:5,[fe80::1%25eth0]/d", ["[::1]:5", "[fe80::1%eth0]"], "[::1]:5"),
        ("postgresql:///d?host=/run/pg&port=5433", ["/run/pg"], "postgresql:///run/pg/d"),
        ("postgresql://%2Frun%2Fpg/d", ["/run/pg"], "/run/pg"),
        ("postgresql://u@/d?host=h1:1&host=h2:2", ["h1:1", "h2:2"], "h1:1,h2:2"),
        ("postgresql://:5433/d", ["localhost:5433"], "localhost:5433"),
        ("postgresql://", [], "postgresql:///"),
        ("postgresql://u%40x:a%2Fb@h/my%20db", ["h"], "postgresql://u@x@h/my db"),
    ],
)
def test_hosts_of_a_url_are_read(url: str, hosts: list[str], where: str) -> None:
    server = server_url(url)
    assert server.hosts == hosts
    assert where in server.where
    assert len(server.dsns) == max(1, len(hosts))


@pytest.mark.parametrize(
    "hosts",
    ["h:99999", "h:0", "h:x", "h:", "h1,,h2", "h1:1:2", "[::1", "::1", "a b", "h\n", "[nohost]"],
)
def test_bad_hosts_are_refused(hosts: str) -> None:
    with pytest.raises(InvalidInput):
        open_history(f"postgresql://agent@{hosts}/app")


# Passwords

PASSWORDS = [
    *(f"geheim{mark}wort" for mark in "#?/@[]:%&=+ '\"\\{}|^`\n\t$!*,;<>~\0é"),
    *(
        "[geheim]wort",
        "geheim#wort@",
        "geheim?w=ort@x",
        "geheim/wort@x@y",
        "#geheimwort",
        "geheim%zz",
    ),
    *("geheim%zz", "geheim:wort@h:1/x", "geheim@wort?x=y", "geheimwort?connect_timeout=geheim"),
]


def pieces(password: str) -> list[str]:
    return [piece for piece in ("geheim", "wort", "ort@") if piece in password]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://agent:{}@127.0.0.1:1/app?sslmode=disable",
        "postgresql://agent:{}@127.0.0.1:99999/app",
        "postgresql://agent:{}@127.0.0.1:port/app",
        "postgresql://agent:{}@127.0.0.1:1/app?nothing=known",
        "postgresql://agent:{}@",
        "postgresql://agent:{}",
        "postgresql+asyncpg://agent:{}@/app",
        "postgresql:/agent:{}@127.0.0.1:1/app",
        "postgresql:agent:{}@127.0.0.1:1/app",
        "mysql://agent:{}@127.0.0.1:1/app",
        "sqlite://agent:{}@host/app",
        "host=127.0.0.1 port=1 user=agent password={}",
        "'postgresql://agent:{}@127.0.0.1:1/app'",
        "DATABASE_URL=postgresql://agent:{}@127.0.0.1:1/app",
    ],
)
async def test_no_part_of_a_password_is_shown(
    url: str, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PGHOST", str(home))
    caplog.set_level(logging.DEBUG)
    for password in PASSWORDS:
        if url.endswith("{}") and "@" in password:
            continue  # looks like a user and a host
        shown = await complaint(url.format(password))
        if re.fullmatch(r"[^\s&'\"\0]*", password):
            shown.append(without_secrets(url.format(password)))
        pieces = [piece for piece in ("geheim", "wort", "ort@") if piece in password]
        shown.append(caplog.text)
        assert not [text for text in shown if any(piece in text for piece in pieces)], password
    assert not list(home.iterdir())


async def complaint(url: str) -> list[str]:
    """Return every text that the user of a URL sees."""
    shown: list[str] = []
    try:
        history = open_history(url, acquire_timeout_s=1)
        shown.append(repr(history))
        await history
    except HistoryError as failed:
        shown += traceback.format_exception_only(failed)
        error: BaseException | None = failed
        while error is not None:
            shown += [str(error), repr(error), repr(error.args)]
            error = error.__cause__ or error.__context__
    else:
        await history.aclose()
        raise AssertionError("it opened")
    return shown


@pytest.mark.parametrize("take", [server_url, ForeignTable])
def test_every_function_reads_a_servers_url_in_the_same_way(take: Callable[[Any], object]) -> None:
    take("postgresql+asyncpg://agent:geheim@host/app?ssl=require&supa=x")
    for url in (5, b"postgresql://host", "mysql://host", "host", "postgresql://a:geheim#b@host"):
        with pytest.raises(InvalidInput) as refused:
            take(url)
        assert "geheim" not in str(refused.value)


async def test_a_replicas_url_is_read_as_the_primarys(new_schema: NewSchema) -> None:
    url = new_schema()
    read_url = url.replace("postgresql:", "postgresql+asyncpg:") + "&supa=x&connect_timeout=5"
    async with open_history(url, read_url=read_url) as history:
        await history.add_history("m", None, "x", "ADD")
        assert len(await history.get_history("m")) == 1
    with pytest.raises(InvalidInput, match="nothing"):
        open_history(url, read_url=f"{url}&nothing=known")


# Connections that are closed


async def backends(server: str, name: str) -> set[int]:
    """Return the process ids of a program's connections."""
    connection = await asyncpg.connect(server)
    try:
        rows = await connection.fetch(
            "SELECT pid FROM pg_stat_activity WHERE application_name = $1", name
        )
    finally:
        await connection.close()
    return {row["pid"] for row in rows}


async def test_idle_connections_are_closed(postgres: str, new_schema: NewSchema) -> None:
    """Also the writer's connection. The next call opens another."""
    url = with_query(new_schema(), application_name="idler")
    async with open_history(url, connection_idle_s=0.05) as history:
        for number in range(1, 3):
            await history.add_history("m", None, "x", "ADD")
            assert len(await history.get_history("m")) == number
            async with asyncio.timeout(LONG_S):
                while await backends(postgres, "idler"):  # noqa: ASYNC110 - another process sets it
                    await asyncio.sleep(0.01)


async def test_old_connections_are_replaced(postgres: str, new_schema: NewSchema) -> None:
    url = with_query(new_schema(), application_name="ager")
    async with open_history(url, connection_lifetime_s=1e-9, pool_size=2) as history:
        seen: set[int] = set()
        for number in range(3):
            await history.add_history("m", None, "x", "ADD")
            assert len(await history.get_history("m")) == number + 1
            async with asyncio.timeout(LONG_S):
                # The server lists a closed connection a moment longer.
                while len(now := await backends(postgres, "ager")) > 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            seen |= now
        assert len(seen) >= 3


# Files


@pytest.mark.parametrize(
    ("spelling", "file"),
    [
        ("history.db", "history.db"),
        ("./history.db", "history.db"),
        ("a/b/../history.db", "a/history.db"),
        ("~/.mem0/history.db", "home/.mem0/history.db"),
        ("sqlite:///~/history.db", "home/history.db"),
        (Path("~/history.db"), "home/history.db"),
        ("~history.db", "~history.db"),
        ("sqlite:///history.db", "history.db"),
        ("sqlite+aiosqlite:///history.db", "history.db"),
        ("sqlite:///a%20b.db", "a b.db"),
        ("my history.db", "my history.db"),
        ("100%.db", "100%.db"),
        ("ümlaut.db", "ümlaut.db"),
        ("history", "history"),
        (".history", ".history"),
        (Path("a\\b.db"), "a\\b.db"),
        (Path("file:x.db"), "file:x.db"),
        (Path(" x.db"), " x.db"),
        ("./file:x.db", "file:x.db"),
    ],
)
async def test_files_by_any_spelling(spelling: str | Path, file: str, home: Path) -> None:
    (home / "a" / "b").mkdir(parents=True)
    async with open_history(spelling) as history:
        await history.add_history("m", None, "x", "ADD")
    made = [path.relative_to(home) for path in home.rglob("*") if path.is_file()]
    assert made == [Path(file)]
    found = sqlite_file(spelling)
    assert found is not None
    assert found.resolve() == (home / file).resolve()


@pytest.mark.parametrize(
    "spelling",
    [
        *(".", "..", "/", "./", "a/", "a/..", "~", "~/", "sqlite:///.", "sqlite:////", ""),
        *("null:", "memory:", "sqlite:history.db", "sqlite:/history.db", "file:history.db"),
        *("file:history.db?mode=ro", "file::memory:?cache=shared", ":memory", ":memory:?x=y"),
        *("postgresql:/host/app", "postgresql:host", "jdbc:postgresql://host/app", "http://x/y.db"),
        *("postgresql//u:p@h/d", "postgres//h/d", "postgresql+asyncpg//h/d", "sqlite///x.db"),
        *("//u:word@h/d", "u:word@h/d", "u:@h/d"),
        *("host=127.0.0.1 dbname=app", "dbname=app", "user=agent password=x"),
        *("Server=127.0.0.1;User Id=agent;Password=x;", "server=h;uid=a;pwd=x", "Data Source=h"),
        *("\ud800.db", Path("\ud800.db")),
        *("C:\\data\\history.db", "C:/data/history.db", "c:history.db"[:2], "data\\history.db"),
        *("\\\\server\\share\\history.db", "sqlite:///C:/data/history.db", "sqlite:///C:\\x.db"),
        *("history.db\n", " history.db", "history.db ", "his\ntory.db", "a\0b"),
        *('"history.db"', "'history.db'", "`history.db`", '"history.db'),
        *("$HOME/history.db", "${HOME}/history.db", "a/$DATA/history.db", "%APPDATA%/history.db"),
        *("~nobodyofthatname/history.db", "sqlite:///history.db?mode=ro", "sqlite://history.db"),
        *("null://host", "memory://name", "null:///x", "memory:///x", "sqlite:///history.db#x"),
        *("psql://x", "psql 'postgresql://u@h/d'", "ftp://x", "://x", "x y://z"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"create": False}, {"migrate": False}])
def test_bad_paths_are_refused_before_anything_is_made(
    spelling: str | Path, options: dict[str, Any], home: Path
) -> None:
    with pytest.raises(InvalidInput) as refused:
        open_history(spelling, **options)
    assert len(str(refused.value)) > 20
    if str(spelling).startswith("file:"):
        assert "write sqlite:///" in str(refused.value)
    assert not list(home.iterdir())


@pytest.mark.parametrize("options", [{}, {"create": False}, {"migrate": False}])
async def test_a_folder_is_refused_as_such(options: dict[str, Any], home: Path) -> None:
    (home / "folder").mkdir()
    for path in ("folder", str(home / "folder"), "sqlite:///folder"):
        with pytest.raises(StorageError, match="is a folder"):
            await open_history(path, **options)
    with pytest.raises(StorageError, match="is a folder"):
        await asyncio.to_thread(adopt, "folder")
    os.mkfifo("pipe")
    for path in ("pipe", "/dev/null"):
        with pytest.raises(StorageError, match="not an ordinary file"):
            await open_history(path, **options)
    assert sorted(path.name for path in home.iterdir()) == ["folder", "pipe"]
    assert not list((home / "folder").iterdir())


async def test_a_link_to_a_missing_file_makes_the_file(home: Path) -> None:
    """As sqlite3 does."""
    (home / "link.db").symlink_to("elsewhere/later.db")
    async with open_history("link.db") as history:
        await history.add_history("m", None, "x", "ADD")
    assert (home / "elsewhere" / "later.db").is_file()
    assert (home / "link.db").is_symlink()


async def test_every_store_has_its_location(open_store: OpenStore) -> None:
    async with open_store() as history:
        assert isinstance(history, HistoryManager)
        store = (await history.stats()).store
        assert store
        assert "secret" not in store
