"""The library in a process that may not write: because of file modes, or a limit on file sizes.

    python -m tests.subprocesses.confined (modes | limit) FOLDER [...]

A failed assertion ends it.
"""

import asyncio
import os
import resource
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from async_history import HistoryError, StorageError, open_history
from tests.subprocesses.checks import check_manager

BOUND_BY_MODES = (
    ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
)
"""The start of the command line, which makes file modes apply to root too."""

_LIMIT_BYTES = 400_000


async def outcome(path: Path) -> str:
    """Open the file and write a record; return "written", or the error's name and message."""
    try:
        async with open_history(path, lock_timeout_s=1) as history:
            await history.add_history("m", None, "x", "ADD")
    except HistoryError as error:
        return f"{type(error).__name__}: {error}"
    return "written"


async def modes(folder: Path, file_mode: str, folder_mode: str, expected: str) -> None:
    """Open and write without write permission on file or folder; then with it again."""
    path = folder / "of" / "history.db"
    assert await outcome(path) == "written"
    before = path.read_bytes()
    path.chmod(int(file_mode, 8))
    path.parent.chmod(int(folder_mode, 8))
    try:
        answer = await outcome(path)
        assert answer.startswith(f"{expected}: {path}"), answer
    finally:
        path.parent.chmod(0o700)
        path.chmod(0o600)
    assert path.read_bytes() == before
    assert await outcome(path) == "written", "writes resume when the cause is gone"


async def limit(folder: Path) -> None:
    """Write until a file may not grow, which SQLite reports as an I/O error; continue when it may
    again."""
    path = folder / "history.db"
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    acked: list[str] = []
    async with open_history(path, lock_timeout_s=0.3) as history:
        resource.setrlimit(resource.RLIMIT_FSIZE, (_LIMIT_BYTES, hard))
        error: StorageError | None = None
        while error is None:
            assert len(acked) < _LIMIT_BYTES // 10_000
            try:
                acked.append((await history.add_history("m", None, "x" * 10_000, "UPDATE")).id)
            except StorageError as raised:
                error = raised
        assert "ulimit -f" in str(error)
        assert [record.id for record in await history.get_history("m")] == acked
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        acked.append((await history.add_history("m", None, "again", "UPDATE")).id)
        assert [record.id for record in await history.get_history("m")] == acked
        await check_manager(history, path)


_PROGRAMS: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {"modes": modes, "limit": limit}

if __name__ == "__main__":
    asyncio.run(_PROGRAMS[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:]))
