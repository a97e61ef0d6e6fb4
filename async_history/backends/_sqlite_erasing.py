"""Erasing in a SQLite file: the statements, and what is left in the file itself.

Lives here: one step in its transaction, the erasures' table, the free space and the log. Not here:
what is decided (_erasing), whose turn it is (sqlite).
"""

import asyncio
import contextlib
import json
import shutil
import sqlite3
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Final, TypeVar

from async_history._sqlite import typed_errors
from async_history._worker_thread import run_in_thread
from async_history.backends._erasing import Blanks, Found, Place, erase_step
from async_history.backends._sqlite_commit import fetched
from async_history.backends._sqlite_search import THROUGH_INDEX, in_order, named
from async_history.backends._sqlite_thread import ThreadConnection, completed, transaction
from async_history.errors import CommitUnknown, StorageError, StorageFull
from async_history.memory_index import POSITIONS, memory_key
from async_history.memory_index import in_order as memory_in_order
from async_history.migrations.file_copy import copies_of
from async_history.queries import Cursor, Filter
from async_history.records import now_text
from async_history.retention import (
    EraseStep,
    Erasing,
    Erasure,
    Reaching,
    Remains,
    actor_digest,
)

T = TypeVar("T")

_ASK_AGAIN_S: Final = 0.01
"""Pause before the log is asked to be cut off again; SQLite itself has waited already."""
_HAS_TEXT: Final = "(history.old_memory IS NOT NULL OR history.new_memory IS NOT NULL)"
_WITH_TEXT: Final = f"""
SELECT history.rowid, history.id, history.memory_id
FROM {memory_in_order("ASC", ":after")} AS place
CROSS JOIN history ON history.rowid = place.position
WHERE history.memory_id = :memory_id AND {_HAS_TEXT} LIMIT :limit
"""  # noqa: S608 - constants
_OF_SEVERAL_WITH_TEXT: Final = f"""
SELECT history.rowid, history.id, history.memory_id FROM history
WHERE {THROUGH_INDEX.several} AND history.rowid > :after AND {_HAS_TEXT}
ORDER BY history.rowid LIMIT :limit
"""  # noqa: S608 - constants
_OF_AN_ACTOR: Final = in_order(
    "history.rowid AS position, history.id, history.memory_id",
    Filter(None, "", None, None, None, None, None),
    THROUGH_INDEX,
    Cursor(0, ""),
)
_OF_ACTOR: Final = f"{' UNION ALL '.join(_OF_AN_ACTOR)} ORDER BY position LIMIT :limit"
"""Takes `:actor_id` and `:after`, the position to go on behind."""
_TEXTS: Final = """(
    SELECT new_memory FROM history WHERE rowid IN (SELECT value FROM json_each(:positions))
)"""
_COPIES: Final = f"""
SELECT old_memory IN {_TEXTS}, new_memory IN {_TEXTS}, rowid, id, memory_id FROM history
WHERE memory_id = :memory_id AND rowid IN ({POSITIONS}) AND actor_id IS NOT :actor_id
  AND (old_memory IN {_TEXTS} OR new_memory IN {_TEXTS})
"""  # noqa: S608 - constants
_BLANK: Final = """
UPDATE history SET
    old_memory = CASE WHEN rowid IN (SELECT value FROM json_each(:old_memory))
                 THEN NULL ELSE old_memory END,
    new_memory = CASE WHEN rowid IN (SELECT value FROM json_each(:new_memory))
                 THEN NULL ELSE new_memory END
WHERE rowid IN (SELECT value FROM json_each(:all))
"""
_BLANK_ACTOR: Final = """
UPDATE history SET actor_id = NULL WHERE rowid IN (SELECT value FROM json_each(?))
"""
_OF_SCOPES: Final = "FROM messages WHERE session_scope IN (SELECT value FROM json_each(?))"
_COUNT_MESSAGES: Final = f"SELECT count(*) {_OF_SCOPES}"
_REMOVE_MESSAGES: Final = f"DELETE {_OF_SCOPES}"
_BEGIN: Final = """
INSERT OR IGNORE INTO async_history_erasures (id, begun_at, reason, memory_ids, actor_sha256)
VALUES (?, ?, ?, ?, ?)
"""
_NOTE: Final = """
UPDATE async_history_erasures SET records = records + ?, messages = messages + ? WHERE id = ?
"""
_FINISH: Final = "UPDATE async_history_erasures SET finished_at = ? WHERE id = ?"
ERASURES: Final = """
SELECT id, begun_at, finished_at, reason, memory_ids, actor_sha256, records, messages
FROM async_history_erasures ORDER BY rowid
"""
"""The erasures that the file knows of, oldest first; for `erasure_from_row`."""
_SECURE_DELETE: Final = {0: "OFF", 1: "ON", 2: "FAST"}
_VACUUM_ROOM: Final = 2
"""Sizes of the file that VACUUM takes: one beside it, one in its log."""


def erasure_from_row(row: Sequence[Any]) -> Erasure:
    """Return the erasure of a row of `ERASURES`."""
    erasure_id, begun_at, finished_at, reason, memory_ids, actor_sha256, records, messages = row
    return Erasure(
        erasure_id,
        datetime.fromisoformat(begun_at),
        None if finished_at is None else datetime.fromisoformat(finished_at),
        reason,
        tuple(json.loads(memory_ids)),
        actor_sha256,
        records,
        messages,
    )


class _EraseSteps:
    """The steps of `erase_step`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def _fetch(self, sql: str, **parameters: Any) -> list[Any]:
        return fetched(self._connection, sql, parameters)

    async def with_text(self, memory_ids: Sequence[str], after: int, limit: int) -> Found:
        sql = _WITH_TEXT if len(memory_ids) == 1 else _OF_SEVERAL_WITH_TEXT
        rows = self._fetch(sql, after=after, limit=limit, **named(memory_ids))
        return Found([Place(*row) for row in rows], rows[-1][0] if len(rows) == limit else None)

    async def of_actor(self, actor_id: str, after: int, limit: int) -> Found:
        rows = self._fetch(_OF_ACTOR, actor_id=actor_id, after=after, limit=limit)
        return Found([Place(*row) for row in rows], rows[-1][0] if len(rows) == limit else None)

    async def copies(self, actor_id: str, places: Sequence[Place]) -> Blanks:
        of_memory: dict[str, list[int]] = defaultdict(list)
        for place in places:
            of_memory[place.memory_id].append(place.position)
        old: list[Place] = []
        new: list[Place] = []
        for memory_id, positions in of_memory.items():
            for is_old, is_new, *row in self._fetch(
                _COPIES,
                memory_id=memory_id,
                memory=memory_key(memory_id),
                actor_id=actor_id,
                positions=json.dumps(positions),
            ):
                old += [Place(*row)] if is_old else []
                new += [Place(*row)] if is_new else []
        return Blanks(old, new)

    async def blank(self, blanks: Blanks) -> None:
        self._fetch(
            _BLANK,
            old_memory=_positions(blanks.old_memory),
            new_memory=_positions(blanks.new_memory),
            all=_positions(blanks.all()),
        )
        self._connection.execute(_BLANK_ACTOR, (_positions(blanks.actor_id),))

    async def messages(self, session_scopes: Sequence[str]) -> int:
        scopes = json.dumps(session_scopes)
        ((count,),) = fetched(self._connection, _COUNT_MESSAGES, (scopes,))
        return int(count)

    async def remove_messages(self, session_scopes: Sequence[str]) -> None:
        self._connection.execute(_REMOVE_MESSAGES, (json.dumps(session_scopes),))

    async def note(self, erasure_id: str, erased: EraseStep) -> None:
        self._connection.execute(_NOTE, (erased.records, erased.messages, erasure_id))


def _positions(places: Sequence[Place]) -> str:
    return json.dumps([place.position for place in places])


Work = Callable[[ThreadConnection], Awaitable[T]]


class FileErasure:
    """The steps of `erase_in_steps`, in a file or in memory.

    Args:
        in_turn: does work on the connection that writes, alone, in its turn among the writes.
        take_up: opens that connection anew, in its turn.
        path: the file, None in memory.
        lock_timeout_s: how long to wait for others who read what is in the log.
    """

    def __init__(
        self,
        in_turn: Callable[[Work[Any]], Awaitable[Any]],
        take_up: Callable[[], Awaitable[None]],
        path: Path | None,
        lock_timeout_s: float,
    ) -> None:
        self._in_turn = in_turn
        self._take_up = take_up
        self._path = path
        self._lock_timeout_s = lock_timeout_s

    async def begin(self, asked: Erasing) -> None:
        memory_ids = json.dumps(asked.memory_ids, ensure_ascii=False)
        await self._execute(
            _BEGIN, asked.id, now_text(), asked.reason, memory_ids, actor_digest(asked.actor_id)
        )

    async def finish(self, asked: Erasing) -> None:
        await self._execute(_FINISH, now_text(), asked.id)

    async def _execute(self, sql: str, *parameters: Any) -> None:
        await self._in_turn(lambda connection: connection.execute_fetchall(sql, parameters))

    async def step(self, asked: Erasing, whose: Reaching) -> EraseStep:
        erase = partial(_erase, asked, whose)
        erased: EraseStep = await self._in_turn(lambda connection: connection.run(erase))
        return erased

    async def remains(self) -> Remains:
        copies = await self._copies()
        return Remains(copies, _of_copies(copies))

    async def clean(self, *, vacuum: bool) -> Remains:
        if self._path is None:
            return Remains()
        copies = await self._copies()
        sentences: list[str] = []
        if not vacuum:
            sentences.append(
                f"free space in {self._path} may hold texts that were moved, changed or removed "
                "before (vacuum=False): erase with vacuum=True once, or run VACUUM"
            )
        else:
            sentences += await self._vacuumed(self._path)
        sentences += await self._log_emptied(self._path)
        return Remains(copies, (*sentences, *_of_copies(copies)))

    async def _copies(self) -> tuple[str, ...]:
        return () if self._path is None else await run_in_thread(partial(copies_of, self._path))

    async def _vacuumed(self, path: Path) -> list[str]:
        """Write the file anew without its free space; return what to say where that failed."""
        try:
            await run_in_thread(partial(_check_room, path))
            # Where others replaced the history, what our index has of it goes before, not after.
            await self._take_up()
            await self._in_turn(lambda connection: connection.execute_fetchall("VACUUM"))
        except (StorageError, CommitUnknown) as error:
            return [
                f"free space in {path} may hold texts that were moved, changed or removed before, "
                f"and VACUUM could not overwrite it ({error}): see to that and erase again"
            ]
        # VACUUM may have given the records other positions: the index is built anew.
        await self._take_up()
        return []

    async def _log_emptied(self, path: Path) -> list[str]:
        """Copy the log into the file and cut it off; return what to say where others read it."""
        deadline = monotonic() + self._lock_timeout_s
        while (await self._in_turn(_checkpoint))[0][0]:
            if monotonic() > deadline:
                return [
                    f"{path}-wal may hold the texts, for others kept reading it for "
                    f"{self._lock_timeout_s} s: end them and erase again, or close the file "
                    "everywhere"
                ]
            await asyncio.sleep(_ASK_AGAIN_S)
        return []


def _checkpoint(connection: ThreadConnection) -> Awaitable[Iterable[Sequence[Any]]]:
    return connection.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")


def _erase(asked: Erasing, whose: Reaching, connection: sqlite3.Connection) -> EraseStep:
    """Erase the next few texts in one transaction, on the connection's thread."""
    with _overwriting(connection), transaction(connection):
        return completed(erase_step(asked, whose, _EraseSteps(connection)))


@contextlib.contextmanager
def _overwriting(connection: sqlite3.Connection) -> Iterator[None]:
    """Let SQLite overwrite with zeros what the body removes."""
    ((before,),) = fetched(connection, "PRAGMA secure_delete")
    fetched(connection, "PRAGMA secure_delete = ON")
    try:
        yield
    finally:
        fetched(connection, f"PRAGMA secure_delete = {_SECURE_DELETE[before]}")


def _check_room(path: Path) -> None:
    with typed_errors(str(path)):
        needed = path.stat().st_size * _VACUUM_ROOM
        free = shutil.disk_usage(path.resolve().parent).free
    if free < needed:
        raise StorageFull(f"{path} needs {needed:,} bytes of room beside it, {free:,} are free")


def _of_copies(copies: Sequence[str]) -> tuple[str, ...]:
    if not copies:
        return ()
    return (f"copies from before the file's adoption have the texts: remove {', '.join(copies)}",)
