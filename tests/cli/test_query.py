"""`async-history query`, as people and scripts run it."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from async_history import open_history
from async_history.cli import query as query_module
from async_history.cli.app import app
from tests.cli.programs import Run

pytestmark = pytest.mark.once


START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def db(tmp_path: Path) -> str:
    """Twelve changes of three memories by two actors, an hour apart."""

    async def fill(path: Path) -> None:
        async with open_history(path) as history:
            for n in range(12):
                await history.add_history(
                    f"m{n % 3}",
                    None if n < 3 else f"tea {n - 3}",
                    f"tea {n}",
                    "ADD" if n < 3 else "UPDATE",
                    created_at=START + timedelta(hours=n),
                    updated_at=START + timedelta(hours=n),
                    actor_id=f"a{n % 2}",
                    role="user",
                )

    path = tmp_path / "some.db"
    asyncio.run(fill(path))
    return str(path)


def numbers(*arguments: str, run: Run, db: str) -> list[int]:
    """Return the numbers of the changes that `query` prints."""
    result = run("query", "--db", db, "--json", *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    found: list[dict[str, Any]] = [json.loads(line) for line in result.stdout.splitlines()]
    return [int(record["new_memory"].split()[1]) for record in found]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], [*range(12)]),
        (["--limit", "3"], [0, 1, 2]),
        (["--newest", "--limit", "2"], [11, 10]),
        (["--limit", "0"], [*range(12)]),
        (["--memory", "m1"], [1, 4, 7, 10]),
        (["--memory", "m1", "--memory", "m2", "--actor", "a0"], [2, 4, 8, 10]),
        (["--event", "ADD"], [0, 1, 2]),
        (["--event", "add"], [0, 1, 2]),
        (["--until", "0d", "--since", "2026-01-01T10:00"], [10, 11]),
        (["--since", "5000w", "--limit", "0"], [*range(12)]),
        (["--role", "user", "--text", "a 1"], [1, 4, 10, 11]),
        (["--since", "2026-01-01T03:00", "--until", "2026-01-01T06:00+01:00"], [3, 4]),
    ],
)
def test_filters_print_the_matching_changes(
    arguments: list[str], expected: list[int], run: Run, db: str
) -> None:
    assert numbers(*arguments, run=run, db=db) == expected
    filters = [a for a in arguments if a != "--newest"]
    if "--limit" not in arguments:
        result = run("query", "--db", db, "--count", *filters)
        assert (result.returncode, result.stdout) == (0, f"{len(expected)}\n")


@pytest.mark.parametrize("order", [[], ["--newest"]])
@pytest.mark.parametrize("output", [[], ["--json"]])
@pytest.mark.parametrize(
    ("limit", "default", "shown", "says_so"),
    [
        ([], 12, 12, False),
        ([], 11, 11, True),
        ([], 1, 1, True),
        (["--limit", "3"], 11, 3, False),
        (["--limit", "0"], 11, 12, False),
    ],
)
def test_the_default_limit_says_that_there_is_more(
    limit: list[str],
    default: int,
    shown: int,
    says_so: bool,
    output: list[str],
    order: list[str],
    db: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(query_module, "LIMIT", default)
    result = CliRunner().invoke(app, ["query", "--db", db, *output, *order, *limit])
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == (shown if output else 2 * shown)
    message = f"async-history: there are more than these {default}; --limit 0 shows all\n"
    assert result.stderr == (message if says_so else "")


@pytest.mark.parametrize("columns", [None, "1000"])
@pytest.mark.parametrize(
    "arguments", [["query"], ["log", "m1"], ["at", "2027-01-01"], ["diff", "m1", "1", "2"]]
)
def test_output_to_a_pipe_has_no_layout(
    arguments: list[str], columns: str | None, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Laying out lines for a screen took most of the time."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    printed: list[object] = []
    monkeypatch.setattr(Console, "print", lambda *_, **__: printed.append(1))
    result = CliRunner().invoke(app, [*arguments, "--db", db], env={"COLUMNS": columns})
    assert (result.exit_code, printed) == (0, [])
    assert "tea" in result.stdout
    CliRunner().invoke(app, [*arguments, "--db", db], env={"COLUMNS": "20"})
    assert printed, "a line is too long"


def test_the_output_shows_memory_actor_and_change(run: Run, db: str) -> None:
    result = run("query", "--db", db, "--memory", "m1", "--limit", "2")
    assert result.stdout.splitlines() == [
        "m1  2026-01-01 01:00:00.000+00:00  ADD     a1 (user)",
        "  + tea 1",
        "m1  2026-01-01 04:00:00.000+00:00  UPDATE  a0 (user)",
        "  ~ tea [-1-]{+4+}",
    ]


def test_nothing_matches(run: Run, db: str) -> None:
    result = run("query", "--db", db, "--actor", "nobody")
    assert (result.returncode, result.stdout) == (1, "")
    assert "matches" in result.stderr
    result = run("query", "--db", db, "--actor", "nobody", "--count", "--json")
    assert (result.returncode, json.loads(result.stdout)) == (0, {"count": 0})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--since", "yesterday"], "--since: 'yesterday' is neither an age"),
        (["--event", "MERGE"], "event must be ADD, UPDATE or DELETE"),
        (["--text", ""], "text must not be empty"),
        (["--limit", "-1"], "Invalid value"),
    ],
)
def test_bad_arguments_are_refused(arguments: list[str], words: str, run: Run, db: str) -> None:
    result = run("query", "--db", db, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert words in result.stderr
