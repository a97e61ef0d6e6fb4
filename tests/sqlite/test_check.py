"""`check_history`, and the command: faults are named, and rebuilt where possible."""

import asyncio
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
from mem0.memory.storage import SQLiteManager
from typer.testing import CliRunner

from async_history import ChainFault, MigrationError, StorageMissing, check_history, open_history
from async_history._core.records.records import COLUMNS
from async_history._sqlite.connecting.connection import ThreadConnection
from async_history._sqlite.index.validity import CHUNKS_STAMP, STAMP_KEY
from async_history.blocking import BlockingHistoryManager
from async_history.cli.app import app

pytestmark = pytest.mark.once

ROWS = 8_300
"""More records than a chunk."""


def fill(path: Path, rows: int) -> None:
    async def write() -> None:
        async with open_history(path) as history:
            await history.batch_add_history(
                [
                    {"memory_id": f"m{n % 9}", "new_memory": "x", "event": "ADD", "actor_id": "ann"}
                    for n in range(rows)
                ]
            )

    asyncio.run(write())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "h.db"
    fill(path, ROWS)
    return path


@pytest.fixture(scope="module")
def with_details(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of four spans, of which two memories have an owner and a cause."""
    path = tmp_path_factory.mktemp("made") / "h.db"
    fill(path, 4 * 512)

    async def add() -> None:
        async with open_history(path) as history:
            details = {"cause": {"run_id": "r"}, "owner": {"user_id": "ann"}}
            await history.batch_add_history(
                [
                    {"memory_id": f"own{n}", "new_memory": "x", "event": "ADD", **details}
                    for n in range(2)
                ]
            )

    asyncio.run(add())
    assert asyncio.run(check_history(str(path))).problems == ()
    return path


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(made, tmp_path))


def change(path: Path, script: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(script)


async def test_a_sound_file_has_no_problems(path: Path) -> None:
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
            "1 record can't be found by memory",
        ),
        (
            f"DELETE FROM async_history_actors WHERE block > {CHUNKS_STAMP} AND position = 7",
            "1 record can't be found by actor",
        ),
        ("UPDATE async_history_spans SET latest = '1' WHERE block = 2", "found by time"),
        ("UPDATE async_history_chunks SET latest = '1' WHERE block = 0", "found by time"),
        ("DELETE FROM async_history_state", "does not belong to the file"),
        ("DROP TABLE async_history_recent", "is missing"),
        ("VACUUM", "does not belong to the file"),
    ],
)
async def test_a_wrong_index_is_rebuilt(script: str, what: str, path: Path) -> None:
    change(path, script)
    (problem,) = (await check_history(str(path))).problems
    assert what in problem
    report = await check_history(str(path), repair=True)
    assert (report.problems, report.is_repaired) == ((), True)
    async with open_history(path) as history:
        assert len(await history.get_history("m3")) == len(range(3, ROWS, 9))
        assert await history.count_history(actor_id="ann") == ROWS


@pytest.mark.parametrize("column", ["cause", "owner"])
@pytest.mark.parametrize(
    "damage",
    [
        "'{bad'",
        "'[1]'",
        "'7'",
        "''",
        "x'ff'",
        "x'7b7d'",
        "CAST(x'ff' AS TEXT)",
        '\'{"user_id":"\' || char(92) || \'ud800","run_id":"\' || char(92) || \'ud800"}\'',
        "replace(hex(zeroblob(5000)), '00', '{\"a\":')",
    ],
)
async def test_a_cause_or_an_owner_that_is_not_json_is_named(
    with_details: Path, column: str, damage: str, tmp_path: Path
) -> None:
    """All else is still checked: what comes after it is named too."""
    path = Path(shutil.copy(with_details, tmp_path))
    table, key = ("owners", "number") if column == "owner" else ("details", "id")
    change(
        path,
        f"UPDATE async_history_{table} SET {column} = {damage}"
        f" WHERE {key} = (SELECT min({key}) FROM async_history_{table} WHERE {column} IS NOT NULL);"
        "UPDATE async_history_spans SET latest = '1' WHERE block = 2",
    )
    named, *others, last = (await check_history(str(path))).problems
    assert re.match(r"1 (record|memory) has an? \w+ that can't be read, such as \S+:", named)
    assert column in named
    assert "found by time" in last
    assert all("found by owner" in one for one in others)
    async with open_history(path) as history:
        assert named in (await history.check()).problems


async def test_records_without_an_id(path: Path) -> None:
    change(path, "UPDATE history SET id = NULL WHERE rowid < 3")
    (problem,) = (await check_history(str(path))).problems
    assert "2 records have no id" in problem


async def test_duplicate_ids_in_a_file_that_was_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    columns = ", ".join(f"{column} TEXT" for column in COLUMNS)
    rows = "(1, 'ADD'), (1, 'UPDATE'), (2, 'ADD'), (2, 'ADD')"
    change(path, f"CREATE TABLE history ({columns}); INSERT INTO history (id, event) VALUES {rows}")
    with pytest.raises(MigrationError, match="the record 1 is there more than once"):
        await check_history(str(path))


async def test_a_row_between_the_others(path: Path) -> None:
    change(path, "INSERT INTO history (rowid, id, memory_id, event) VALUES (-5, 'x', 'm', 'ADD')")
    assert (await check_history(str(path))).problems == ()


async def test_a_damaged_file(path: Path) -> None:
    change(
        path,
        "CREATE INDEX own ON history (role); PRAGMA writable_schema = on;"
        "UPDATE sqlite_master SET sql = 'CREATE INDEX own ON history (event)' WHERE name = 'own'",
    )
    first, *_ = (await check_history(str(path))).problems
    assert "The file is damaged" in first
    assert ".recover" in first


async def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageMissing):
        await check_history(str(tmp_path / "none.db"))


@pytest.mark.parametrize("where", ["file", "memory://"])
async def test_a_history_can_check_itself(where: str, tmp_path: Path) -> None:
    async with open_history(tmp_path / "h.db" if where == "file" else where) as history:
        await history.batch_add_history(
            [{"memory_id": f"m{n}", "new_memory": "x", "event": "ADD"} for n in range(99)]
        )
        report = await history.check()
        assert (report.records, report.problems, report.notes) == (99, (), ())
        wrong = "".join(
            f"DELETE FROM async_history_{level} WHERE memory > {STAMP_KEY} AND position = 2;"
            for level in ("settled", "middle", "recent")
        )

        def spoil(connection: sqlite3.Connection) -> None:
            connection.executescript(wrong)

        await history.store.run_exclusively(lambda one: one.run(spoil))  # type: ignore[attr-defined]
        (problem,) = (await history.check()).problems
    assert "1 record can't be found by memory" in problem


@pytest.mark.parametrize("first", ["check", "read", "query", "erase"])
async def test_a_vacuumed_file_is_as_sound_as_before(first: str, path: Path) -> None:
    """Whether another program, or an erasure whose process was killed, ran VACUUM."""
    async with open_history(path) as history:
        await history.add_history("owned", None, "x", "ADD", owner={"user_id": "ann"})
        change(path, f"DELETE FROM history WHERE rowid < {ROWS // 2}; VACUUM")
        match first:
            case "check":
                assert (await history.check()).problems == ()
            case "read":
                assert len(await history.get_history("m3")) == len(range(ROWS)[3::9]) // 2
            case "query":
                assert await history.count_history(user_id="ann") == 1
            case _:
                report = await history.erase(user_id="ann", reason="asked", vacuum=False)
                assert report.records == 1
        assert (await history.check()).problems == ()
    assert (await check_history(str(path))).problems == ()


@pytest.mark.parametrize("at", ["during VACUUM", "after it"])
async def test_a_cancelled_erasure_leaves_a_sound_file(
    at: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Any = ThreadConnection.execute_fetchall

    async def execute(self: ThreadConnection, sql: str) -> Any:
        if sql == "VACUUM" and at == "during VACUUM":
            erasing.cancel()
        found = await real(self, sql)
        if sql == "VACUUM" and at == "after it":
            erasing.cancel()
        return found

    monkeypatch.setattr(ThreadConnection, "execute_fetchall", execute)
    async with open_history(path) as history, open_history(path) as other:
        erasing = asyncio.create_task(history.erase(memory_ids=["m3"], reason="asked"))
        with pytest.raises(asyncio.CancelledError):
            await erasing
        assert (await other.check()).problems == ()
        assert (await history.check()).problems == ()
        assert await other.count_history(text="x") == ROWS - len(await history.get_history("m3"))
    assert (await check_history(str(path))).problems == ()


async def test_broken_chains_of_a_file_of_plain_mem0_are_notes(tmp_path: Path) -> None:
    """They are not repaired, and the check of a file that has only notes succeeds."""
    path = tmp_path / "history.db"
    plain = SQLiteManager(str(path))
    plain.add_history("m", None, "tea", "ADD", created_at="2026-01-01T00:00:00+00:00")
    for text in ("mate", "milk"):
        plain.add_history("m", "tea", text, "UPDATE", updated_at="2026-01-02T00:00:00+00:00")
    plain.close()
    report = await check_history(str(path))
    assert (report.records, report.problems) == (3, ())
    (broken,) = report.broken
    assert (broken.memory_id, broken.fault) == ("m", ChainFault.TEXT)
    assert broken.record_id in report.outcome()


async def test_a_postgresql_history(new_schema: Callable[[], str]) -> None:
    url = new_schema()
    async with open_history(url) as history:
        await history.add_history("m", None, "x", "ADD")
    report = await check_history(url)
    assert (report.records, report.problems) == (1, ())


@pytest.mark.parametrize(
    ("script", "what"),
    [
        (
            "UPDATE pg_index SET indisvalid = false"
            " WHERE indexrelid = '{schema}.history_kind'::regclass",
            "history_kind is not valid",
        ),
        ("ALTER TABLE {schema}.messages OWNER TO pg_monitor", "several owners ("),
    ],
)
async def test_a_damaged_postgresql_schema(
    script: str, what: str, postgres: str, new_schema: Callable[[], str]
) -> None:
    url = new_schema()
    async with open_history(url):
        pass
    owner = await asyncpg.connect(postgres)
    await owner.execute(script.format(schema=parse_qs(urlsplit(url).query)["schema"][0]))
    await owner.close()
    (problem,) = (await check_history(url)).problems
    assert what in problem


def test_the_command_prints_and_repairs(path: Path) -> None:
    run = CliRunner()
    assert run.invoke(app, ["check", "--db", str(path)]).exit_code == 0
    change(path, "DELETE FROM async_history_state")
    result = run.invoke(app, ["check", "--db", str(path)])
    assert (result.exit_code, "--repair" in result.stdout) == (1, True)
    assert run.invoke(app, ["check", "--db", str(path), "--repair"]).exit_code == 0


def test_a_blocking_manager(path: Path) -> None:
    with closing(BlockingHistoryManager(str(path))) as history:
        report = history.check()
    assert (report.records, report.memories, report.problems) == (ROWS, 9, ())
    assert len(report.broken) == 100, "each memory was added again and again"
