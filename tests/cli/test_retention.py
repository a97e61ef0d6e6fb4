"""`prune` and `erase` on the command line: nothing is removed without a confirmation."""

import asyncio
import hashlib
import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from async_history import Erasure, InvalidInput, open_history
from async_history.cli.retention import instant
from tests.cli.programs import environment_with, run_in_terminal
from tests.subprocesses.commands import Result, run_command

pytestmark = pytest.mark.once


def run(folder: Path, *arguments: str) -> Result:
    return run_command(list(arguments), folder, environment_with())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a history of two old records, a new one and a message."""

    async def fill() -> None:
        async with open_history(tmp_path / "history.db") as history:
            await history.batch_add_history(
                [
                    {"memory_id": "m", "event": "ADD", "created_at": "2024-01-01"},
                    {"memory_id": "m", "event": "UPDATE", "updated_at": "2024-01-02"},
                    {"memory_id": "m", "event": "UPDATE", "new_memory": "told", "actor_id": "ann"},
                ]
            )
            await history.save_messages([{"role": "user", "content": "told"}], "scope")

    asyncio.run(fill())
    return tmp_path


def left(folder: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(folder / "history.db")) as connection:
        return connection.execute(
            "SELECT new_memory, actor_id FROM history UNION ALL SELECT content, role FROM messages"
        ).fetchall()


EVERYTHING = [(None, None), (None, None), ("told", "ann"), ("told", "user")]
PRUNE = ("prune", "--older-than", "90d")
ERASE = ("erase", "--memory", "m", "--reason", "asked")


@pytest.mark.subprocess
@pytest.mark.parametrize("command", [PRUNE, ERASE])
class TestConfirmation:
    def test_without_a_terminal_it_refuses(self, command: tuple[str, ...], folder: Path) -> None:
        result = run(folder, *command)
        assert (result.returncode, result.stdout) == (2, "")
        assert "give --yes" in result.stderr
        assert result.stderr.count("\n") == 1
        assert left(folder) == EVERYTHING

    def test_a_dry_run_only_shows(self, command: tuple[str, ...], folder: Path) -> None:
        for more in ((), ("--yes",)):
            result = run(folder, *command, "--dry-run", *more)
            assert result.returncode == 0
            assert result.stdout.startswith("history.db: would ")
            assert left(folder) == EVERYTHING

    @pytest.mark.parametrize("answer", ["\n", "n\n"])
    def test_in_a_terminal_it_asks(
        self, command: tuple[str, ...], answer: str, folder: Path
    ) -> None:
        result = run_in_terminal(folder, answer, *command)
        assert result.returncode == 1
        assert "would " in result.stdout
        assert "nothing was removed" in result.stdout
        assert left(folder) == EVERYTHING

    def test_it_goes_on_after_a_yes(self, command: tuple[str, ...], folder: Path) -> None:
        result = run_in_terminal(folder, "y\n", *command, columns=30)
        assert result.returncode == 0
        assert left(folder) != EVERYTHING

    def test_a_missing_history_is_an_error(self, command: tuple[str, ...], tmp_path: Path) -> None:
        for more in ("--yes", "--dry-run"):
            result = run(tmp_path, *command, more)
            assert result.returncode == 1
            assert "does not exist" in result.stderr
        assert list(tmp_path.iterdir()) == []

    def test_a_dry_run_rewrites_no_old_file(self, command: tuple[str, ...], tmp_path: Path) -> None:
        path = tmp_path / "history.db"
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(
                "CREATE TABLE history (id TEXT PRIMARY KEY, memory_id TEXT, prev_value TEXT,"
                " new_value TEXT, event TEXT, timestamp DATETIME, is_deleted INTEGER)"
            )
            connection.execute("INSERT INTO history VALUES ('1', 'm', NULL, 'x', 'ADD', '2024', 0)")
        before = hashlib.sha256(path.read_bytes()).hexdigest()
        result = run(tmp_path, *command, "--dry-run")
        assert result.returncode == 1
        assert "async-history migrate" in result.stderr
        assert hashlib.sha256(path.read_bytes()).hexdigest() == before
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.subprocess
def test_prune_says_what_it_removed(folder: Path) -> None:
    result = run(folder, *PRUNE, "--yes", "--keep-last", "2")
    assert result.returncode == 0
    assert result.stdout.startswith("history.db: removed 1 record from before ")
    assert len(left(folder)) == len(EVERYTHING) - 1
    result = run(folder, "prune", "--older-than", "2025-01-01T00:00:00+00:00", "--yes", "--json")
    assert json.loads(result.stdout) == {
        "done": True,
        "before": "2025-01-01T00:00:00+00:00",
        "records": 1,
        "memories_gone": 0,
        "batches": 1,
    }
    assert left(folder) == EVERYTHING[2:]


@pytest.mark.subprocess
def test_erase_says_what_it_erased_and_what_is_left_to_do(folder: Path) -> None:
    (folder / "history.db.before-adoption-1.bak").touch()
    result = run(folder, "erase", "--actor", "ann", "--scope", "scope", "--reason", "x", "--yes")
    assert result.returncode == 0
    done, to_do = result.stdout.splitlines()
    assert done == "history.db: erased the texts of 1 record and 1 message"
    assert to_do.startswith("still to do: ")
    assert "before-adoption-1.bak" in to_do
    assert left(folder) == [(None, None)] * 3
    (folder / "history.db.before-adoption-1.bak").unlink()
    result = run(folder, *ERASE, "--yes", "--json", "--no-vacuum")
    report = json.loads(result.stdout)
    assert (report["done"], report["records"], report["copies"]) == (True, 0, [])
    assert "VACUUM" in report["remains"][0]


@pytest.mark.subprocess
@pytest.mark.parametrize("how", ["--yes", "--dry-run"])
def test_an_erasure_that_matches_nothing_says_so(folder: Path, how: str) -> None:
    before = left(folder)
    for whom in (("--memory", "nobody"), ("--actor", "nobody"), ("--scope", "nobody")):
        result = run(folder, "erase", *whom, "--reason", "x", how)
        assert result.returncode == 1
        assert "nothing: no record or message with a text matches" in result.stdout
        assert run(folder, "erase", *whom, "--reason", "x", how, "--json").returncode == 1
    assert left(folder) == before


@pytest.mark.subprocess
def test_bad_arguments_are_refused(folder: Path) -> None:
    for arguments, said in (
        (("prune", "--older-than", "soon", "--yes"), "neither an age like 90d"),
        (("prune", "--older-than", "99999999w", "--yes"), "before year 1"),
        (("erase", "--reason", "x", "--yes"), "name what to erase"),
        (("erase", "--memory", "m", "--reason", "", "--yes"), "reason must not be empty"),
    ):
        result = run(folder, *arguments)
        assert (result.returncode, result.stdout) == (2, "")
        assert said in result.stderr
    assert left(folder) == EVERYTHING


def test_older_than_takes_ages_and_times() -> None:
    for text, age in (
        ("90d", timedelta(days=90)),
        ("2w", timedelta(weeks=2)),
        ("36h", timedelta(hours=36)),
        ("5m", timedelta(minutes=5)),
        ("0s", timedelta()),
    ):
        assert abs(datetime.now(UTC) - age - instant(text)) < timedelta(minutes=1)
    assert instant("2026-01-02") == datetime(2026, 1, 2, tzinfo=UTC)
    assert instant("2026-01-02T03:04:05-07:00").isoformat() == "2026-01-02T03:04:05-07:00"
    for text in ("", "d", "-5d", "90", "90 d", "1y", "٩d", "20260102", "2026-13-01"):
        with pytest.raises(InvalidInput):
            instant(text)


@pytest.mark.subprocess
class TestErasures:
    """`async-history erasures`."""

    def test_erasures_are_listed(self, folder: Path) -> None:
        for arguments in (
            ["--memory", "m", "--reason", "asked \x1b"],
            ["--actor", "ann", "--reason", "left"],
        ):
            run(folder, "erase", "--yes", *arguments)

        async def stored() -> list[Erasure]:
            async with open_history(folder / "history.db") as history:
                return await history.erasures()

        expected = asyncio.run(stored())
        assert [erasure.reason for erasure in expected] == ["asked \x1b", "left"]
        listed = run(folder, "erasures", "--json")
        assert (listed.returncode, listed.stderr) == (0, "")
        for line, erasure in zip(listed.stdout.splitlines(), expected, strict=True):
            fields = json.loads(line)
            for name in ("begun_at", "finished_at"):
                fields[name] = datetime.fromisoformat(fields[name])
            assert Erasure(**{**fields, "memory_ids": tuple(fields["memory_ids"])}) == erasure
        shown = run(folder, "erasures").stdout
        for erasure in expected:
            assert f"id: {erasure.id}\n" in shown
            assert f"{erasure.records} record" in shown
        assert "reason: asked ␛\n" in shown
        assert "memories: m\n" in shown
        assert hashlib.sha256(b"ann").hexdigest() in shown
        assert "not finished" not in shown

    def test_an_interrupted_erasure_is_listed_as_such(self, folder: Path) -> None:
        run(folder, *ERASE, "--yes")
        with closing(sqlite3.connect(folder / "history.db", isolation_level=None)) as connection:
            connection.execute("UPDATE async_history_operations SET ended_at = NULL")
        assert "not finished" in run(folder, "erasures").stdout
        assert "unfinished" in run(folder, "operations").stdout

    def test_an_erasure_is_among_the_operations(self, folder: Path) -> None:
        run(folder, *ERASE, "--yes")
        (line,) = run(folder, "operations", "--json").stdout.splitlines()
        fields = json.loads(line)
        assert (fields["kind"], fields["state"], fields["error"]) == ("erase", "finished", None)
        shown = run(folder, "operations").stdout
        assert f"id: {fields['id']}\n" in shown
        assert f"process: {fields['process_id']} on " in shown

    def test_a_history_without_erasures(self, folder: Path) -> None:
        for output in ([], ["--json"]):
            listed = run(folder, "erasures", *output)
            assert (listed.returncode, listed.stdout) == (0, "")
            assert "nothing has been erased" in listed.stderr
            listed = run(folder, "operations", *output)
            assert (listed.returncode, listed.stdout) == (0, "")
            assert "no operation is logged" in listed.stderr
        missing = run(folder, "erasures", "--db", "nowhere.db")
        assert (missing.returncode, missing.stdout) == (1, "")
