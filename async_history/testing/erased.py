"""Data of an owner, and checks that it was erased."""

from collections.abc import Sequence
from typing import Any

from async_history import HistoryManager, HistoryRecord

ANN = {"user_id": "ann"}


SAID: dict[str, Any] = {"context": {"secret": 1}, "cause": {"request_id": "q"}}


def is_blank(record: HistoryRecord) -> bool:
    return record.old_memory is record.new_memory is None and not (record.context or record.cause)


def fact(record: HistoryRecord) -> tuple[object, ...]:
    """The remaining data of an erased record."""
    return record.id, record.memory_id, record.event, record.created_at, record.updated_at


async def say(history: HistoryManager, *scopes: str) -> None:
    for scope in scopes:
        await history.save_messages([{"role": "user", "content": scope}], scope)


async def heard(history: HistoryManager, scopes: Sequence[str]) -> list[str]:
    return [scope for scope in scopes if await history.get_last_messages(scope)]
