"""Locks on bytes of a file, set with and without the GIL."""

import errno
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from async_history.mem0._turns.byte_locks import (
    NONE,
    READ,
    WRITE,
    SetLock,
    is_locked,
    set_lock,
    setter_for,
)
from tests.support.patience import LONG_S

CAN_HOLD_GIL = sys.platform == "linux" and platform.machine() in ("aarch64", "x86_64")
pytestmark = pytest.mark.skipif(
    not CAN_HOLD_GIL, reason="C's fcntl is called on Linux and these processors only"
)
FAR = 2**62 + 2**61
"""A byte beyond those of a 32-bit offset."""


@pytest.fixture(params=[setter_for("tmpfs"), setter_for("nfs4")], ids=["with", "without"])
def set_(request: pytest.FixtureRequest) -> SetLock:
    setter: SetLock = request.param
    return setter


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Two descriptions of one file, as of two processes."""
    path = tmp_path / "turns"
    opened = tuple(os.open(path, os.O_RDWR | os.O_CREAT) for _ in "ab")
    yield opened[0], opened[1]
    for file in opened:
        os.close(file)


def test_the_gil_is_held_on_local_file_systems_only() -> None:
    local = ("ext4", "overlay", "tmpfs", "xfs")
    assert all(setter_for(name) is not set_lock for name in local)
    others = ("9p", "cifs", "fuse.sshfs", "nfs", "nfs4", None)
    assert all(setter_for(name) is set_lock for name in others)


@pytest.mark.parametrize("byte", [0, FAR])
def test_one_writes_or_several_read(set_: SetLock, files: tuple[int, int], byte: int) -> None:
    mine, others = files
    assert set_(mine, WRITE, byte)
    assert not set_(others, WRITE, byte)
    assert not set_(others, READ, byte)
    assert set_(others, WRITE, byte + 1)
    assert is_locked(others, byte)
    assert set_(mine, NONE, byte)
    assert not is_locked(others, byte)
    assert set_(mine, READ, byte)
    assert set_(others, READ, byte)


def test_the_two_exclude_each_other(files: tuple[int, int]) -> None:
    with_gil, without = setter_for("tmpfs"), set_lock
    mine, others = files
    assert with_gil(mine, WRITE, 5)
    assert not without(others, WRITE, 5)
    assert without(mine, NONE, 5)
    assert without(others, WRITE, 5)
    assert not with_gil(mine, WRITE, 5)


def test_other_errors_are_raised(set_: SetLock, tmp_path: Path) -> None:
    (tmp_path / "turns").touch()
    for_reading = os.open(tmp_path / "turns", os.O_RDONLY)
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            set_(for_reading, WRITE, 1)
        assert set_(for_reading, READ, 1)
    finally:
        os.close(for_reading)


@pytest.mark.subprocess
@pytest.mark.parametrize("file_system", ["tmpfs", "nfs4"])
def test_an_audit_hook_sees_each_call(file_system: str, tmp_path: Path) -> None:
    """In another process: a hook can't be removed."""
    program = f"""
import os, sys
from async_history.mem0._turns.byte_locks import WRITE, setter_for

file = os.open({str(tmp_path / "turns")!r}, os.O_RDWR | os.O_CREAT)
seen = []
sys.addaudithook(lambda event, given: event == "fcntl.fcntl" and seen.append(given[0]))
setter_for({file_system!r})(file, WRITE, 1)
assert seen == [file], seen
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, timeout=LONG_S
    )
    assert ran.returncode == 0, ran.stderr
