"""Locks on bytes of a file, set with and without the GIL."""

import errno
import os
import platform
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
    closed = os.open(tmp_path / "turns", os.O_RDWR | os.O_CREAT)
    os.close(closed)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        set_(closed, WRITE, 1)


def test_an_audit_hook_sees_each_call(set_: SetLock, files: tuple[int, int]) -> None:
    seen: list[int] = []
    is_listening = True

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if is_listening and event == "fcntl.fcntl" and arguments[0] == files[0]:
            seen.append(files[0])

    sys.addaudithook(hook)  # it can't be removed
    set_(files[0], WRITE, 1)
    is_listening = False
    assert seen == [files[0]]
