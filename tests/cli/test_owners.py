"""Owners, metadata and causes on the command line: recorded, filtered by, shown."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from async_history import HistoryRecord, open_history
from tests.cli.programs import Invoke, Start, interrupted, lines

pytestmark = pytest.mark.once

ANN = {"user_id": "ann", "run_id": "r1"}
START = datetime(2026, 1, 1, tzinfo=UTC)
CHANGES: list[dict[str, Any]] = [
    {
        "event": "ADD",
        "new_memory": "likes tea",
        "owner": ANN,
        "context": {"score": 3, "tag": "é"},
        "cause": {"request_id": "q1", "why": "told\n\x1b"},
    },
    {"event": "UPDATE", "old_memory": "likes tea", "new_memory": "likes mate"},
    {
        "event": "UPDATE",
        "old_memory": "likes mate",
        "new_memory": "likes mate",
        "context": {"score": 4, "new": [1]},
        "cause": {"request_id": "q2"},
    },
]


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A history of one memory of ann's, one of ann's agent's, and one without an owner."""
    others: list[dict[str, Any]] = [
        {"memory_id": "n", "owner": {"user_id": "ann", "agent_id": "bot", "app_id": "shop"}},
        {"memory_id": "o", "cause": {"request_id": "q1"}},
    ]
    path = str(tmp_path / "history.db")

    async def fill() -> None:
        async with open_history(path) as history:
            for n, change in enumerate(
                [
                    *({"memory_id": "m", **change} for change in CHANGES),
                    *({**change, "event": "ADD", "new_memory": "x"} for change in others),
                ]
            ):
                at = START + timedelta(hours=n)
                await history.batch_add_history([{"created_at": at, "updated_at": at, **change}])

    asyncio.run(fill())
    return path


def records(url: str, **wanted: Any) -> list[HistoryRecord]:
    async def read() -> list[HistoryRecord]:
        async with open_history(url) as history:
            return [record async for record in history.query_history(**wanted)]

    return asyncio.run(read())


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--user", "ann"], "mmmn"),
        (["--user", "ann", "--run", "r1"], "mmm"),
        (["--agent", "bot", "--event", "ADD"], "n"),
        (["--app", "shop"], "n"),
        (["--cause", "request_id=q1"], "mo"),
        (["--cause", "request_id=q1", "--cause", "why=told\n\x1b"], "m"),
        (["--cause", "request_id=q1", "--user", "ann"], "m"),
        (["--memory", "m", "--cause", "request_id=q2"], "m"),
    ],
)
def test_filters_by_owner_and_cause(
    options: list[str], found: str, invoke: Invoke, url: str
) -> None:
    done = invoke("query", *options, "--json")
    assert "".join(json.loads(line)["memory_id"] for line in done.stdout.splitlines()) == found
    assert invoke("query", *options, "--count").stdout == f"{len(found)}\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--cause", "request_id"], "--cause takes KEY=TEXT, such as request_id=17"),
        (["--cause", "=x"], "--cause takes KEY=TEXT"),
        (["--cause", "a=1", "--cause", "a=2"], "'a' is given twice"),
        (["--user", ""], "user_id must not be empty"),
    ],
)
def test_bad_filters_are_refused(options: list[str], words: str, invoke: Invoke, url: str) -> None:
    for command in ("query", "tail"):
        done = invoke(command, *options)
        assert done.exit_code == 2
        assert words in done.stderr
        assert done.stderr.count("\n") == 1


def test_log_shows_owner_cause_and_metadata(invoke: Invoke, url: str) -> None:
    assert invoke("log", "m").stdout.splitlines() == [
        "m  3 changes in history.db",
        "of user_id=ann  run_id=r1",
        "",
        "v1  2026-01-01 00:00:00.000+00:00  ADD",
        "  cause request_id=q1  why=told␊␛",
        "  + likes tea",
        "  + metadata score: 3",
        '  + metadata tag: "é"',
        "",
        "v2  2026-01-01 01:00:00.000+00:00  UPDATE",
        "  ~ likes [-tea-]{+mate+}",
        "",
        "v3  2026-01-01 02:00:00.000+00:00  UPDATE",
        "  cause request_id=q2",
        "  … text unchanged",
        "  + metadata new: [1]",
        "  ~ metadata score: [-3-]{+4+}",
        '  - metadata tag: "é"',
    ]
    assert "of " not in invoke("log", "o").stdout


def test_record_takes_the_lines_of_log_query_and_at(invoke: Invoke, url: str) -> None:
    """`record` takes the JSON of `log`, `query` and `at`."""
    log = invoke("log", "m", "--json").stdout
    first = json.loads(log.splitlines()[0])
    assert {name: first[name] for name in ("owner", "context", "cause")} == {
        name: CHANGES[0][name] for name in ("owner", "context", "cause")
    }
    everything = invoke("query", "--json", "--limit", "0").stdout
    assert everything.startswith(log)
    assert invoke("at", "1", "m", "--json").stdout == log.splitlines(keepends=True)[0]
    assert invoke("diff", "m", "1", "3", "--json").exit_code == 0
    Path("lines").write_text(everything)
    again = invoke("record", "lines", "--db", "other.db")
    assert again.exit_code == 0, again.stderr
    assert [(one, one.owner) for one in records("other.db")] == [
        (one, one.owner) for one in records(url)
    ]


def test_bad_lines_are_refused_and_the_others_recorded(invoke: Invoke, url: str) -> None:
    given: list[dict[str, Any]] = [
        {"owner": {"user_id": "bob"}},
        {"owner": {"user": "ann"}},
        {"context": [1]},
        {"cause": {"n": 1}},
        {"owner": {"user_id": "ann"}, "context": {"n": 1}, "cause": {"n": "1"}},
    ]
    text = "".join(f"{json.dumps({'memory_id': 'm', 'event': 'UPDATE', **one})}\n" for one in given)
    Path("lines").write_text(text)
    done = invoke("record", "lines")
    assert (done.exit_code, done.stdout) == (1, "recorded 1 line, refused 4 in history.db\n")
    for number, words in enumerate(
        ("another user_id", "'user' is not a scope", "context", "cause")
    ):
        (line,) = (each for each in done.stderr.splitlines() if f"line {number + 1}: " in each)
        assert words in line
    (*_, last) = records(url, memory_id="m")
    assert (last.context, last.cause) == ({"n": 1}, {"n": "1"})


def test_memories_lists_those_of_an_owner(invoke: Invoke, url: str) -> None:
    shown = invoke("memories", "--user", "ann").stdout.splitlines()
    assert shown == [
        "n",
        "2026-01-01 03:00:00.000+00:00  ADD",
        "    x",
        "",
        "m",
        "2026-01-01 02:00:00.000+00:00  UPDATE",
        "    likes mate",
    ]
    (line,) = invoke("memories", "--user", "ann", "--run", "r1", "--json").stdout.splitlines()
    assert json.loads(line)["owner"] == ANN
    nobody = invoke("memories", "--user", "bob")
    assert (nobody.exit_code, nobody.stdout) == (1, "")
    assert "no memory" in nobody.stderr
    unnamed = invoke("memories")
    assert unnamed.exit_code == 2
    assert "name an owner" in unnamed.stderr


def test_restoring_shows_and_records_the_metadata(invoke: Invoke, url: str) -> None:
    dry = invoke("restore", "m", "--to", "1", "--dry-run", "--json")
    assert json.loads(dry.stdout)["context"] == CHANGES[0]["context"]
    shown = invoke("restore", "m", "--to", "1", "--dry-run").stdout
    assert "~ metadata score: [-4-]{+3+}" in shown
    done = invoke("restore", "m", "--to", "1", "--yes", "--json")
    assert json.loads(done.stdout)["context"] == CHANGES[0]["context"]
    assert json.loads(done.stdout)["owner"] == ANN


@pytest.mark.parametrize(
    ("scope", "name", "memories"),
    [("user", "ann", "mn"), ("agent", "bot", "n"), ("run", "r1", "m"), ("app", "shop", "n")],
)
def test_erase_forgets_an_owner(
    scope: str, name: str, memories: str, invoke: Invoke, url: str
) -> None:
    before = records(url)
    command = ("erase", f"--{scope}", name, "--reason", "asked", "--no-vacuum")
    assert invoke(*command, "--dry-run").stdout.startswith("history.db: would erase the texts of ")
    assert records(url) == before
    assert invoke(*command, "--yes").exit_code == 0
    assert invoke("memories", f"--{scope}", name).exit_code == 1
    for record in records(url):
        assert (record.new_memory is None) == (record.memory_id in memories)
    late = [
        {"memory_id": one, "event": "UPDATE", "new_memory": "late"} for one in (memories[0], "o")
    ]
    Path("lines").write_text("".join(f"{json.dumps(one)}\n" for one in late))
    recorded = invoke("record", "lines")
    assert (recorded.exit_code, recorded.stdout[:30]) == (1, "recorded 1 line, refused 1 in ")
    assert "line 1: " in recorded.stderr


def test_records_are_erased_by_id(invoke: Invoke, url: str) -> None:
    first, second = (record.id for record in records(url, memory_id="m")[:2])
    erased = invoke("erase", "--record", first, "--record", second, "--reason", "asked", "--yes")
    assert erased.exit_code == 0, erased.stderr
    assert [one.new_memory for one in records(url)] == [None, None, None, "x", "x"]
    both = invoke("erase", "--record", first, "--user", "ann", "--reason", "asked", "--yes")
    assert (both.exit_code, both.stdout) == (2, "")


@pytest.mark.subprocess
def test_a_tail_of_an_owner(url: str, start: Start) -> None:
    tail = start("tail", "--db", url, "--user", "ann", "--cause", "request_id=q2", "--json")
    (first,) = lines(tail, 1)
    assert json.loads(first)["context"] == CHANGES[2]["context"]

    async def change() -> None:
        async with open_history(url) as history:
            for memory_id, cause in (("m", "q1"), ("o", "q2"), ("n", "q2")):
                await history.add_history(
                    memory_id, None, "y", "UPDATE", cause={"request_id": cause}
                )

    asyncio.run(change())
    (second,) = lines(tail, 1)
    assert json.loads(second)["memory_id"] == "n"
    assert interrupted(tail)[0] == ""
