"""The commands `at`, `diff` and `restore`."""

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from async_history import HistoryRecord, open_history
from tests.cli.programs import Invoke
from tests.support.legacy_files import TODAY, build

pytestmark = pytest.mark.once

CHANGES: list[dict[str, Any]] = [
    {"event": "ADD", "new_memory": "likes green tea", "created_at": "2026-11-20T10:00:00+00:00"},
    {"event": "UPDATE", "new_memory": "likes black tea", "updated_at": "2026-11-20T11:00:00+00:00"},
    {"event": "DELETE", "old_memory": "likes black tea", "updated_at": "2026-11-20T12:00:00+00:00"},
]


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A history in which `m` is added and deleted, and another memory has control characters."""
    path = str(tmp_path / "history.db")
    other = {"memory_id": "other", "event": "ADD", "new_memory": "two\nlines \x1b[31m"}

    async def fill() -> None:
        async with open_history(path) as history:
            await history.batch_add_history([{"memory_id": "m", **change} for change in CHANGES])
            await history.batch_add_history([{**other, "created_at": "2026-11-20T10:30:00Z"}])

    asyncio.run(fill())
    return path


def records(url: str, memory_id: str = "m") -> list[HistoryRecord]:
    async def read() -> list[HistoryRecord]:
        async with open_history(url, create=False) as history:
            return await history.get_history(memory_id)

    return asyncio.run(read())


def test_at_prints_a_memory_at_a_time_or_version(invoke: Invoke, url: str) -> None:
    for when in ("2026-11-20T10:59:59", "2026-11-20T11:30:00+01:00", "1"):
        done = invoke("at", when, "m")
        assert (done.exit_code, done.stderr) == (0, "")
        assert done.stdout == "m\n2026-11-20 10:00:00.000+00:00  ADD\n    likes green tea\n"
    assert "likes black tea" in invoke("at", "2026-11-20T11:00:00Z", "m").stdout
    (line,) = invoke("at", "2", "m", "--json").stdout.splitlines()
    assert json.loads(line) == records(url)[1].as_dict()


def test_at_shows_all_memories(invoke: Invoke, url: str) -> None:
    done = invoke("at", "2026-11-20T10:45:00")
    assert done.exit_code == 0
    assert done.stdout.split("\n\n")[0].endswith("likes green tea")
    assert done.stdout.split("\n\n")[1].endswith("    two\n    lines ␛[31m\n"), "escape_controls"
    lines = invoke("at", "2026-11-20T10:45:00", "--json").stdout.splitlines()
    assert {json.loads(line)["memory_id"] for line in lines} == {"m", "other"}
    gone = invoke("at", "2026-11-20T12:00:00", "--json").stdout.splitlines()
    assert [json.loads(line)["memory_id"] for line in gone] == ["other"]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("at", "2026-11-20T12:00:00", "m"), 1, "m was not there at 2026-11-20T12:00:00"),
        (("at", "2020-01-01"), 1, "no memory was there at 2020-01-01"),
        (("at", "9", "m"), 2, "'m' has 3 versions, there is no version 9"),
        (("at", "1"), 2, "a version number is one memory's"),
        (("at", "yesterday", "m"), 2, "'yesterday' is neither a time such as"),
        (("at", "1", "m", "--db", "missing.db"), 1, "no history in missing.db"),
        (("diff", "nobody", "2020-01-01", "2021-01-01"), 1, "nobody was there neither"),
        (("diff", "m", "0", "1"), 2, "start must be at least 1"),
        (("restore", "nobody", "--to", "1"), 2, "there is no history of 'nobody'"),
        (("restore", "m", "--to", "3"), 2, "'m' was deleted at version 3"),
        (("restore", "m", "--to", "1", "--db", "missing.db"), 1, "no history in missing.db"),
        *[
            ((*asked.split(), "--yes", "--db", "missing.db"), 1, "no history in missing.db")
            for asked in (
                "rollback --to 2020-01-01 --user u",
                "undo --run r",
                "erase --user u --reason r",
                "prune --older-than 1d",
            )
        ],
        (("check", "--db", "missing.db"), 1, "no history in missing.db"),
    ],
)
def test_an_error_is_one_line(
    invoke: Invoke, url: str, arguments: tuple[str, ...], status: int, words: str
) -> None:
    done = invoke(*arguments)
    assert done.exit_code == status
    assert done.stdout == ""
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_diff_shows_what_changed_between_two_states(invoke: Invoke, url: str) -> None:
    done = invoke("diff", "m", "1", "2026-11-20T11:30:00")
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        "m  1 change, 1 → 2026-11-20T11:30:00 in history.db",
        "- 2026-11-20 10:00:00.000+00:00  ADD",
        "+ 2026-11-20 11:00:00.000+00:00  UPDATE",
        "  ~ likes [-green-]{+black+} tea",
    ]
    back = invoke("diff", "m", "2", "2020-01-01").stdout.splitlines()
    assert back[2:] == ["+ not there", "  - likes black tea"]
    assert invoke("diff", "m", "2", "2").stdout.splitlines()[-1] == "    text unchanged"
    printed = json.loads(invoke("diff", "m", "2", "3", "--json").stdout)
    before, gone = records(url)[1:]
    assert printed == {
        "memory_id": "m",
        "old_memory": "likes black tea",
        "new_memory": None,
        "before": before.as_dict(),
        "after": None,
        "between": [gone.as_dict()],
    }


def test_output_fits_a_narrow_screen(invoke: Invoke, url: str) -> None:
    lines = invoke("diff", "m", "1", "2", env={"COLUMNS": "24"}).stdout.splitlines()
    assert max(map(len, lines)) <= 24
    lines = invoke("at", "1", "m", env={"COLUMNS": "24"}).stdout.splitlines()
    assert max(map(len, lines)) <= 24


def test_restore_asks_first(invoke: Invoke, url: str) -> None:
    shown = ["+ 2026-11-20 10:00:00.000+00:00  ADD", "  + likes green tea"]
    dry = invoke("restore", "m", "--to", "1", "--dry-run")
    assert dry.exit_code == 0
    assert dry.stdout.splitlines()[1:] == [*shown, "nothing was recorded: this was a dry run"]
    for answer in ("n\n", ""):
        refused = invoke("restore", "m", "--to", "1", input=answer)
        assert refused.exit_code == 1
        assert refused.stdout.splitlines()[1:3] == shown
    assert len(records(url)) == 3
    done = invoke("restore", "m", "--to", "1", input="y\n")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1] == "restored m in history.db"
    assert [record.new_memory for record in records(url)][3:] == ["likes green tea"]
    again = invoke("restore", "m", "--to", "1", "--yes")
    assert (again.exit_code, len(records(url))) == (0, 4)
    assert again.stdout == "m says that already: nothing to restore\n"


def test_restore_prints_the_record_as_json(invoke: Invoke, url: str) -> None:
    dry = invoke("restore", "m", "--to", "1", "--dry-run", "--json")
    assert json.loads(dry.stdout)["event"] == "ADD"
    assert json.loads(dry.stdout)["new_memory"] == "likes green tea"
    options = ("--yes", "--json", "--actor", "ann", "--role", "user")
    done = invoke("restore", "m", "--to", "1", *options)
    assert json.loads(done.stdout) == records(url)[-1].as_dict()
    assert (records(url)[-1].actor_id, records(url)[-1].role) == ("ann", "user")
    again = invoke("restore", "m", "--to", "1", *options)
    assert json.loads(again.stdout) == records(url)[-1].as_dict()
    assert len(records(url)) == 4
    dry = invoke("restore", "m", "--to", "2", "--dry-run", "--json")
    assert json.loads(dry.stdout)["old_memory"] == "likes green tea"


def test_restore_writes_what_it_showed_or_nothing(
    invoke: Invoke, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def confirm(*_: Any, **__: Any) -> bool:
        with closing(sqlite3.connect(url)) as other:
            other.execute("INSERT INTO history (id, memory_id, event) VALUES ('x', 'm', 'ADD')")
            other.commit()
        return True

    monkeypatch.setattr("typer.confirm", confirm)
    done = invoke("restore", "m", "--to", "1")
    assert done.exit_code == 1
    assert "latest" in done.stderr
    assert len(records(url)) == 4


def test_an_old_file_is_rewritten_only_by_a_write(invoke: Invoke, tmp_path: Path) -> None:
    path = build(tmp_path / "old.db", history_old=TODAY)
    before = path.read_bytes()
    assert invoke("at", "2026-01-01", "--db", "old.db").exit_code == 0
    assert invoke("diff", "m1", "1", "2", "--db", "old.db").exit_code == 0
    assert invoke("restore", "m1", "--to", "1", "--db", "old.db", "--dry-run").exit_code == 0
    assert invoke("restore", "m1", "--to", "1", "--db", "old.db", input="n\n").exit_code == 1
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["old.db"]
    assert invoke("restore", "m1", "--to", "1", "--db", "old.db", "--yes").exit_code == 0
    assert records(str(path), "m1")[-1].new_memory == "tea"
