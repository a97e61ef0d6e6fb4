"""A process that is killed at any moment: acked records are there, and no call is half there."""

import json
import sys
from pathlib import Path

import pytest

from tests.subprocesses import processes
from tests.subprocesses.failing_io import compiler, run_failing

pytestmark = [
    pytest.mark.faults,
    pytest.mark.subprocess,
    pytest.mark.once,
    pytest.mark.skipif(sys.platform != "linux", reason="forks, and loads a library first"),
]

_TAKES_LONG = pytest.mark.timeout(1_200)
"""A bound for a machine with eight busy processes; it takes a minute or two on a quiet one."""


def kill(folder: Path, cycles: int, seed: int, timeout_s: float) -> dict[str, int]:
    """Run so many cycles of load and SIGKILL, each checked; return how many were killed when."""
    answer = processes.run("kills", folder, cycles, seed, timeout_s=timeout_s)
    counts: dict[str, int] = json.loads(answer)
    assert sum(counts[phase] for phase in counts if phase != "acked") == cycles
    return counts


@_TAKES_LONG
def test_killed_again_and_again_under_load(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Kills while opening, writing and closing: acked records, whole submissions, sound files."""
    cycles = int(request.config.getoption("--kills"))
    counts = kill(tmp_path, cycles, seed=20_261_120, timeout_s=1_100)
    assert counts["opening"] >= cycles / 25
    assert counts["writing"] >= cycles / 2.5
    assert counts["closing"] >= cycles / 25
    assert counts["acked"] >= cycles


@pytest.mark.nightly
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("seed", range(10))
def test_killed_five_thousand_times_under_load(seed: int, tmp_path: Path) -> None:
    kill(tmp_path, 500, seed, timeout_s=3_000)


@_TAKES_LONG
@pytest.mark.skipif(compiler() is None, reason="there is no C compiler")
def test_killed_at_every_write_from_the_first_opening_to_the_close(
    tmp_path: Path, stride: int
) -> None:
    counts = run_failing(tmp_path, "killed", stride, timeout_s=1_100)
    assert counts["opening"] >= 20 // stride, "while a new file was made"
    assert counts["wrote"] >= 3 // stride
    assert counts["closing"] >= 3 // stride
    assert counts["closed"] == 1, "the last one was not killed"


@_TAKES_LONG
@pytest.mark.skipif(compiler() is None, reason="there is no C compiler")
def test_killed_at_every_write_of_pruning_and_erasing_and_repeated(
    tmp_path: Path, stride: int
) -> None:
    counts = run_failing(tmp_path, "erasing", stride, timeout_s=1_100)
    assert counts["pruning"] >= 3 // stride
    assert counts["erasing"] >= 10 // stride
    assert counts["closing"] >= 1 // stride
    assert counts["closed"] == 1, "the last one was not killed"


@_TAKES_LONG
@pytest.mark.skipif(compiler() is None, reason="there is no C compiler")
@pytest.mark.parametrize(
    "what", ["encrypting", "decrypting", "rotating", "replacing", "forgetting"]
)
def test_killed_at_every_write_of_a_change_of_keys_and_repeated(
    what: str, tmp_path: Path, stride: int
) -> None:
    """Encrypting and decrypting in place, replacing master and data keys, erasing an owner."""
    counts = run_failing(tmp_path, what, stride, timeout_s=1_100)
    assert counts[what] >= 10 // stride
    assert counts["closed"] == 1, "the last one was not killed"


@_TAKES_LONG
@pytest.mark.skipif(compiler() is None, reason="there is no C compiler")
def test_killed_at_every_write_of_a_rollback_and_repeated(tmp_path: Path, stride: int) -> None:
    """Each memory is rolled back or not, and only once, however often the rollback is called."""
    counts = run_failing(tmp_path, "taking back", stride, timeout_s=1_100)
    assert counts["taking back"] >= 10 // stride
    assert counts["closed"] == 1, "the last one was not killed"
