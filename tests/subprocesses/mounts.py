"""Files in separate mounts, and files that other users read. For root only.

    python -m tests.subprocesses.mounts (alone | taken | looks | …) FOLDER [...]

Run by `in_own_mounts`, which hides the mounts from other processes. A failed assertion ends it.
"""

import asyncio
import concurrent.futures.thread  # noqa: F401 - a later import would fail for other users
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

# Imported before the process becomes another user, who could not read the modules.
import async_history._core.writing.writer
import async_history._null
import async_history._sqlite.manager  # noqa: F401
from async_history import (
    HistoryError,
    StorageReadOnly,
    check_history,
    copy_history,
    open_history,
)
from async_history.sqlite import SQLiteHistoryManager, adopt
from tests.subprocesses import processes

OWNER: Final = 1
OTHER: Final = 65534
RECORDS: Final = 20

BEFORE: Final = ("unshare", "-m")
MAY_MOUNT: Final = bool(shutil.which("unshare")) and not subprocess.call([*BEFORE, "true"])
needs_mounts = pytest.mark.skipif(
    not MAY_MOUNT and "ASYNC_HISTORY_CI" not in os.environ, reason="may not mount, or be another"
)
"""Mark the tests that run this program. CI can do both; a skip there would hide them."""

Look = Callable[[Path, Path], Coroutine[Any, Any, int]]


def in_own_mounts(*arguments: object) -> None:
    """Run this program in its own mount namespace."""
    processes.run("mounts", *arguments, before=BEFORE)


@contextmanager
def mounted(*arguments: str | Path) -> Iterator[None]:
    """Mount something with these arguments of `mount`; the last is the place."""
    subprocess.run(["mount", *arguments], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-R", arguments[-1]], check=True)


def in_child(child: Callable[[], object], uid: int = 0) -> str:
    """Return a function's result, or its error's name, from a child that runs as another user."""

    def live(pipe: int) -> None:
        if uid:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        os.umask(0o022)
        try:
            said = str(child())
        except HistoryError as error:
            said = f"{type(error).__name__}: {error}"
        os.write(pipe, said.encode())

    said, status = processes.read_to_the_end(*processes.forked(live))
    assert status == 0
    return said.decode()


async def write(path: Path) -> str:
    """Add a record."""
    async with open_history(path, lock_timeout_s=0.3) as history:
        await history.add_history("m", None, "x", "ADD")
    return "written"


async def repair(path: Path) -> str:
    """Rebuild the index."""
    await check_history(str(path), repair=True)
    return "repaired"


def content(path: Path) -> int:
    """Return how many records are in a sound file."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        (count,) = connection.execute("SELECT count(*) FROM history").fetchone()
    return int(count)


def alone(folder: Path, way: str) -> None:
    """A container in which only the file is mounted is killed, and removed with its folder."""
    host, layer = folder / "host", folder / "layer"
    for each in (host, layer):
        each.mkdir()
    file = host / "history.db"
    if way != "empty":
        in_child(lambda: asyncio.run(write(file)))
    else:
        file.touch()
    before = content(file) if way != "empty" else 0

    async def live(path: Path, pipe: int) -> None:
        history = await open_history(path)
        for number in range(RECORDS):
            await history.add_history("m", None, str(number), "UPDATE")
        warnings = [
            f"{warning.code}:{warning.severity}" for warning in (await history.stats()).warnings
        ]
        os.write(pipe, f"{[one for one in warnings if 'mounted' in one]}".encode())
        os.kill(os.getpid(), signal.SIGKILL)

    with mounted("-t", "tmpfs", "none", layer):
        inside = layer / "in it ü" / "history.db"
        inside.parent.mkdir()
        inside.touch()
        with mounted("--bind", file, inside):
            path = inside
            if way == "link":
                path = layer / "link.db"
                path.symlink_to(inside)
            elif way == "folder link":
                (layer / "folder").symlink_to(inside.parent)
                path = layer / "folder" / "history.db"
            elif way == "folder bound":
                (layer / "bound").mkdir()
                subprocess.run(["mount", "--rbind", inside.parent, layer / "bound"], check=True)
                path = layer / "bound" / "history.db"
            elif way == "relative":
                os.chdir(inside.parent)
                path = Path("history.db")
            pid, pipe = processes.forked(lambda out: asyncio.run(live(path, out)))
            report, status = processes.read_to_the_end(pid, pipe)
            os.chdir(folder)
            assert status == -signal.SIGKILL
            assert report == b"['file-mounted-alone:critical']"
            if way == "folder bound":
                subprocess.run(["umount", "-R", layer / "bound"], check=True)
    assert content(file) == before + RECORDS


def taken(folder: Path) -> None:
    """The file that is mounted alone is also open through its folder, with a log out of reach."""
    host, layer = folder / "host", folder / "layer"
    for each in (host, layer):
        each.mkdir()
    file, inside = host / "history.db", layer / "history.db"
    inside.touch()
    in_child(lambda: asyncio.run(write(file)))
    with mounted("--bind", file, inside):
        with processes.started("same_file", "hold", file, "IMMEDIATE"):
            said = in_child(lambda: asyncio.run(write(inside)))
            assert said.startswith("StorageLocked: "), said
            assert "journal='delete'" in said
        assert in_child(lambda: asyncio.run(write(inside))) == "written"
    assert content(file) == 2


async def _read(path: Path, _: Path) -> int:
    async with open_history(path, create=False, migrate=False) as history:
        assert [one.memory_id async for one in history.query_history()]
        return len(await history.get_history("m"))


async def _copy(path: Path, elsewhere: Path) -> int:
    async with (
        open_history(path, migrate=False) as source,
        open_history(elsewhere / "copy.db") as target,
    ):
        return (await copy_history(source, target)).records


async def _back_up(path: Path, elsewhere: Path) -> int:
    async with SQLiteHistoryManager(path, migrate=False) as history:
        await history.backup(elsewhere / "backup.db")
    return await _read(elsewhere / "backup.db", elsewhere)


async def _dry_run(path: Path, elsewhere: Path) -> int:
    await asyncio.to_thread(adopt, path, dry_run=True)
    return await _read(path, elsewhere)


LOOKS: Final[tuple[Look, ...]] = (_read, _copy, _back_up, _dry_run)


def listing(folder: Path) -> list[tuple[object, ...]]:
    """Return the owners, sizes and modes of the files in a folder."""
    return sorted(
        (one.name, one.stat().st_uid, one.stat().st_size, one.stat().st_mode)
        for one in folder.iterdir()
        if one.suffix != ".db-shm"
        or one.stat().st_uid != OWNER  # read to the end by a user that may
    )


def make(path: Path, state: str) -> int:
    """Let the owner make a file in one of the states; return how many records it has."""

    def fill() -> None:
        asyncio.run(write(path))
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute(
                f"PRAGMA journal_mode = {'delete' if state == 'rollback' else 'wal'}"
            )
        if state in ("killed", "killed, no index"):
            connection = sqlite3.connect(path, isolation_level=None)
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            connection.execute(
                "INSERT INTO history (id, memory_id, event) VALUES ('late', 'm', 'UPDATE')"
            )
            os._exit(0)  # the log stays

    def live(_: int) -> None:
        os.setresgid(OWNER, OWNER, OWNER)
        os.setresuid(OWNER, OWNER, OWNER)
        fill()

    _, status = processes.read_to_the_end(*processes.forked(live))
    assert status == 0
    if state == "killed, no index":
        path.with_name("history.db-shm").unlink()
    for file in path.parent.iterdir():
        file.chmod(0o644)
    return 2 if "killed" in state else 1


def looks(folder: Path, state: str) -> None:
    """Every user reads all records in every way, and leaves nothing next to the file."""
    for mode, uid in ((0o755, OTHER), (0o777, OTHER), (0o777, 0), (0o755, OWNER)):
        for number, look in enumerate(LOOKS if uid == OTHER else LOOKS[:1]):
            home = folder / f"{mode} {uid} {number}"
            elsewhere = folder / f"of {mode} {uid} {number}"
            for each, owner in ((home, OWNER), (elsewhere, uid)):
                each.mkdir()
                os.chown(each, owner, owner)
            path = home / "history.db"
            records = make(path, state)
            home.chmod(mode)
            before = listing(home)
            said = in_child(lambda: asyncio.run(look(path, elsewhere)), uid)  # noqa: B023
            if state == "killed, no index" and uid == OTHER:
                assert said.startswith("StorageReadOnly: "), said
                assert "as its owner" in said
            else:
                assert said == str(records), (look, uid, mode, said)
            assert listing(home) == before, (look, uid, mode)
            if number:
                continue
            assert in_child(lambda: asyncio.run(write(path)), OWNER) == "written"  # noqa: B023
            if uid == OTHER:
                for change in (write, repair):
                    said = in_child(lambda: asyncio.run(change(path)), uid)  # noqa: B023
                    assert said.startswith(f"StorageReadOnly: {path}"), (change, said)
                    assert "migrate=False" in said
                assert in_child(lambda: asyncio.run(write(path)), OWNER) == "written"  # noqa: B023


def read_only(folder: Path, state: str) -> None:
    """The same on a mount where even root may not write."""
    home, there, elsewhere = folder / "home", folder / "there", folder / "elsewhere"
    for each in (home, there, elsewhere):
        each.mkdir()
    os.chown(home, OWNER, OWNER)
    records = make(home / "history.db", state)
    before = listing(home)
    path = there / "history.db"
    with mounted("--bind", home, there):
        subprocess.run(["mount", "-o", "remount,ro,bind", there], check=True)
        for look in LOOKS:
            said = in_child(lambda: asyncio.run(look(path, elsewhere)))  # noqa: B023
            if state == "killed, no index":
                assert said.startswith("StorageReadOnly: "), said
            else:
                assert said == str(records), (look, said)
        if state != "killed, no index":
            asyncio.run(_written_meanwhile(path, home / "history.db"))
    if state != "killed, no index":
        return
    assert listing(home) == before


async def _written_meanwhile(path: Path, where_it_may: Path) -> None:
    """A reader sees records that are written through a writable mount, and can't write itself."""
    async with open_history(path, migrate=False) as reader:
        before = len(await reader.get_history("m"))
        # Not in a forked child, which would treat the file as already open.
        await asyncio.to_thread(processes.run, "mounts", "written", where_it_may)
        assert len(await reader.get_history("m")) == before + 1
        with pytest.raises(HistoryError):
            await reader.add_history("m", None, "y", "UPDATE")
    with pytest.raises(StorageReadOnly, match="migrate=False"):
        await open_history(path)


def written(path: Path) -> None:
    """Add a record from a new process."""
    asyncio.run(write(path))


_TEMPORARY: Final = ("/var/tmp", "/usr/tmp", "/tmp")  # noqa: S108 - where SQLite looks for one


def no_temporary_folder(folder: Path) -> None:
    """SQLite may write in none of its folders for temporary files, as in a read-only container."""
    for variable in ("SQLITE_TMPDIR", "TMPDIR"):
        os.environ.pop(variable, None)
    there = Path("/mnt")
    with ExitStack() as stack:
        stack.enter_context(mounted("--bind", folder, there))
        for hidden in filter(os.path.isdir, _TEMPORARY):
            stack.enter_context(mounted("-t", "tmpfs", "-o", "ro", "none", hidden))
        os.chdir("/tmp")  # noqa: S108 - SQLite's last choice is the current folder
        asyncio.run(_without_temporary_files(there / "history.db"))
        with closing(sqlite3.connect(there / "mem0.db")) as plain, plain:
            plain.execute("CREATE TABLE history (id TEXT PRIMARY KEY, memory_id TEXT, event TEXT)")
            rows = ((str(number), f"memory {number % 999}") for number in range(60_000))
            plain.executemany("INSERT INTO history VALUES (?, ?, 'ADD')", rows)
        assert asyncio.run(write(there / "mem0.db")) == "written"
        os.chdir("/")


async def _without_temporary_files(path: Path) -> None:
    """Write large batches, and run VACUUM between them."""
    async with open_history(path, lock_timeout_s=0.3) as history:
        changes = [
            {"memory_id": f"m{number}", "event": "ADD", "new_memory": "x" * 1_000}
            for number in range(3_000)
        ]
        await history.batch_add_history(changes)
        await asyncio.gather(
            *(history.update_history(f"m{number}", "y" * 1_000) for number in range(3_000))
        )
        report = await history.erase(memory_ids=["m1"], reason="test")
        assert (report.records, report.remains) == (2, ())
        await history.batch_add_history(changes[2:])
        assert await history.count_history() == 8_998
        assert not (await history.check()).problems


_PROGRAMS: dict[str, Callable[..., None]] = {
    program.__name__: program
    for program in (alone, taken, looks, read_only, written, no_temporary_folder)
}

if __name__ == "__main__":
    _PROGRAMS[sys.argv[1]](Path(sys.argv[2]).resolve(), *sys.argv[3:])
