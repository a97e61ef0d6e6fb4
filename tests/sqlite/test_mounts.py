"""Files that are mounted alone, read-only, or another user's; and what is left next to them."""

import asyncio
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from async_history import open_history
from async_history._sqlite.connecting.journal import location_of, location_on
from async_history._sqlite.connecting.mounts import Mount, mount_in
from tests.subprocesses.mounts import in_own_mounts, needs_mounts

pytestmark = pytest.mark.once

STATES = ("closed", "rollback", "killed", "killed, no index")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can reach: pytest's own are closed to them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@needs_mounts
@pytest.mark.parametrize(
    "way", ["empty", "filled", "link", "folder link", "folder bound", "relative"]
)
def test_a_file_that_is_mounted_alone_keeps_acknowledged_records(way: str, tmp_path: Path) -> None:
    in_own_mounts("alone", tmp_path, way)


@needs_mounts
def test_a_file_mounted_alone_is_refused_while_its_log_is_elsewhere(tmp_path: Path) -> None:
    in_own_mounts("taken", tmp_path)


@needs_mounts
@pytest.mark.parametrize("state", STATES)
def test_reading_as_another_user_leaves_nothing(state: str, open_folder: Path) -> None:
    in_own_mounts("looks", open_folder, state)


@needs_mounts
@pytest.mark.parametrize("state", STATES)
def test_a_file_on_a_read_only_mount(state: str, open_folder: Path) -> None:
    in_own_mounts("read_only", open_folder, state)


@needs_mounts
def test_batches_need_no_folder_for_temporary_files(tmp_path: Path) -> None:
    in_own_mounts("no_temporary_folder", tmp_path)


TABLE = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 27 0:30 / /data rw - nfs4 server:/data rw
31 27 0:31 / /data\040and\011more rw master:2 - xfs /dev/b rw
32 30 0:30 /x/history.db /data/history.db rw - nfs4 server:/data rw
33 27 0:40 / /twice rw - tmpfs none rw
34 33 0:41 / /twice rw - btrfs none rw
"""
ODD = "35 27 0:42 / /odd\x1e\u2028name rw - tmpfs none rw\n"


@pytest.mark.parametrize(
    ("path", "point", "kind"),
    [
        ("/a/history.db", "/", "ext4"),
        ("/data/other.db", "/data", "nfs4"),
        ("/database/x.db", "/", "ext4"),
        ("/data/history.db", "/data/history.db", "nfs4"),
        ("/data and\tmore/x.db", "/data and\tmore", "xfs"),
        ("/twice/x.db", "/twice", "btrfs"),
        ("/odd\x1e\u2028name/x.db", "/odd\x1e\u2028name", "tmpfs"),
    ],
)
def test_the_mount_of_a_file(path: str, point: str, kind: str) -> None:
    assert mount_in(TABLE + ODD, Path(path)) == Mount(Path(point), kind)


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "ceph", "9p"])
def test_a_network_file_system_is_warned_of_only_with_a_log(kind: str) -> None:
    file = Path("/data/history.db")
    (warning,) = location_on(Mount(Path("/data"), kind), file, file, "wal").warnings
    assert (warning.code, warning.severity) == ("network-file-system", "warning")
    assert kind in warning
    assert not location_on(Mount(Path("/data"), kind), file, file, "delete").warnings


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "overlay", "tmpfs", "zfs"])
def test_a_local_file_system_is_not_warned_of(kind: str) -> None:
    file = Path("/data/history.db")
    place = location_on(Mount(Path("/data"), kind), file, file, "wal")
    assert (place.journal, place.warnings) == ("wal", ())


async def test_a_file_with_several_names_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    for names in (1, 2, 3):
        async with open_history(path) as history:
            warnings = [one for one in (await history.stats()).warnings if "names" in one.code]
        assert [(one.code, one.severity) for one in warnings] == [
            ("several-names", "critical") for _ in range(names > 1)
        ]
        assert all(f"has {names} names" in one for one in warnings)
        (tmp_path / f"{names}.db").hardlink_to(path)
    folder = await asyncio.to_thread(location_of, tmp_path, "wal")
    assert not folder.warnings  # each folder has several names


def test_this_machines_mounts_can_be_read() -> None:
    if not os.path.exists("/proc/self/mountinfo"):
        pytest.skip("only Linux does")
    table = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    assert mount_in(table, Path("/proc/self/mountinfo")) == Mount(Path("/proc"), "proc")
