"""mem0's pipeline on each of its version lines: plain mem0 and ours give the same results."""

import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import pytest

pytestmark = [pytest.mark.subprocess, pytest.mark.once]

ROOT = Path(__file__).parents[2]

TRIED = ("1.0.0", "2.0.6", version("mem0ai"))
"""In CI, besides 1.0.11 (all of test_mem0): the first version, and the last whose reset differs."""
OTHERS = (
    *("1.0.1", "1.0.2", "1.0.3", "1.0.4", "1.0.5", "1.0.6", "1.0.7", "1.0.8", "1.0.9", "1.0.10"),
    *("1.0.11", "2.0.0", "2.0.1", "2.0.2", "2.0.3", "2.0.4", "2.0.5", "2.0.7", "2.0.8", "2.0.10"),
    *("2.0.11", "2.0.12", "2.0.13", "2.0.14", "2.0.15", "2.0.16", "2.0.17", "2.0.18", "2.0.19"),
    *("2.0.20", "2.1.0", "2.2.0", "2.2.1"),
)


@pytest.mark.parametrize(
    "number", [*TRIED, *(pytest.param(each, marks=pytest.mark.nightly) for each in OTHERS)]
)
def test_plain_mem0_and_ours_give_the_same_results(
    number: str, tmp_path: Path, certificate: Path
) -> None:
    done = run(
        [sys.executable, "-m", "tests.subprocesses.mem0_pipeline"],
        {
            "PYTHONPATH": os.pathsep.join([str(mem0_of(number, tmp_path / "mem0")), str(ROOT)]),
            "MEM0_DIR": str(tmp_path),
            "SSL_CERT_FILE": str(certificate),
        },
    )
    assert done.stdout.startswith(f"mem0ai {number} "), done.stderr
    assert done.returncode == 0, done.stdout + done.stderr


def mem0_of(number: str, folder: Path) -> Path:
    """Return a folder with that mem0 alone: it needs the packages of the installed one."""
    if number == version("mem0ai"):
        return ROOT
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--no-deps", "--no-compile"]  # most of it is never imported
    done = run([*pip, "--target", str(folder), f"mem0ai=={number}"], {})
    if done.returncode and "ASYNC_HISTORY_CI" not in os.environ:
        pytest.skip(f"mem0ai {number} is not to be had here: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr
    return folder


def run(command: list[str], more: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **more}
    )
