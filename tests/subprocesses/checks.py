"""Checks of a file, whatever program wrote it and however it ended."""

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from async_history import HistoryManager
from async_history._sqlite.index.levels import LEVELS, POSITIONS, TAIL_ROWS, memory_key
from tests.support.patience import LONG_S


class Wrote(NamedTuple):
    """A submission by name: the run, its task, the task's count of submissions, and its size."""

    run: int
    task: int
    number: int
    size: int

    def text(self, index: int) -> str:
        """Return the text of one of its records, which names the record's place."""
        return f"{self.run} {self.task} {self.number} {self.size} {index}"


@contextmanager
def looking(path: Path, mode: Literal["ro", "rw"] = "ro") -> Iterator[sqlite3.Connection]:
    """Open a connection. The last connection copies the log into the file, unless it is "ro"."""
    uri = f"{path.as_uri()}?mode={mode}"
    with closing(
        sqlite3.connect(uri, uri=True, isolation_level=None, timeout=LONG_S)
    ) as connection:
        yield connection


def check_sound(connection: sqlite3.Connection) -> None:
    """Check every page of the file, and that every row is in every index."""
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def check_index(connection: sqlite3.Connection) -> None:
    """Check that the memory index has the rows of a scan, memory by memory, in order."""
    scanned: dict[str, list[int]] = defaultdict(list)
    for memory_id, rowid in connection.execute(
        "SELECT memory_id, rowid FROM history NOT INDEXED ORDER BY rowid"
    ):
        scanned[memory_id].append(rowid)
    for memory_id, rowids in scanned.items():
        found = connection.execute(
            f"SELECT rowid FROM history WHERE memory_id = :memory_id AND rowid IN ({POSITIONS})"
            " ORDER BY rowid",
            {"memory_id": memory_id, "memory": memory_key(memory_id)},
        ).fetchall()
        assert [rowid for (rowid,) in found] == rowids, memory_id


def check_levels(connection: sqlite3.Connection) -> None:
    """Check that the levels hold every row but some of the last, which are indexed later."""
    levels = " UNION ALL ".join(
        f"SELECT memory, position FROM {level} WHERE memory >= 0" for level in LEVELS
    )
    entries = set(connection.execute(levels))
    rows = connection.execute("SELECT memory_id, rowid FROM history NOT INDEXED").fetchall()
    ((through,),) = connection.execute("SELECT indexed_through FROM async_history_state")
    assert entries >= {
        (memory_key(memory_id), rowid) for memory_id, rowid in rows if rowid <= through
    }
    assert 0 <= max((rowid for _, rowid in rows), default=0) - through <= TAIL_ROWS


async def check_manager(history: HistoryManager, path: Path) -> None:
    """Check that a manager returns the rows of a scan of its file, memory by memory."""
    scanned: dict[str, list[str]] = defaultdict(list)
    with looking(path) as connection:
        for memory_id, record_id in connection.execute(
            "SELECT memory_id, id FROM history NOT INDEXED ORDER BY rowid"
        ):
            scanned[memory_id].append(record_id)
    for memory_id, ids in scanned.items():
        assert [record.id for record in await history.get_history(memory_id)] == ids, memory_id


def texts(connection: sqlite3.Connection) -> list[str]:
    """Return the text of every record, in the order of recording."""
    rows = connection.execute("SELECT new_memory FROM history NOT INDEXED ORDER BY rowid")
    return [text for (text,) in rows]


def check_submissions(found: Iterable[str]) -> set[Wrote]:
    """Check that each submission is whole, once, and each task's in the order of its calls.

    `found` are the records' texts in the order of recording. Returns the submissions.
    """
    latest: dict[tuple[int, int], tuple[int, int]] = {}
    counts: Counter[Wrote] = Counter()
    for text in found:
        run, task, number, size, index = map(int, text.split())
        place = (number, index)
        before = latest.get((run, task), (-1, -1))
        assert place > before, f"{text} is there twice, or after {before}"
        latest[run, task] = place
        counts[Wrote(run, task, number, size)] += 1
    torn = [wrote for wrote, count in counts.items() if count != wrote.size]
    assert not torn
    return set(counts)


def check_messages(connection: sqlite3.Connection, acked: dict[str, int]) -> None:
    """Check every scope's buffer: the last ten messages, with no call's messages split.

    A message's content is its number in the scope, and the number of its call's last one. `acked`
    is, by scope, the number of the last message that is known to be saved.
    """
    scopes: dict[str, list[Sequence[int]]] = defaultdict(list)
    for scope, content in connection.execute(
        "SELECT session_scope, content FROM messages NOT INDEXED ORDER BY rowid"
    ):
        scopes[scope].append([int(number) for number in content.split()])
    for scope, messages in scopes.items():
        number, last_of_call = messages[-1]
        assert number == last_of_call, f"half a call's messages are in scope {scope}"
        expected = list(range(max(0, number - 9), number + 1))
        assert [number for number, _ in messages] == expected, scope
    for scope, number in acked.items():
        assert scopes[scope][-1][0] >= number, f"acked messages of scope {scope} are missing"
