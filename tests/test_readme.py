"""The README's own code runs, and says what it says."""

import re
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import asyncpg

from async_history import open_history
from async_history.backends.postgres import PostgresHistoryManager

README = Path(__file__).parent.parent / "README.md"
EXAMPLE, MEM0, APPLICATION, ADOPTION, SERVER, TRANSACTION = re.findall(
    r"```python\n(.*?)```", README.read_text(), re.DOTALL
)


def run(source: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_example(tmp_path: Path) -> None:
    assert len(list(filter(None, EXAMPLE.splitlines()))) <= 10
    first, second = run(EXAMPLE, tmp_path).splitlines()
    assert first.endswith("ADD likes tea")
    assert second.endswith("UPDATE likes mate")


def test_adoption_looks_first(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TABLE history (id TEXT PRIMARY KEY, memory_id TEXT, prev_value TEXT,"
            " new_value TEXT, event TEXT, timestamp DATETIME, is_deleted INTEGER)"
        )
        connection.execute("INSERT INTO history VALUES ('1', 'm', NULL, 'x', 'ADD', '2024', 0)")
    connection.close()
    assert "1 record of history (mem0 0.0.2) would be rewritten" in run(ADOPTION, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["history.db"]


def test_a_servers_url() -> None:
    scope: dict[str, Any] = {"open_history": open_history}
    exec(SERVER, scope)
    assert isinstance(scope["history"], PostgresHistoryManager)


async def test_a_transaction(postgres: str) -> None:
    scope: dict[str, Any] = {}
    exec(f"async def example(pool):\n{textwrap.indent(TRANSACTION, '    ')}", scope)
    async with asyncpg.create_pool(postgres, min_size=2) as pool:
        await pool.execute("CREATE TABLE memories AS SELECT 'memory-1' AS id, 'tea' AS text")
        try:
            await scope["example"](pool)
            assert await pool.fetchval("SELECT text FROM memories") == "mate"
            (record,) = await pool.fetch("SELECT new_memory FROM async_history.history")
            assert record["new_memory"] == "mate"
        finally:
            await pool.execute("DROP TABLE memories")
            await pool.execute("DROP SCHEMA async_history CASCADE")
