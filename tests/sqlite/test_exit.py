"""Programs that go on after the main thread has ended: loops on other threads, and atexit."""

import sqlite3
from pathlib import Path

import pytest

from tests.subprocesses.processes import run_source

pytestmark = [pytest.mark.versions, pytest.mark.subprocess]

_NO_THREAD = "no thread"
"""Some versions of Python start no thread once the main thread has ended: the call says so."""
_IN_A_THREAD = """
import asyncio, sqlite3, sys, threading
from async_history import StorageError, open_history

is_begun = threading.Event()

async def main():
    {before}
    is_begun.set()
    threading.main_thread().join()
    {after}

threading.Thread(target=asyncio.run, args=(main(),)).start()
is_begun.wait()
"""
_OPENED = """history = await open_history(sys.argv[1])
    await history.add_history("m", None, "before", "ADD")"""
_CALLS = "for n in range(200): await history.add_history('m', None, str(n), 'UPDATE')"
_LOCKED = """holder = sqlite3.connect(sys.argv[1], isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")"""
_OPENING = """
    opening = asyncio.ensure_future(open_history(sys.argv[1]))
    await asyncio.wait([opening], timeout=0.5)
    holder.close()
    try:
        history = await opening
    except StorageError as error:
        print(error)
        return
    await history.add_history("m", None, "waited", "ADD")
    await history.aclose()
""".strip()


def _texts(path: Path) -> list[str]:
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT new_memory FROM history ORDER BY rowid").fetchall()
    connection.close()
    return [text for (text,) in rows]


@pytest.mark.parametrize("closes", [True, False], ids=["closed", "left open"])
def test_a_loop_on_a_thread_outlives_the_main_thread(tmp_path: Path, *, closes: bool) -> None:
    """As in a program that starts its server in a thread and leaves the main one."""
    path = tmp_path / "history.db"
    source = _IN_A_THREAD.format(
        before=_OPENED, after=f"{_CALLS}\n    {'await history.aclose()' if closes else ''}"
    )
    done = run_source(source, str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert _texts(path) == ["before", *map(str, range(200))]


def test_opening_after_the_main_thread_waits_for_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    done = run_source(_IN_A_THREAD.format(before=_LOCKED, after=_OPENING), str(path))
    assert (done.returncode, done.stderr) == (0, "")
    if _NO_THREAD not in done.stdout:
        assert (done.stdout, _texts(path)) == ("", ["waited"])


def test_an_atexit_function_may_open_a_history(tmp_path: Path) -> None:
    done = run_source(
        """
        import asyncio, atexit, sys
        from async_history import StorageError, open_history

        async def main():
            async with open_history(sys.argv[1]) as history:
                for n in range(200):
                    await history.add_history("m", None, str(n), "UPDATE")

        @atexit.register
        def at_exit():
            try:
                asyncio.run(main())
            except StorageError as error:
                print(error)
            else:
                print("recorded")
        """,
        str(tmp_path / "history.db"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    if _NO_THREAD not in done.stdout:
        assert done.stdout.strip() == "recorded"
        assert _texts(tmp_path / "history.db") == [*map(str, range(200))]
