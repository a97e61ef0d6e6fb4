"""The command when its streams end early, and as a module."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from async_history import __version__, open_history
from async_history.cli.app import app
from tests.cli.programs import Run
from tests.support.patience import LONG_S

pytestmark = [pytest.mark.subprocess, pytest.mark.once]


COMMAND = f'"{sys.executable}" -m async_history'
ADDED: dict[str, Any] = {"memory_id": "m", "event": "ADD", "new_memory": "tea"}


def fill(folder: Path, count: int = 1) -> None:
    """Make the history that the command opens in a folder."""

    async def filled() -> None:
        async with open_history(folder / "history.db") as history:
            await history.batch_add_history([ADDED] * count)

    asyncio.run(filled())


def shell(script: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=LONG_S,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"},
    )


def test_the_command_runs_as_a_module(tmp_path: Path) -> None:
    assert shell(f"{COMMAND} --version", tmp_path).stdout == f"async-history {__version__}\n"


def test_a_reader_that_leaves_and_a_closed_output(tmp_path: Path) -> None:
    fill(tmp_path, 3_000)
    for reading in ("query --limit 0", "query --limit 0 --json", "log m", "at 2999-01-01 --json"):
        reader = "head -1 >/dev/null; echo ${PIPESTATUS[0]}"
        done = shell(f"{COMMAND} {reading} | {reader}", tmp_path)
        assert (done.stdout, done.stderr) == ("0\n", ""), reading
    done = shell(f"{COMMAND} query >&-", tmp_path)
    assert (done.returncode, done.stderr) == (1, "async-history: stdout: stdout is closed\n")


def test_zero_columns_count_as_unknown(tmp_path: Path) -> None:
    fill(tmp_path)
    for reading in ("query", "log m", "at 2999-01-01"):
        wide = shell(f"{COMMAND} {reading}", tmp_path).stdout
        assert shell(f"COLUMNS=0 {COMMAND} {reading}", tmp_path).stdout == wide != "", reading


def test_a_change_whose_report_is_not_read_ends_with_status_141(tmp_path: Path) -> None:
    """The pipe has no reader before the command begins."""
    fill(tmp_path)
    program = (
        "import os, subprocess, sys; r, w = os.pipe(); os.close(r); "
        "print(subprocess.call([sys.executable, '-m', 'async_history', *sys.argv[1:]], stdout=w))"
    )
    for arguments, status in (
        ("query", 0),
        ("stats", 0),
        ("prune --older-than 1d --dry-run", 141),
        ("erase --memory m --reason asked --yes", 141),
    ):
        done = shell(f'"{sys.executable}" -c "{program}" {arguments}', tmp_path)
        assert (done.stdout, done.stderr) == (f"{status}\n", ""), arguments


def test_closed_or_full_stdin_and_stderr(tmp_path: Path) -> None:
    """The exit status is the same as with open streams. A closed stdin is not read."""
    fill(tmp_path, 101)
    shell(f"""echo '{{"memory_id":"m","event":"DELETE"}}' | {COMMAND} record""", tmp_path)
    is_closed = "async-history: stdin: stdin is closed\n"
    not_asked = "async-history: stdin is closed, so nothing was asked or changed: give --yes\n"
    for arguments, status, said in (
        ("query 2>/dev/full", 0, ""),  # stderr says that there are more
        ("query 2>&-", 0, ""),
        ("undo --run r <&- 2>&-", 2, ""),
        ("record <&-", 1, is_closed),
        ("copy - new.db <&-", 1, is_closed),
        ("restore m --to 1 <&-", 2, not_asked),
    ):
        done = shell(f"{COMMAND} {arguments}", tmp_path)
        assert (done.returncode, done.stderr) == (status, said), arguments
    assert not (tmp_path / "new.db").exists()


@pytest.mark.parametrize("asked", ["-h", "--help", "query -h", "erase --help"])
def test_help(asked: str, run: Run) -> None:
    done = run(*asked.split())
    assert done.returncode == 0
    assert "Usage" in done.stdout


@pytest.mark.parametrize("asked", ["--help", "--version", "erase -h"])
def test_help_into_a_closed_output(asked: str, tmp_path: Path) -> None:
    for stderr, said in (("", "async-history: stdout: No space left on device\n"), ("2>&-", "")):
        done = shell(f"{COMMAND} {asked} >/dev/full {stderr}", tmp_path)
        assert (done.returncode, done.stderr) == (1, said)


def test_completion(tmp_path: Path) -> None:
    asked = "COMP_WORDS='async-history er' COMP_CWORD=1"
    done = shell(f"{asked} _ASYNC_HISTORY_COMPLETE=complete_bash {COMMAND}", tmp_path)
    assert done.stdout.split() == ["erase", "erasures"]
    script = shell(f"_ASYNC_HISTORY_COMPLETE=source_bash {COMMAND}", tmp_path).stdout
    assert "complete -o default" in script


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("history.db", "history.db"),
        ("history.db", "link.db"),
        ("hard.db", "history.db"),
        ("sqlite:///history.db", "./history.db"),
        ("postgresql://u@h/d", "postgres://u@h/d"),
        ("postgresql://u@h/d?schema=async_history", "postgresql+asyncpg://v@h/d"),
    ],
)
def test_a_copy_onto_itself_is_refused(source: str, target: str, tmp_path: Path, run: Run) -> None:
    """By any name of either."""
    fill(tmp_path)
    (tmp_path / "link.db").symlink_to("history.db")
    (tmp_path / "hard.db").hardlink_to(tmp_path / "history.db")
    done = run("copy", source, target)
    assert (done.returncode, done.stdout) == (2, "")
    assert "the same history" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["query"],
        ["stats"],
        ["record", "-"],
        ["erase", "--user", "ann", "--reason", "asked", "--yes"],
        ["prune", "--older-than", "1d", "--yes"],
    ],
    ids=lambda command: command[0],
)
def test_an_empty_url_is_not_the_default_one(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell's variable that is not set gives one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASYNC_HISTORY_URL", "")
    line = '{"memory_id": "m", "event": "ADD", "owner": {"user_id": "ann"}}'
    assert CliRunner().invoke(app, ["record"], input=line).exit_code == 0
    before = Path("history.db").read_bytes()
    refused = CliRunner().invoke(app, [*command, "--db", ""], input=line)
    assert refused.exit_code == 2
    assert "not empty" in refused.stderr
    assert Path("history.db").read_bytes() == before
