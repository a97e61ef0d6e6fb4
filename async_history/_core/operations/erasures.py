"""The erasures among a store's operations: that, when and why something was erased, how much."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from async_history._core.operations.operations import StoreOperation, readable_log

ERASE: Final = "erase"
"""The kind of these operations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """One erasure, as the store keeps it, without any text and without the actor's name."""

    id: str
    """Its id, a UUIDv7."""
    begun_at: datetime
    """When it began: aware, in UTC."""
    finished_at: datetime | None
    """When it was done; None if it failed, was interrupted, or still runs."""
    reason: str
    """The reason given to `erase`."""
    memory_ids: tuple[str, ...]
    """The memories that it named."""
    actor_sha256: str | None
    """The SHA-256 of the actor's id in hexadecimal; None if no actor was named.

    Whether an actor was erased can be checked; who was can't be read.
    """
    records: int
    """Records that lost a text or their actor."""
    messages: int
    """Messages that were removed from the buffers."""


def erasures_of(operations: Iterable[StoreOperation]) -> list[Erasure]:
    """Return operations of the kind `ERASE` as erasures.

    Raises:
        StorageCorrupt: another program has changed the arguments of one.
    """
    with readable_log():
        return list(map(_erasure, operations))


def _erasure(operation: StoreOperation) -> Erasure:
    arguments = operation.arguments
    reason, memory_ids = arguments.get("reason"), arguments.get("memory_ids")
    if not isinstance(reason, str) or not isinstance(memory_ids, list | tuple):
        raise TypeError("an erasure's arguments lack its reason or its memories")
    return Erasure(
        id=operation.id,
        begun_at=operation.begun_at,
        finished_at=operation.ended_at if operation.error is None else None,
        reason=reason,
        memory_ids=tuple(memory_ids),
        actor_sha256=arguments.get("actor_id_sha256"),
        records=operation.records,
        messages=operation.messages,
    )
