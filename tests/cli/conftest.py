"""The command, in a process of its own or in the test's."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from async_history.cli.app import app
from tests.cli.programs import REPOSITORY, Invoke, Run, Start
from tests.subprocesses.commands import COMMAND, Result, run_command

_UNSET = ("ASYNC_HISTORY_URL", "MEM0_DIR", "COLUMNS", "NO_COLOR", "FORCE_COLOR")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment with no settings and an own home folder."""
    kept = {name: value for name, value in os.environ.items() if name not in _UNSET}
    return kept | {
        "HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONIOENCODING": "utf-8",
        "PYTHONWARNINGS": "error",
    }


@pytest.fixture
def run(tmp_path: Path, environment: dict[str, str]) -> Run:
    """Runs the command in `tmp_path` until it ends."""

    def run_it(*arguments: str, stdin: str | bytes = "", **variables: str) -> Result:
        content = stdin.encode() if isinstance(stdin, str) else stdin
        return run_command(list(arguments), tmp_path, environment | variables, content)

    return run_it


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Runs the command in `tmp_path` and the test's own process, with nothing set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in _UNSET:
        monkeypatch.delenv(name, raising=False)

    def invoke_it(*arguments: str, **options: Any) -> Any:
        result = CliRunner().invoke(app, arguments, **options)
        assert isinstance(result.exception, SystemExit | None), result.exception
        return result

    return invoke_it


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str]) -> Iterator[Start]:
    """Starts the command in `tmp_path`; it is killed with the test."""
    with contextlib.ExitStack() as stack:

        def start_it(*arguments: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [*COMMAND, *arguments],
                cwd=tmp_path,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start_it
