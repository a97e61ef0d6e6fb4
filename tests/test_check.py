"""`check_history`, and the command: what is wrong is said, and built anew where it can be."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from async_history import StorageMissing, check_history, open_history
from async_history.cli.app import app
from async_history.index_state import CHUNKS_STAMP, STAMP_KEY

ROWS = 8_300
"""More than a chunk."""


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    path = tmp_path / "h.db"
    async with open_history(path) as history:
        await history.batch_add_history(
            [
                {"memory_id": f"m{n % 9}", "new_memory": "x", "event": "ADD", "actor_id": "ann"}
                for n in range(ROWS)
            ]
        )
    return path


def change(path: Path, script: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(script)


async def test_nothing_is_wrong(path: Path) -> None:
    before = path.read_bytes()
    report = await check_history(str(path))
    assert (report.records, report.problems) == (ROWS, ())
    assert path.read_bytes() == before
    change(path, "INSERT INTO history (id, memory_id, event) VALUES ('by others', 'm', 'ADD')")
    assert (await check_history(str(path))).problems == ()


@pytest.mark.parametrize(
    ("script", "what"),
    [
        (
            f"DELETE FROM async_history_settled WHERE memory > {STAMP_KEY} AND position = 3;"
            f"DELETE FROM async_history_middle WHERE memory > {STAMP_KEY} AND position = 3;"
            f"DELETE FROM async_history_recent WHERE memory > {STAMP_KEY} AND position = 3",
            "1 records are not found by their memory",
        ),
        (
            f"DELETE FROM async_history_actors WHERE block > {CHUNKS_STAMP} AND position = 7",
            "1 records are not found by their actor",
        ),
        ("UPDATE async_history_spans SET latest = '1' WHERE block = 2", "by their time"),
        ("DELETE FROM async_history_state", "not of this file"),
        ("DROP TABLE async_history_recent", "is gone"),
        ("VACUUM", "not of this file"),
    ],
)
async def test_a_wrong_index(script: str, what: str, path: Path) -> None:
    change(path, script)
    (problem,) = (await check_history(str(path))).problems
    assert what in problem
    report = await check_history(str(path), repair=True)
    assert (report.problems, report.is_repaired) == ((), True)
    async with open_history(path) as history:
        assert len(await history.get_history("m3")) == len(range(3, ROWS, 9))
        assert await history.count_history(actor_id="ann") == ROWS


async def test_records_without_an_id(path: Path) -> None:
    change(path, "UPDATE history SET id = NULL WHERE rowid < 3")
    (problem,) = (await check_history(str(path))).problems
    assert "2 records have no id" in problem


async def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(StorageMissing):
        await check_history(str(tmp_path / "none.db"))


async def test_a_postgresql_history(new_schema: "object") -> None:
    url = new_schema()  # type: ignore[operator]
    async with open_history(url) as history:
        await history.add_history("m", None, "x", "ADD")
    report = await check_history(url)
    assert (report.records, report.problems) == (1, ())


def test_the_command(path: Path) -> None:
    run = CliRunner()
    assert run.invoke(app, ["check", "--db", str(path)]).exit_code == 0
    change(path, "DELETE FROM async_history_state")
    told = run.invoke(app, ["check", "--db", str(path)])
    assert (told.exit_code, "--repair" in told.stdout) == (1, True)
    assert run.invoke(app, ["check", "--db", str(path), "--repair"]).exit_code == 0
