"""Ctrl-C while a program of this package is still being imported."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.programs import environment_with
from tests.support.patience import LONG_S

pytestmark = [pytest.mark.subprocess, pytest.mark.once]

INTERRUPTED = """\
import signal, sys

class Interruption:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            print("importing", name, flush=True)
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interruption())
"""
SCRIPT = "import sys\nfrom async_history.cli import main\nsys.exit(main())\n"
STARTS = {
    "script": ["async-history"],
    "package": ["-m", "async_history"],
    "joined": ["-masync_history.cli"],
    "mem0": ["-m", "async_history.mem0"],
}
OF_EACH = ["async_history._check", "asyncio", "async_history.errors"]
OF_THE_COMMAND = ["async_history.cli.app", "typer", "rich.console"]


def start(folder: Path, interrupted_at: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run Python, and interrupt it when it begins to import a module."""
    (folder / "sitecustomize.py").write_text(INTERRUPTED.format(module=interrupted_at))
    (folder / "async-history").write_text(SCRIPT)
    environment = environment_with()
    environment["PYTHONPATH"] = f"{folder}:{environment['PYTHONPATH']}"
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LONG_S,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.parametrize(
    ("program", "module"),
    [(program, module) for program in STARTS for module in OF_EACH]
    + [(program, module) for program in ("script", "package") for module in OF_THE_COMMAND]
    + [("mem0", "mem0")],
)
def test_ctrl_c_while_a_program_is_imported(program: str, module: str, tmp_path: Path) -> None:
    done = start(tmp_path, module, *STARTS[program], "--version")
    assert (done.stdout, done.stderr) == (f"importing {module}\n", "")
    assert done.returncode == 128 + signal.SIGINT


@pytest.mark.parametrize("program", ["program.py", "async-history.py"])
def test_another_program_gets_its_keyboard_interrupt(program: str, tmp_path: Path) -> None:
    (tmp_path / program).write_text(
        "try:\n    import async_history\nexcept KeyboardInterrupt:\n    print('interrupted')\n"
    )
    done = start(tmp_path, "async_history.errors", program)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["interrupted"]), done.stderr


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    """A shell starts background jobs with SIGINT ignored."""
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "sys.argv[0] = 'async-history'; import async_history"
    )
    done = start(tmp_path, "async_history.errors", "-c", program)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.argv = ['-m', *'abcdef']; import async_history",
        "import sys; sys.argv = ['-m']; sys.orig_argv = []; import async_history",
        "import sys; from concurrent.futures import ThreadPoolExecutor as Pool; "
        "sys.argv = ['async-history']; "
        "Pool(1).submit(__import__, 'async_history').result()",
    ],
    ids=["other arguments", "no arguments", "thread"],
)
def test_no_program_is_too_odd_for_an_import(program: str, tmp_path: Path) -> None:
    done = start(tmp_path, "nothing", "-c", program)
    assert (done.returncode, done.stderr) == (0, "")
