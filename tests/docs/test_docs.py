"""Every example of the README and of `docs/` runs, and everything that users name is documented.

The examples of mem0 run in test_mem0, the rights on PostgreSQL in test_postgres, and type checkers
see all of them in test_typing.
"""

import ast
import asyncio
import base64
import inspect
import json
import os
import re
import secrets
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import httpx
import pytest
import typer.main
from fastapi import FastAPI, Request
from sqlalchemy.ext.asyncio import create_async_engine

import async_history
import async_history.blocking
import async_history.encryption
import async_history.fastapi
import async_history.ledger
import async_history.mem0
import async_history.otel
import async_history.postgres
import async_history.sql
import async_history.sqlite
import async_history.web
from async_history import (
    CommitUnknown,
    HistoryError,
    HistoryManager,
    HistoryOptions,
    HistoryRecord,
    NotProven,
    errors,
    open_history,
)
from async_history.cli.app import app
from async_history.ledger import LedgerKey
from async_history.postgres import PostgresHistoryManager
from async_history.sql import SqlHistoryManager
from async_history.sqlite import SQLiteHistoryManager
from docs.generate import RESULTS, command_page, results_page, script_of
from tests.support.docs_examples import EXAMPLES, PAGES, REPOSITORY, example
from tests.support.patience import LONG_S

pytestmark = [pytest.mark.subprocess, pytest.mark.once]

DOCS = REPOSITORY / "docs"


def run(name: str, folder: Path) -> str:
    """Run an example as a program; return its output."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example(name)],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=LONG_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def shell(name: str, folder: Path) -> str:
    """Run an example in a shell that finds the command; return its output."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", example(name)],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=LONG_S,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def scope_of(name: str) -> dict[str, Any]:
    """Return the names that an example defines."""
    scope: dict[str, Any] = {"__name__": name}
    exec(example(name), scope)
    return scope


class TestExamples:
    def test_the_first_program(self, tmp_path: Path) -> None:
        lines = example("first-program").splitlines()
        assert len(list(filter(None, lines))) <= 10
        first, second = run("first-program", tmp_path).splitlines()
        assert first.endswith("ADD likes tea")
        assert second.endswith("UPDATE likes mate")

    def test_the_tutorial(self, tmp_path: Path) -> None:
        assert "acked_records=4" in run("tutorial-record", tmp_path)
        assert run("tutorial-tasks", tmp_path) == "1004 records\n"
        first, second, *others = run("tutorial-query", tmp_path).splitlines()
        assert first.endswith("ADD None -> Ann likes tea")
        assert second.endswith("UPDATE Ann likes tea -> Ann likes green tea")
        assert "agent-2 wrote: Ann likes green tea" in others
        assert others[-1].startswith("['agent-")
        *output, cursor = run("tutorial-follow", tmp_path).splitlines()
        assert output == ["ADD Ann likes tea", "UPDATE Ann likes green tea"]
        assert cursor.startswith("continue later with ")
        printed = shell("tutorial-shell", tmp_path)
        assert "v2" in printed
        assert "Ann likes tea" in printed
        assert "1,004 records, nothing is wrong" in printed

    def test_the_command_line(self, tmp_path: Path) -> None:
        assert "nothing is wrong" in shell("command-line", tmp_path)
        erased, anns = (tmp_path / "history.jsonl").read_text().splitlines()
        assert json.loads(erased)["new_memory"] is None
        assert json.loads(anns)["owner"] == {"user_id": "ann"}
        assert (tmp_path / "backup.db").exists()

    async def test_owners(self, capsys: pytest.CaptureFixture[str]) -> None:
        async with open_history("memory://") as history:
            await scope_of("owners")["handle_request"](history, "7")
        first, second, memory, count = capsys.readouterr().out.splitlines()
        assert first.startswith("likes tea Owner(user_id='ann'")
        assert first.endswith("{'category': 'drinks'} {'request_id': '7'}")
        assert second.endswith("None {'request_id': '7'}")
        assert (memory, count) == ("memory-1 likes mate", "2")

    async def test_encryption(self, tmp_path: Path) -> None:
        keys = base64.b64encode(bytes(range(32))).decode()
        (tmp_path / "keys").write_text(f"2026={keys}\n")
        assert run("encryption", tmp_path) == "Ann likes tea\n2026\n"
        assert b"Ann likes" not in (tmp_path / "history.db").read_bytes()

    async def test_following(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """When it is run again it continues where it was."""
        scope = scope_of("following")
        place = tmp_path / "place"
        async with open_history("memory://") as history:
            for text in ("tea", "mate"):
                cursor = await history.end_cursor()
                await history.add_history("m", None, text, "ADD")
                following = asyncio.create_task(scope["follow"](history, place))
                async with asyncio.timeout(LONG_S):
                    while not place.exists() or place.read_text() != await history.end_cursor():  # noqa: ASYNC110 - a file
                        await asyncio.sleep(0)
                following.cancel()
                assert place.read_text() != cursor
        assert capsys.readouterr().out == "m ADD tea\nm ADD mate\n"

    async def test_following_with_a_heartbeat(self) -> None:
        sent: list[str] = []
        seen = {"heartbeat": asyncio.Event(), "ADD m": asyncio.Event()}

        def send(text: str) -> None:
            sent.append(text)
            seen[text].set()

        async with open_history("memory://") as history, asyncio.timeout(LONG_S):
            follow = scope_of("following-heartbeat")["follow_with_heartbeat"]
            following = asyncio.create_task(follow(history, send))
            await seen["heartbeat"].wait()
            await history.add_history("m", None, "tea", "ADD")
            await seen["ADD m"].wait()
            following.cancel()
        assert sent.count("ADD m") == 1

    def test_time_travel(self, tmp_path: Path) -> None:
        assert run("time-travel", tmp_path).splitlines() == [
            "at noon: likes tea",
            "there at noon: memory-2",
            "likes tea -> likes mate 1",
            "UPDATE likes mate -> likes tea",
        ]

    async def test_pages_for_clients(self) -> None:
        page_for_client = scope_of("pages")["page_for_client"]
        async with open_history("memory://") as history:
            await history.batch_add_history(
                [{"memory_id": "m", "event": "ADD", "new_memory": str(n)} for n in range(60)]
            )
            page = await page_for_client(history, None)
            assert [record["new_memory"] for record in page["records"]] == [
                str(n) for n in range(59, 9, -1)
            ]
            rest = await page_for_client(history, page["cursor"])
            assert [record["new_memory"] for record in rest["records"]] == [
                str(n) for n in range(9, -1, -1)
            ]
            await history.reset()
            assert await page_for_client(history, page["cursor"]) == {
                "records": [],
                "cursor": None,
            }

    async def test_retention(self, capsys: pytest.CaptureFixture[str]) -> None:
        scope = scope_of("retention")
        async with open_history("memory://") as history:
            await history.add_history("m", None, "old", "ADD", created_at="2024-01-01")
            await history.add_history("m", "old", "new", "UPDATE", actor_id="ann")
            await scope["remove_old"](history)
            await scope["forget_ann"](history)
            (left,) = await history.get_history("m")
            assert (left.new_memory, left.actor_id) == (None, None)
        would, erased = capsys.readouterr().out.splitlines()
        assert would.startswith("would remove 1 record from before ")
        assert erased == "erased the texts of 1 record and 0 messages"

    async def test_the_page(self) -> None:
        scope = scope_of("page-mounted")
        app = FastAPI()

        @app.middleware("http")
        async def sign_in(request: Request, call_next: Any) -> Any:
            user = request.headers.get("x-user")
            request.scope["session"] = {} if user is None else {"user_id": user}
            return await call_next(request)

        async with open_history("memory://") as history:
            scope["mount_page"](app, history)
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
                assert (await client.get("/history/")).status_code == 403
                seen = await client.get("/history/", headers={"x-user": "ann"})
                assert seen.status_code < 400

    async def test_operations(self, capsys: pytest.CaptureFixture[str]) -> None:
        async with open_history("memory://") as history:
            await history.add_history("m", None, "old", "ADD", created_at="2024-01-01")
            await history.update_history("m", "new")
            await scope_of("operations")["remove_old_and_tell"](history)
        assert capsys.readouterr().out == "prune nightly job finished 1\n"

    async def test_a_ledger(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        key = LedgerKey.generate("example.org/history")
        await scope_of("ledger")["audit"](str(tmp_path / "history.db"), key)
        name, size, *_, found = capsys.readouterr().out.splitlines()
        assert (name, size, found) == ("example.org/history", "1", "True 2 ()")

    async def test_checkpoints_in_a_table_elsewhere(self, postgres: str, tmp_path: Path) -> None:
        """Checkpoints kept there reveal a change of a record by someone with the file."""
        scope, key = scope_of("ledger-elsewhere"), LedgerKey.generate("example.org/history")
        path, schema = tmp_path / "history.db", f"test_{secrets.token_hex(8)}"
        settings = {"search_path": schema}
        async with (
            asyncpg.create_pool(postgres, min_size=1, server_settings=settings) as elsewhere,
            open_history(path, ledger=True) as history,
        ):
            await elsewhere.execute(f"CREATE SCHEMA {schema}")
            try:
                keeping = asyncio.create_task(
                    scope["keep_checkpoints"](history, key, elsewhere, every_s=0.01)
                )
                async with asyncio.timeout(LONG_S):
                    for _ in range(2):
                        kept = await self.kept(elsewhere)
                        await history.add_history("m", None, "likes tea", "UPDATE")
                        while await self.kept(elsewhere) == kept:  # noqa: ASYNC110 - a table has no event for it
                            await asyncio.sleep(0.01)
                keeping.cancel()
                await asyncio.wait([keeping])
                report = await scope["verify_all"](history, key.verifier, elsewhere)
                assert (report.is_intact, report.records) == (True, 2)
                with pytest.raises(NotProven, match="not signed by the key"):
                    await scope["verify_all"](
                        history, LedgerKey.generate(key.name).verifier, elsewhere
                    )
                connection = sqlite3.connect(path)
                connection.execute("DELETE FROM async_history_ledger")
                connection.commit()
                connection.close()
                report = await scope["verify_all"](history, key.verifier, elsewhere)
                assert {one.kind for one in report.faults} >= {"cut"}
            finally:
                await elsewhere.execute(f"DROP SCHEMA {schema} CASCADE")

    async def kept(self, elsewhere: Any) -> int:
        """Return how many checkpoints the table has, or 0 before it exists."""
        if await elsewhere.fetchval("SELECT to_regclass('checkpoints')") is None:
            return 0
        count: int = await elsewhere.fetchval("SELECT count(*) FROM checkpoints")
        return count

    def test_a_ledger_in_the_shell(self, tmp_path: Path) -> None:
        printed = shell("ledger-shell", tmp_path)
        assert "proven: this record is at place 2 of 3, example.org/history" in printed
        assert "as recorded: 1 record, 0 owners" in printed

    def test_copies(self, tmp_path: Path) -> None:
        run("first-program", tmp_path)
        assert run("copy", tmp_path).startswith("2 written, 2 compared, ")
        assert run("json-lines", tmp_path) == "2\n"
        for name in ("copy.db", "backup.db", "imported.db"):
            connection = sqlite3.connect(tmp_path / name)
            assert connection.execute("SELECT count(*) FROM history").fetchone() == (2,)
            connection.close()

    async def test_a_foreign_table(
        self,
        postgres: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        connection = await asyncpg.connect(postgres)
        schema = f"test_{secrets.token_hex(8)}"
        try:
            await connection.execute(
                f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.memory_history AS SELECT"
                " '1' AS id, 'm' AS memory_id, 'tea' AS new_value, 'ADD' AS action,"
                " now() AS created_at, now() AS updated_at, 0 AS is_deleted"
            )
            joint = "&" if "?" in postgres else "?"
            await scope_of("foreign-table")["bring_over"](f"{postgres}{joint}schema={schema}")
        finally:
            await connection.execute(f"DROP SCHEMA {schema} CASCADE")
            await connection.close()
        assert capsys.readouterr().out == "1 records\n"

    def test_old_files(self, tmp_path: Path) -> None:
        path = tmp_path / "history.db"
        with sqlite3.connect(path) as connection:
            connection.execute(
                "CREATE TABLE history (id TEXT PRIMARY KEY, memory_id TEXT, prev_value TEXT,"
                " new_value TEXT, event TEXT, timestamp DATETIME, is_deleted INTEGER)"
            )
            connection.execute("INSERT INTO history VALUES ('1', 'm', NULL, 'x', 'ADD', '2024', 0)")
        connection.close()
        output = run("adoption", tmp_path)
        assert "1 record of history (mem0 0.0.2) would be rewritten" in output
        assert sorted(file.name for file in tmp_path.iterdir()) == ["history.db"]
        assert "1 record, nothing is wrong" in run("check", tmp_path)

    def test_synchronous_code(self, tmp_path: Path) -> None:
        assert run("blocking", tmp_path) == "ADD likes tea\n"

    def test_options(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)
        assert isinstance(scope_of("options")["history"], SQLiteHistoryManager)
        kinds = scope_of("options-of-a-kind")
        assert "user@host/app" in repr(kinds["server"])
        asyncio.run(kinds["back_up"]("history.db"))
        assert Path("backup.db").exists()
        assert isinstance(scope_of("postgresql-url")["history"], PostgresHistoryManager)
        assert isinstance(scope_of("sql-url")["history"], SqlHistoryManager)

    async def test_a_transaction(self, postgres: str) -> None:
        scope = scope_of("transaction")
        async with asyncpg.create_pool(postgres, min_size=2) as pool:
            await pool.execute("CREATE TABLE memories AS SELECT 'memory-1' AS id, 'tea' AS text")
            try:
                await scope["update_both"](pool)
                assert await pool.fetchval("SELECT text FROM memories") == "mate"
                (record,) = await pool.fetch("SELECT new_memory FROM async_history.history")
                assert record["new_memory"] == "mate"
            finally:
                await pool.execute("DROP TABLE memories")
                await pool.execute("DROP SCHEMA async_history CASCADE")

    async def test_a_transaction_of_sqlalchemy(self, tmp_path: Path) -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'history.db'}")
        async with engine.begin() as connection:
            made = "CREATE TABLE memories AS SELECT 'memory-1' AS id, 'tea' AS text"
            await connection.exec_driver_sql(made)
        await scope_of("sql-engine")["update_both"](engine)
        async with engine.begin() as connection:
            texts = "SELECT text, new_memory FROM memories, async_history_records"
            rows = await connection.exec_driver_sql(texts)
            assert [tuple(row) for row in rows] == [("mate", "mate")]
        await engine.dispose()

    async def test_an_unknown_commit(self) -> None:
        class Failing:
            """A manager whose first commit has an unknown outcome, but was made."""

            def __init__(self, history: HistoryManager) -> None:
                self._history = history
                self.calls = 0

            async def add_history(self, *arguments: Any, id: str) -> HistoryRecord:
                self.calls += 1
                record = await self._history.add_history(*arguments, id=id)
                if self.calls == 1:
                    raise CommitUnknown("the disk failed", [id])
                return record

        async with open_history("memory://") as history:
            failing = Failing(history)
            record = await scope_of("commit-unknown")["add_for_sure"](failing, "m", "tea")
            assert await history.get_history("m") == [record]
            assert failing.calls == 2

    async def test_warnings(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = tmp_path / "history.db"
        async with open_history(path) as history:
            await history.add_history("m", None, "tea", "ADD")
            path.rename(tmp_path / "elsewhere.db")
            async with asyncio.timeout(LONG_S):
                while "file-removed" not in caplog.text:
                    await scope_of("warnings")["report"](history)
            (tmp_path / "elsewhere.db").rename(path)
        assert {entry.levelname for entry in caplog.records if "file-r" in entry.message} == {
            "ERROR"
        }


def test_every_example_has_a_test() -> None:
    called: set[str] = set()
    for path in (REPOSITORY / "tests").rglob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        called |= set(re.findall(r'\b(?:run|shell|scope_of|example)\("([a-z0-9-]+)"', text))
    assert set(EXAMPLES) - called == set()


# Everything that users name is documented


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def headings(page: str) -> set[str]:
    return set(re.findall(r"(?m)^#+ (.+)$", text_of(page)))


def test_every_command_and_its_options() -> None:
    page = command_page()
    sections = dict(re.findall(r"(?ms)^## ([a-z-]+)\n(.*?)(?=^## |\Z)", page))
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert len(commands) >= 17
    for name, command in commands.items():
        assert f"| [`{name}`](#{name}) |" in page
        for parameter in command.params:
            for option in (*parameter.opts, *parameter.secondary_opts):
                shown = option if option.startswith("-") else parameter.metavar or option
                assert shown in sections[name] or option == "--help", f"{name} {option}"


def test_every_option() -> None:
    page = text_of("reference/options.md")
    named = set(HistoryOptions.__annotations__) | {"turns_between_processes", "threads"}
    for manager in (SQLiteHistoryManager, PostgresHistoryManager):
        named |= set(inspect.signature(manager).parameters)
    assert len(named) >= 20
    assert [name for name in sorted(named) if f"`{name}`" not in page] == []


def test_every_error() -> None:
    kinds = [
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, HistoryError)
    ]
    kinds += ["HistoryNotWritten", "RollbackIncomplete"]
    assert len(kinds) >= 21
    reference = text_of("reference/errors.md")
    explained = headings("guides/troubleshooting.md") | {"HistoryError"}
    for name in kinds:
        assert name in explained, f"{name} has no entry in troubleshooting"
        assert re.search(rf"autoexception:: {name}\b", reference), name
        if name != "HistoryError":
            assert f"| [`{name}`](../guides/troubleshooting.md#{name.lower()})" in reference


def test_every_warning() -> None:
    codes: set[str] = set()
    for path in (REPOSITORY / "async_history").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "StoreWarning":
                parts = ast.walk(node.args[0])
                codes |= {str(one.value) for one in parts if isinstance(one, ast.Constant)}
    assert {"store-unreachable", "file-removed", "file-replaced", "fsync-off"} <= codes
    assert codes - headings("guides/troubleshooting.md") == set()


def test_every_public_name() -> None:
    documented = set(re.findall(r"(?m)^\.\. auto\w+:: (\w+)", text_of("reference/api.md")))
    documented |= set(re.findall(r"(?m)^\.\. auto\w+:: (\w+)", text_of("reference/errors.md")))
    public = {
        name
        for module in (
            async_history,
            async_history.sqlite,
            async_history.postgres,
            async_history.sql,
            async_history.ledger,
            async_history.blocking,
            async_history.mem0,
            async_history.encryption,
            async_history.fastapi,
            async_history.otel,
            async_history.web,
        )
        for name in module.__all__
    }
    assert len(public) >= 40
    assert public - documented == set()
    assert documented - public - {"HistoryNotWritten"} == set()


async def test_every_table_and_index(
    postgres: str, new_schema: Callable[[], str], tmp_path: Path
) -> None:
    async with open_history(tmp_path / "history.db") as history:
        await history.add_history("m", None, "tea", "ADD")
    connection = sqlite3.connect(tmp_path / "history.db")
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    names = {name for (name,) in tables}
    connection.close()
    url = new_schema()
    async with open_history(url):
        pass
    server = await asyncpg.connect(postgres)
    try:
        found = await server.fetch(
            "SELECT tablename FROM pg_tables WHERE schemaname = $1"
            " UNION SELECT indexname FROM pg_indexes WHERE schemaname = $1"
            " AND tablename IN ('history', 'messages')",
            parse_qs(urlsplit(url).query)["schema"][0],
        )
    finally:
        await server.close()
    names |= {name for (name,) in found}
    assert len(names) >= 20
    page = text_of("reference/tables.md")
    known = set(re.findall(r"`(\w+)`", page)) | headings("reference/tables.md")
    assert names - known == set()


def test_modules_named_in_the_documentation_exist() -> None:
    named = re.compile(r"`((?:_core|_sqlite|_postgres|_transfer|blocking|mem0|cli)/[\w./]*)`")
    missing = [
        (page.name, path)
        for page in PAGES
        for path in named.findall(page.read_text(encoding="utf-8"))
        if not (REPOSITORY / "async_history" / path).exists()
    ]
    assert missing == []


def test_links_in_the_readme_have_targets() -> None:
    """Sphinx does not check the README."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", readme) if "://" not in link]
    assert len(links) >= 20
    assert [link for link in links if not (REPOSITORY / link).exists()] == []


def test_the_readme_is_short_and_has_the_figures_of_the_results() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 150
    found = json.loads((REPOSITORY / "benchmarks/results/peers.json").read_text(encoding="utf-8"))
    reached = {bar["bar"]: bar["reached"] for bar in found["bars"]}
    flat = " ".join(readme.split())
    assert f"{reached['1,000 tasks: events/s against mem0']:.0f} times as many as mem0's" in flat
    assert f"{reached['1,000 tasks: events/s against the ceiling']:.2f} times as many as a" in flat


def test_the_page_of_results_has_every_file() -> None:
    page = results_page()
    for path in RESULTS.glob("*.json"):
        assert f"`python -m benchmarks.{script_of(path.stem)}`" in page
    method = text_of("performance/method.md")
    scripts = {path.stem for path in (REPOSITORY / "benchmarks").glob("[a-z]*.py")}
    assert [name for name in sorted(scripts) if f"`benchmarks.{name}`" not in method] == []
