"""The README's own code runs, and says what it says."""

import asyncio
import re
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from async_history import open_history
from async_history.postgres import PostgresHistoryManager
from tests.patience import LONG_S

README = Path(__file__).parent.parent / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
EXAMPLE, FOLLOWING, MEM0, APPLICATION, BACK, RESTORE, ADOPTION, *EXAMPLES = EXAMPLES
LETTING_GO, MOVING, SERVER, TRANSACTION = EXAMPLES


def run(source: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=LONG_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.subprocess
def test_the_example(tmp_path: Path) -> None:
    assert len(list(filter(None, EXAMPLE.splitlines()))) <= 10
    first, second = run(EXAMPLE, tmp_path).splitlines()
    assert first.endswith("ADD likes tea")
    assert second.endswith("UPDATE likes mate")


async def test_following(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run twice, it goes on where it was."""
    scope: dict[str, Any] = {}
    exec(FOLLOWING, scope)
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


@pytest.mark.subprocess
def test_going_back(tmp_path: Path) -> None:
    assert run(f"{BACK}\nimport asyncio\nasyncio.run(main())", tmp_path).splitlines() == [
        "at noon: likes tea",
        "there at noon: memory-2",
        "likes tea -> likes mate 1",
        "UPDATE likes mate -> likes tea",
    ]


@pytest.mark.subprocess
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


async def test_letting_go(capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, Any] = {}
    exec(LETTING_GO, scope)
    async with open_history("memory://") as history:
        await history.add_history("m", None, "old", "ADD", created_at="2024-01-01")
        await history.add_history("m", "old", "new", "UPDATE", actor_id="ann")
        await scope["let_go"](history)
        (left,) = await history.get_history("m")
        assert (left.new_memory, left.actor_id) == (None, None)
    would, erased = capsys.readouterr().out.splitlines()
    assert would.startswith("would remove 1 record from before ")
    assert erased == "erased the texts of 1 record and 0 messages"


@pytest.mark.subprocess
def test_moving(tmp_path: Path) -> None:
    run(EXAMPLE, tmp_path)
    assert run(MOVING, tmp_path).startswith("2 written, 2 compared, ")
    assert run(MOVING.replace("backup.db", "other.db"), tmp_path).startswith("0 written, 2 comp")
    for name in ("copy.db", "backup.db"):
        connection = sqlite3.connect(tmp_path / name)
        assert connection.execute("SELECT count(*) FROM history").fetchone() == (2,)
        connection.close()


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
