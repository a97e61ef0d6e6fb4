"""Starting programs and forked children, and ending every one of them."""

import os
import select
import signal
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.support.patience import LONG_S

ROOT = Path(__file__).parents[2]
# From CPython 3.15 on, a program can't fork if this warning is an error, and others only show it.
_PYTHON = (sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning")


def command(name: str, *arguments: object) -> list[str]:
    """Return the command line of one of the programs in this folder."""
    return [*_PYTHON, "-m", f"tests.subprocesses.{name}", *map(str, arguments)]


def run(
    name: str,
    *arguments: object,
    before: tuple[str, ...] = (),
    env: Mapping[str, str] | None = None,
    timeout_s: float = LONG_S,
) -> str:
    """Run a program to its end and return its output, which the error has if it fails."""
    done = subprocess.run(
        [*before, *command(name, *arguments)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def run_source(source: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run Python source in an interpreter of its own until it ends, with warnings as errors."""
    return subprocess.run(
        [*_PYTHON, "-c", textwrap.dedent(source), *arguments],
        capture_output=True,
        text=True,
        timeout=LONG_S,
        cwd=ROOT,
    )


@contextmanager
def started(name: str, *arguments: object) -> "Iterator[subprocess.Popen[str]]":
    """Start a program, wait for its first line ("ready"), and let it run during the block.

    At the end its standard input is closed, which tells it to finish. It must then exit with 0.
    """
    program = subprocess.Popen(
        command(name, *arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        yield program
        assert finish(program) == 0
    finally:
        program.kill()  # has no effect on a program that has ended
        program.wait()
        for pipe in (program.stdin, program.stdout):
            if pipe is not None:
                pipe.close()


def finish(program: "subprocess.Popen[str]") -> int:
    """Tell a started program to finish, and wait until it has."""
    if program.stdin is not None and not program.stdin.closed:
        program.stdin.close()
    return program.wait(LONG_S)


def forked(child: Callable[[int], None]) -> tuple[int, int]:
    """Run something in a forked child that reports into a pipe.

    Returns the child's id and the pipe's reading end. Only for programs without threads.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    status = 1
    try:
        os.close(reading)
        child(writing)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def ending(pid: int) -> int:
    """Wait for a child; return its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def read_some(pipe: int, timeout_s: float) -> bytes | None:
    """Return a child's next report, b"" at its end, None after the time limit."""
    ready, _, _ = select.select([pipe], [], [], timeout_s)
    return os.read(pipe, 1 << 16) if ready else None


def read_to_the_end(pid: int, pipe: int) -> tuple[bytes, int]:
    """Return the rest of a child's report, and how it ended. A child that is stuck is killed."""
    report = b""
    while chunk := read_some(pipe, LONG_S):
        report += chunk
    if chunk is None:
        os.kill(pid, signal.SIGKILL)
    os.close(pipe)
    return report, ending(pid)
