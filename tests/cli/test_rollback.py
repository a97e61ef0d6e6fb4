"""`rollback` and `undo` on the command line: the plan, the question, the result."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from async_history import HistoryRecord, open_history
from tests.cli.programs import Invoke, environment_with, run_in_terminal
from tests.support.patience import LONG_S

pytestmark = pytest.mark.once

BEFORE, THEN, AFTER = (f"2026-11-20T{hour}:00:00+00:00" for hour in (10, 11, 12))
CHANGES: list[dict[str, Any]] = [
    {"memory_id": "same", "event": "ADD", "new_memory": "x", "created_at": BEFORE},
    {"memory_id": "kept", "event": "ADD", "new_memory": "tea", "created_at": BEFORE},
    {"memory_id": "gone", "event": "ADD", "new_memory": "tea", "created_at": BEFORE},
    {"memory_id": "kept", "event": "UPDATE", "new_memory": "mate", "updated_at": AFTER},
    {"memory_id": "gone", "event": "DELETE", "old_memory": "tea", "updated_at": AFTER},
    {"memory_id": "born\n\x1b", "event": "ADD", "new_memory": "y", "created_at": AFTER},
]
STRANGER = {"memory_id": "stranger", "event": "ADD", "new_memory": "z", "created_at": AFTER}
ERASED: list[dict[str, Any]] = [
    {"memory_id": "lost", "event": "ADD", "new_memory": "x", "created_at": BEFORE},
    {"memory_id": "lost", "event": "UPDATE", "new_memory": "y", "updated_at": AFTER},
]
ANN = ("--to", THEN, "--user", "ann")


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Four memories of ann's that a run has changed since, and one without an owner."""
    path = str(tmp_path / "history.db")

    async def fill() -> None:
        async with open_history(path) as history:
            for change in CHANGES:
                since = AFTER in change.values()
                cause = {"run_id": "r1", "step": "2"} if since else None
                await history.batch_add_history(
                    [{**change, "owner": {"user_id": "ann"}, "cause": cause}]
                )
            await history.batch_add_history([STRANGER])

    asyncio.run(fill())
    return path


def record(url: str, *changes: dict[str, Any]) -> None:
    async def write() -> None:
        async with open_history(url) as history:
            await history.batch_add_history(list(changes))

    asyncio.run(write())


def records(url: str, **wanted: Any) -> list[HistoryRecord]:
    async def read() -> list[HistoryRecord]:
        async with open_history(url, create=False) as history:
            return [record async for record in history.query_history(**wanted)]

    return asyncio.run(read())


def texts(url: str) -> dict[str, str | None]:
    """Return the latest text of each memory."""
    return {record.memory_id: record.new_memory for record in records(url)}


def erase_record(url: str) -> None:
    """Give ann a memory whose first text was erased."""
    record(url, *({**change, "owner": {"user_id": "ann"}} for change in ERASED))
    (first, _) = records(url, memory_id="lost")

    async def erase() -> None:
        async with open_history(url) as history:
            await history.erase(record_ids=[first.id], reason="asked", vacuum=False)

    asyncio.run(erase())


PLAN = [
    "delete    born␊␛",
    "restore   gone",
    "restore   kept",
    "nothing   same",
]


@pytest.mark.parametrize(
    "command", [("rollback", *ANN), ("undo", "--run", "r1"), ("undo", "--cause", "step=2")]
)
def test_the_plan_is_shown_and_carried_out(
    command: tuple[str, ...], invoke: Invoke, url: str
) -> None:
    plan = PLAN if command[0] == "rollback" else PLAN[:3]
    before = texts(url)
    for more in ((), ("--yes",)):
        dry = invoke(*command, "--dry-run", *more)
        assert (dry.exit_code, dry.stderr) == (0, "")
        *shown, outcome = dry.stdout.splitlines()
        assert shown == plan
        assert outcome.startswith("history.db: would have restored 2 memories, deleted 1, left ")
    assert texts(url) == before
    done = invoke(*command, "--yes", "--actor", "op", "--role", "admin", "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["done"] is True
    assert (report["restored"], report["deleted"], report["conflicts"]) == (2, 1, 0)
    assert [f"{step['action']:8}  {step['memory_id']}" for step in report["steps"]] == [
        line.replace("␊␛", "\n\x1b") for line in plan
    ]
    after = {"same": "x", "kept": "tea", "gone": "tea", "born\n\x1b": None, "stranger": "z"}
    assert texts(url) == after
    written = records(url, cause={command[0]: report["id"]})
    assert {(one.actor_id, one.role) for one in written} == {("op", "admin")}
    again = invoke(*command, "--yes")
    assert again.exit_code == 0
    assert {line.split()[0] for line in again.stdout.splitlines()[:-1]} == {"nothing"}
    assert len(records(url)) == len(CHANGES) + 1 + len(written)


def test_conflicts_are_listed_and_set_the_exit_status(invoke: Invoke, url: str) -> None:
    erase_record(url)
    record(
        url, {"memory_id": "kept", "event": "UPDATE", "new_memory": "rum", "cause": {"run_id": "2"}}
    )
    undone = invoke("undo", "--run", "r1", "--dry-run")
    assert undone.exit_code == 1
    (line,) = (one for one in undone.stdout.splitlines() if one.startswith("conflict"))
    assert line.startswith("conflict  kept  ")
    assert line.endswith(" changed it afterwards")
    for how in ("--dry-run", "--yes"):
        done = invoke("rollback", *ANN, how)
        assert done.exit_code == 1
        (line,) = (one for one in done.stdout.splitlines() if one.startswith("conflict"))
        assert line.startswith("conflict  lost  ")
        assert "it was erased" in line
    assert (texts(url)["kept"], texts(url)["lost"]) == ("tea", "y")
    assert json.loads(invoke("rollback", *ANN, "--yes", "--json").stdout)["conflicts"] == 1
    only = invoke("rollback", "--to", THEN, "--memory", "same", "--memory", "kept", "--dry-run")
    assert (only.exit_code, only.stdout.count("\n")) == (0, 3)


@pytest.mark.parametrize("how", ["--dry-run", "--yes"])
def test_an_empty_plan_and_a_missing_history(how: str, invoke: Invoke, url: str) -> None:
    for command in (
        ("rollback", "--to", THEN, "--user", "bob"),
        ("undo", "--run", "r2"),
        ("undo", "--cause", "step=3"),
    ):
        done = invoke(*command, how)
        assert (done.exit_code, done.stdout.count("\n")) == (1, 1)
        assert "no memory of it in history.db" in done.stderr
        missing = invoke(*command, how, "--db", "nowhere.db")
        assert (missing.exit_code, missing.stdout) == (1, "")
        assert not Path("nowhere.db").exists()


def test_bad_arguments_are_refused(invoke: Invoke, url: str) -> None:
    before = texts(url)
    for arguments, said in (
        (("rollback", "--to", "2", "--user", "ann"), "is not a time such as"),
        (("rollback", "--to", "90d", "--user", "ann"), "is not a time such as"),
        (("rollback", "--to", THEN), "name whose memories"),
        (("rollback", *ANN, "--memory", "m"), "not both"),
        (("undo",), "run_id"),
        (("undo", "--cause", "step"), "--cause takes KEY=TEXT"),
    ):
        done = invoke(*arguments, "--yes")
        assert (done.exit_code, done.stdout) == (2, "")
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
    for command in (("rollback", *ANN), ("undo", "--run", "r1")):
        unasked = invoke(*command)
        assert (unasked.exit_code, unasked.stdout) == (2, "")
        assert "give --yes" in unasked.stderr
    assert texts(url) == before


@pytest.mark.subprocess
@pytest.mark.parametrize("answer", ["n", "y"])
def test_in_a_terminal_it_shows_the_plan_and_asks(answer: str, url: str, tmp_path: Path) -> None:
    before = texts(url)
    done = run_in_terminal(tmp_path, f"{answer}\n", "rollback", *ANN)
    plan, result = done.stdout.split("[y/N]")
    assert "kept" in plan
    assert "would have restored 2 memories" in plan
    assert "Change 3 memories?" in plan
    if answer == "y":
        assert done.returncode == 0
        assert "history.db: restored 2 memories" in result
        assert texts(url)["kept"] == "tea"
    else:
        assert done.returncode == 1
        assert "nothing was taken back" in result
        assert texts(url) == before


INTERRUPTED = """
import signal
from async_history import HistoryManager
from async_history.cli import main

real = HistoryManager.rollback

async def rollback(*arguments, on_progress, **options):
    def note(done, total):
        on_progress(done, total)
        signal.raise_signal(signal.SIGINT)
    return await real(*arguments, on_progress=note, **options)

HistoryManager.rollback = rollback
main()
"""


@pytest.mark.subprocess
def test_ctrl_c_says_what_is_done_and_the_command_can_be_repeated(
    invoke: Invoke, url: str, tmp_path: Path
) -> None:
    born = [{**STRANGER, "memory_id": f"b{n}", "owner": {"user_id": "bob"}} for n in range(600)]
    record(url, *born)
    command = ("rollback", "--to", THEN, "--user", "bob", "--yes")
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *command],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment_with(),
        timeout=LONG_S,
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert "interrupted: at least 256 of 600 memories are done" in done.stderr
    assert "the same command continues" in done.stderr
    assert done.stderr.count("\n") == 1
    deleted = len(records(url, event="DELETE")) - 1
    assert 256 <= deleted < len(born)
    on = json.loads(invoke(*command, "--json").stdout)
    assert (on["unchanged"], on["deleted"]) == (deleted, len(born) - deleted)
    assert len(records(url, event="DELETE")) == len(born) + 1
