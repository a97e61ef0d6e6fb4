"""The memory of the queue while another process holds the file's lock.

    python -m benchmarks._memory FOLDER HOLD_SECONDS

10,000 tasks write 10 KB each. A task that gets `Overloaded` retries with a new text, so far more is
submitted than the queue may hold. The measurement runs in a separate process, because it uses the
process's peak memory, and prints one line of JSON.
"""

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from async_history import Overloaded, open_history
from async_history._core.writing.queue import QUEUE_BYTES
from async_history._core.writing.writer_options import BATCH_BYTES

LIMIT_BYTES: Final = QUEUE_BYTES + BATCH_BYTES
"""The memory that the library may hold: a full queue, and the batch that waits for the lock."""
_TASKS: Final = 10_000
_TEXT_BYTES: Final = 10_240
_ARRIVAL_S: Final = 1.0
_QUEUE_TIMEOUT_S: Final = 0.1
_TRY_AGAIN_S: Final = 0.5
_LOOK_EVERY_S: Final = 0.02

_HOLD_LOCK: Final = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True, slots=True)
class Memory:
    """The peak while locked, above that of 10,000 idle tasks; None if it can't be read.

    `waiting_bytes` of it are texts of callers that wait for space in the queue, not the queue's.
    """

    peak_growth_bytes: int | None
    waiting_bytes: int
    limit_bytes: int
    offered_bytes: int
    acked: int
    overloaded: int


@contextlib.contextmanager
def _lock_held(path: Path) -> Iterator[None]:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD_LOCK, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        yield
    finally:
        holder.communicate()


def _status_bytes(name: str) -> int | None:
    """Return VmRSS, or VmHWM, which is its peak; Linux only."""
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    return None


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


async def measure(folder: Path, hold_s: float) -> Memory:
    """Let 10,000 tasks write while the lock is held for `hold_s`, then release it and drain."""
    path = folder / "history.db"
    acked = overloaded = offered = waiting = 0
    released = asyncio.Event()

    async def agent(number: int) -> None:
        nonlocal acked, overloaded, offered
        await asyncio.sleep(_ARRIVAL_S * number / _TASKS)
        while not released.is_set():
            offered += 1
            try:
                await history.add_history(f"memory-{number}", None, _text(offered), "ADD")
            except Overloaded:
                overloaded += 1
            else:
                acked += 1
                return
            # Not inside `except`: while an error is handled, its traceback holds the text.
            await asyncio.sleep(_TRY_AGAIN_S)

    async with open_history(path, queue_timeout_s=_QUEUE_TIMEOUT_S) as history:
        await history.add_history("memory", None, "the first", "ADD")
        with _lock_held(path):
            agents = [asyncio.create_task(agent(number)) for number in range(_TASKS)]
            await asyncio.sleep(0)
            _forget_peak()
            before = _status_bytes("VmRSS")
            for _ in range(round(hold_s / _LOOK_EVERY_S)):
                await asyncio.sleep(_LOOK_EVERY_S)
                writer = (await history.stats()).writer
                assert writer is not None
                waiting = max(waiting, writer.waiting_callers)
            peak = _status_bytes("VmHWM")
            assert acked == 0, "the lock was not held"
        released.set()
        await asyncio.gather(*agents)
    growth = None if before is None or peak is None else peak - before
    return Memory(
        growth, waiting * _TEXT_BYTES, LIMIT_BYTES, offered * _TEXT_BYTES, acked, overloaded
    )


def _text(number: int) -> str:
    return f"{number:010d}" * (_TEXT_BYTES // 10)


def measure_in_child(folder: Path, hold_s: float) -> Memory:
    """Run `measure` in a separate process."""
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks._memory", str(folder), str(hold_s)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    return Memory(**json.loads(child.stdout))


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(measure(Path(sys.argv[1]), float(sys.argv[2]))))))
