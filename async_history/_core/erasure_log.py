"""The log of erasures that a store keeps: that, when and why something was erased, and how much."""

import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """One erasure, as the store keeps it, without any text and without the actor's name."""

    id: str
    """Its id, a UUIDv7."""
    begun_at: datetime
    """When it began: aware, in UTC."""
    finished_at: datetime | None
    """When it was done; None of one that was interrupted, or still runs."""
    reason: str
    """Why, as `erase` was told."""
    memory_ids: tuple[str, ...]
    """The memories that it named."""
    actor_sha256: str | None
    """The SHA-256 of the actor's id in hexadecimal; None where no actor was named.

    Whether an actor was erased can be checked; who was can't be read.
    """
    records: int
    """Records that lost a text or their actor."""
    messages: int
    """Messages that were removed from the buffers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ErasureStatements:
    """A database's statements for its log, each with what it takes, in that order.

    Instants are text, `memory_ids` is a JSON list.

    Attributes:
        begin: enters an erasure that is not in it: id, begun_at, reason, memory_ids, actor_sha256.
        add: adds to an erasure's counts: records, messages, id.
        finish: notes when an erasure was done: finished_at, id.
        counts: returns an erasure's records and messages: id.
        all: returns each erasure, oldest first, as one JSON list of its columns in order.
    """

    begin: str
    add: str
    finish: str
    counts: str
    all: str


class ErasureLog(Protocol):
    """A store's log of erasures."""

    async def begin(self, erasure: Erasure) -> None:
        """Enter an erasure, where no erasure of its id is in the log."""

    async def add(self, erasure_id: str, records: int, messages: int) -> None:
        """Add to an erasure's counts what a transaction erased, inside of it."""

    async def finish(self, erasure_id: str, finished_at: datetime) -> tuple[int, int] | None:
        """Note when an erasure was done; return its records and messages.

        None where the log does not have it.
        """


def new_erasure(
    erasure_id: str, reason: str, memory_ids: Sequence[str], actor_id: str | None
) -> Erasure:
    """Return an erasure that begins now."""
    return Erasure(
        id=erasure_id,
        begun_at=datetime.now(UTC),
        finished_at=None,
        reason=reason,
        memory_ids=tuple(memory_ids),
        actor_sha256=None if actor_id is None else hashlib.sha256(actor_id.encode()).hexdigest(),
        records=0,
        messages=0,
    )


class StatementErasureLog:
    """A log of erasures in a database that takes statements.

    Args:
        run: runs one statement with its parameters, and returns its rows.
    """

    def __init__(
        self,
        statements: ErasureStatements,
        run: Callable[..., Awaitable[Sequence[Sequence[Any]]]],
    ) -> None:
        self._statements = statements
        self._run = run

    async def begin(self, erasure: Erasure) -> None:
        """Enter an erasure."""
        await self._run(
            self._statements.begin,
            erasure.id,
            _text(erasure.begun_at),
            erasure.reason,
            json.dumps(erasure.memory_ids, ensure_ascii=False),
            erasure.actor_sha256,
        )

    async def add(self, erasure_id: str, records: int, messages: int) -> None:
        """Count what a transaction erased, inside of it."""
        await self._run(self._statements.add, records, messages, erasure_id)

    async def finish(self, erasure_id: str, finished_at: datetime) -> tuple[int, int] | None:
        """Note when an erasure was done; return its records and messages."""
        await self._run(self._statements.finish, _text(finished_at), erasure_id)
        for records, messages in await self._run(self._statements.counts, erasure_id):
            return records, messages
        return None

    async def read(self) -> list[Erasure]:
        """Return all erasures, oldest first."""
        return [_erasure(*json.loads(row)) for (row,) in await self._run(self._statements.all)]


def _text(instant: datetime) -> str:
    return instant.isoformat(timespec="microseconds")


def _erasure(
    erasure_id: str,
    begun_at: str,
    finished_at: str | None,
    reason: str,
    memory_ids: list[str],
    actor_sha256: str | None,
    records: int,
    messages: int,
) -> Erasure:
    return Erasure(
        id=erasure_id,
        begun_at=_instant(begun_at),
        finished_at=None if finished_at is None else _instant(finished_at),
        reason=reason,
        memory_ids=tuple(memory_ids),
        actor_sha256=actor_sha256,
        records=records,
        messages=messages,
    )


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
