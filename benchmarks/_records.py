"""The records: the same for all peers, three for each memory, made before the measurement.

Memory ids are random as in mem0 (UUIDv4); each text is a sentence. `agents` gives every task its
own memories, each added, updated and deleted in turn. `as_made` is the order in which so many tasks
record them, for raw writers.
"""

import random
import uuid
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain, zip_longest
from typing import Any, Final, NamedTuple

from uuid_utils import uuid7

RECORDS_A_MEMORY: Final = 3
_START: Final = datetime(2026, 1, 1, tzinfo=UTC)
_COLUMNS: Final = (
    "id",
    "memory_id",
    "old_memory",
    "new_memory",
    "event",
    "created_at",
    "updated_at",
    "is_deleted",
    "actor_id",
    "role",
)
CREATE_HISTORY: Final = """
CREATE TABLE IF NOT EXISTS history (
    id           TEXT PRIMARY KEY,
    memory_id    TEXT,
    old_memory   TEXT,
    new_memory   TEXT,
    event        TEXT,
    created_at   DATETIME,
    updated_at   DATETIME,
    is_deleted   INTEGER,
    actor_id     TEXT,
    role         TEXT
)
"""
"""mem0's table (mem0ai 2.2.1, `memory/storage.py`)."""
INSERT: Final = (
    f"INSERT INTO history ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
)


class NewRecord(NamedTuple):
    """The arguments of `add_history`, mem0's and ours."""

    memory_id: str
    old_memory: str | None
    new_memory: str | None
    event: str
    created_at: str | None
    updated_at: str | None
    is_deleted: int
    actor_id: str
    role: str

    def as_mapping(self) -> dict[str, Any]:
        """Return a mapping for mem0's and our `batch_add_history`."""
        return self._asdict()


Row = tuple[str | int | None, ...]


def random_uuid(numbers: random.Random) -> str:
    """Return a UUIDv4 as in mem0, from a seeded generator."""
    return str(uuid.UUID(int=numbers.getrandbits(128), version=4))


def one_memory(memory_id: str, number: int) -> Iterator[NewRecord]:
    """Yield a memory's three records."""
    actor = f"agent-{number % 1_000}"
    made = _START + timedelta(microseconds=number * 997)
    added, updated, deleted = ((made + timedelta(minutes=i)).isoformat() for i in range(3))
    likes = f"User {number} likes green tea in the morning, but no sugar"
    prefers = f"User {number} prefers oolong since the trip to Fujian, never with sugar"
    yield NewRecord(memory_id, None, likes, "ADD", added, None, 0, actor, "user")
    yield NewRecord(memory_id, likes, prefers, "UPDATE", added, updated, 0, actor, "user")
    yield NewRecord(memory_id, prefers, None, "DELETE", added, deleted, 1, actor, "user")


def details(user: int, number: int) -> dict[str, Any]:
    """Return a record's details: 200 bytes of metadata, which one record in three changes."""
    context = {"data": "x" * 60, "hash": "a" * 32, "note": "y" * 60, "part": number % 3 == 1}
    return {
        "owner": {"user_id": f"user {user}"},
        "context": context,
        "cause": {"request_id": f"{user}-{number}"},
    }


def agents(tasks: int, records: int, seed: int = 1) -> list[list[NewRecord]]:
    """Return each task's records: about `records` in all, in whole memories, evenly distributed."""
    numbers = random.Random(seed)
    memories = max(1, round(records / RECORDS_A_MEMORY / tasks))
    return [
        [
            record
            for memory in range(memories)
            for record in one_memory(random_uuid(numbers), task * memories + memory)
        ]
        for task in range(tasks)
    ]


def as_made(per_agent: Sequence[Sequence[NewRecord]]) -> list[NewRecord]:
    """Return all tasks' records in the order in which tasks in turns record them."""
    rounds = zip_longest(*per_agent)
    return [record for record in chain.from_iterable(rounds) if record is not None]


def rows(records: Iterable[NewRecord]) -> Iterator[Row]:
    """Yield the ten columns for `INSERT`, with ordered ids as ours (UUIDv7)."""
    for record in records:
        yield (str(uuid7()), *record)
