"""Starting the command, ending it and answering its questions."""

import json
import os
import pty
import select
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.subprocesses.commands import COMMAND, Result
from tests.support.patience import LONG_S

REPOSITORY = Path(__file__).parents[2]


ENDS = [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")]
"""The signals that end a command early, and the word that it prints."""

Run = Callable[..., Result]
"""Run the command in a process of its own until it ends."""
Invoke = Callable[..., Any]
"""Run the command in the test's own process."""
Start = Callable[..., "subprocess.Popen[str]"]


def environment_with(**variables: str) -> dict[str, str]:
    """Return our own environment with these variables, in which this package is found."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "utf-8", **variables}


def lines_of(*records: dict[str, Any]) -> str:
    """Return records as JSON lines."""
    return "".join(json.dumps(record) + "\n" for record in records)


def lines(process: "subprocess.Popen[str]", count: int) -> list[str]:
    """Read the next lines that a program prints."""
    assert process.stdout is not None
    return [process.stdout.readline().rstrip("\n") for _ in range(count)]


def interrupted(
    process: "subprocess.Popen[str]", number: int = signal.SIGINT, word: str = "interrupted"
) -> tuple[str, str]:
    """Return what Ctrl-C leaves: the rest of stdout, and the cursor on stderr."""
    process.send_signal(number)
    out, err = process.communicate(timeout=LONG_S)
    assert process.returncode == 128 + number
    hint, last = err.splitlines()
    assert last == f"async-history: {word}"
    said, _, cursor = hint.rpartition(" ")
    assert said == "async-history: to continue from here: --after"
    return out, cursor


def run_in_terminal(folder: Path, answer: str, *arguments: str, columns: int = 80) -> Result:
    """Run the command in a terminal, and type an answer once it asks."""
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
            env=environment_with(COLUMNS=str(columns), TERM="xterm"),
        ) as process:
            os.close(theirs)
            shown, typed = b"", False
            while select.select([ours], [], [], LONG_S)[0]:
                try:
                    chunk = os.read(ours, 1 << 16)
                except OSError:  # Linux's error once no process has the other end open
                    break
                if not chunk:
                    break
                shown += chunk
                if b"[y/N]" in shown and not typed:
                    typed = True
                    os.write(ours, answer.encode())
            process.kill()  # has no effect on a process that has ended
        assert typed
        return Result(process.args, process.returncode, shown.decode(), "")
    finally:
        os.close(ours)
