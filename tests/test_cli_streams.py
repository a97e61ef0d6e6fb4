"""The command where its streams end early, and as a module."""

import subprocess
import sys
from pathlib import Path

from async_history import __version__

COMMAND = f'"{sys.executable}" -m async_history'


def shell(script: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=100,
        env={"PYTHONPATH": str(Path(__file__).parent.parent), "PATH": "/usr/bin:/bin"},
    )


def test_as_a_module(tmp_path: Path) -> None:
    assert shell(f"{COMMAND} --version", tmp_path).stdout == f"async-history {__version__}\n"


def test_a_reader_that_has_enough_and_one_that_is_not_there(tmp_path: Path) -> None:
    line = '{"memory_id": "m", "event": "ADD", "new_memory": "tea"}'
    shell(f"yes '{line}' | head -3000 | {COMMAND} record", tmp_path)
    for output in ("", "--json"):
        done = shell(
            f"{COMMAND} query --limit 0 {output} | head -1 >/dev/null; echo ${{PIPESTATUS[0]}}",
            tmp_path,
        )
        assert (done.stdout, done.stderr) == ("141\n", "")
    done = shell(f"{COMMAND} query >&-", tmp_path)
    assert (done.returncode, done.stderr) == (1, "async-history: stdout: stdout is closed\n")


def test_a_copy_onto_itself_is_refused(tmp_path: Path) -> None:
    shell(f"""echo '{{"memory_id": "m", "event": "ADD"}}' | {COMMAND} record""", tmp_path)
    (tmp_path / "link.db").symlink_to("history.db")
    done = shell(f"{COMMAND} copy history.db link.db", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "the same history" in done.stderr
