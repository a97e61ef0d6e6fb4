"""What type checkers say of programs that use the library.

Without this repository's settings: a program has its own.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.docs_examples import EXAMPLES, REPOSITORY
from tests.support.patience import LONG_S

pytestmark = [pytest.mark.subprocess, pytest.mark.once]

PYTHON_EXAMPLES = {
    f"example_{name.replace('-', '_')}": one.text
    for name, one in EXAMPLES.items()
    if one.language == "python"
}

RIGHT = """
from pathlib import Path
from typing import Any
from async_history import (
    Durability, Follower, HistoryOptions, HistoryRecord, MemoryDiff, Moment, Order, open_history
)
from async_history.postgres import PostgresHistoryManager
from async_history.sqlite import SQLiteHistoryManager
from async_history.blocking import BlockingHistoryManager
from async_history.mem0 import AsyncMemory, Memory

async def use(url: str, pg: Any) -> None:
    options: HistoryOptions = {"queue_records": 5, "durability": "normal", "pool_size": 3}
    async with open_history(url, **options) as history:
        await history.backup("backup.db")
        await history.backup(Path("backup.db"), on_progress=lambda done, total: None)
        await history.add_in_transaction(pg, [{"memory_id": "m", "event": "ADD"}])
        if isinstance(history, SQLiteHistoryManager):
            await history.backup("backup.db", on_progress=None)
        elif isinstance(history, PostgresHistoryManager):
            await history.add_in_transaction(pg, [], if_latest="id")
        newest: Order = "newest"
        first: HistoryRecord | None = None
        async for page in history.query_history(order=newest, limit=3).pages():
            first = page.records[0]
        moment: Moment = 1
        diff: MemoryDiff = await history.diff("m", moment, end=2)
        await history.add_history("m", None, diff.new_memory, "ADD", if_latest=first)
        follower: Follower = history.follow()
        print(follower.cursor, (await history.stats()).writer)
    async with SQLiteHistoryManager("history.db", durability="normal", journal="wal") as file:
        await file.backup("backup.db")
    async with PostgresHistoryManager("postgresql://host/app", pool_size=3) as server:
        await server.add_in_transaction(pg, [])
    how: Durability = "full"
    opened = await open_history(Path("history.db"), durability=how, queue_timeout_s=None)
    await opened.aclose()
    open_history("postgresql://host/app", read_url=None, retry_timeout_s=1, close_timeout_s=2.5)
    BlockingHistoryManager("history.db", lock_timeout_s=3).add_history("m", None, "x", "ADD")
"""
WRONG: Mapping[str, str] = {
    'open_history("h.db", qeue_records=5)': "qeue_records",
    'open_history("h.db", durability="fulll")': "durability",
    'open_history("h.db", queue_records="5")': "queue_records",
    'open_history("h.db", queue_timeout_s="5")': "queue_timeout_s",
    'open_history("h.db", lock_timeout_s=None)': "lock_timeout_s",
    'open_history("h.db", create="no")': "create",
    'open_history("h.db", pool_size=2.5)': "pool_size",
    'open_history("h.db", schema=5)': "schema",
    "open_history(5)": "open_history",
    'BlockingHistoryManager("h.db", lock_timeout=5)': "lock_timeout",
    'BlockingHistoryManager("h.db", durability="fulll")': "durability",
    'SQLiteHistoryManager("h.db", durability="fulll")': "durability",
    'SQLiteHistoryManager("h.db", pool_size=2)': "pool_size",
    'PostgresHistoryManager("postgresql://h/d", durability="full")': "durability",
    'open_history("h.db").back_up("b.db")': "back_up",
    'open_history("h.db").backup(5)': "backup",
    'open_history("h.db").query_history(order="newst")': "order",
    'open_history("h.db").query_history(limit="3")': "limit",
    'open_history("h.db").add_history("m", None, "x", "ADD", if_latest=5)': "if_latest",
    'open_history("h.db").diff("m", "2026-01-01", 2)': "diff",
}


WRONG_IMPORTS = (
    "from async_history import open_history",
    "from async_history.postgres import PostgresHistoryManager",
    "from async_history.sqlite import SQLiteHistoryManager",
    "from async_history.blocking import BlockingHistoryManager",
)
FILES = PYTHON_EXAMPLES | {"right": RIGHT, "wrong": "\n".join([*WRONG_IMPORTS, *WRONG])}


def complaints(folder: Path, **files: str) -> list[str]:
    """Return mypy's errors in files, one a line."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull]
        + [str(folder / f"{name}.py") for name in files],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=2 * LONG_S,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if ": error:" in line]


def test_mypy_accepts_right_programs_and_names_each_error(tmp_path: Path) -> None:
    """All in one run, since checking the library's own modules takes most of the time."""
    assert len(PYTHON_EXAMPLES) >= 20
    found = complaints(tmp_path, **FILES)
    # asyncpg and mem0 have no type information.
    others = [
        line
        for line in found
        if (stem := Path(line.partition(":")[0]).stem) != "wrong"
        and not (stem in {"right", *PYTHON_EXAMPLES} and "[import-untyped]" in line)
    ]
    assert others == []
    for number, (line, word) in enumerate(WRONG.items(), len(WRONG_IMPORTS) + 1):
        about = [one for one in found if f"/wrong.py:{number}:" in one]
        assert any(word in one for one in about), f"no error for {line}"


def test_pyright_accepts_and_names_the_same(tmp_path: Path) -> None:
    """pyright's package brings Node.js, and fetches pyright itself on its first run."""
    pyright = [sys.executable, "-m", "pyright"]
    for pause_s in (5, 30, 0):  # the network may be away for a moment
        there = subprocess.run(
            [*pyright, "--version"], capture_output=True, text=True, timeout=2 * LONG_S
        )
        if there.returncode == 0:
            break
        time.sleep(pause_s)
    if there.returncode != 0 and not os.environ.get("ASYNC_HISTORY_CI"):
        pytest.skip(f"pyright can't be run: {there.stderr[-200:]}")
    assert there.returncode == 0, there.stdout + there.stderr
    for name, text in FILES.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [*pyright, "--pythonpath", sys.executable, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=2 * LONG_S,
    )
    said = re.findall(r"(\w+)\.py:(\d+):\d+ - (?:error|warning)", done.stdout)
    assert [one for one in said if one[0] != "wrong"] == [], done.stdout
    numbers = {int(number) for _, number in said}
    silent = set(range(len(WRONG_IMPORTS) + 1, len(WRONG_IMPORTS) + len(WRONG) + 1)) - numbers
    assert silent == set(), done.stdout


def test_the_package_is_marked_as_typed() -> None:
    assert (REPOSITORY / "async_history" / "py.typed").exists()
