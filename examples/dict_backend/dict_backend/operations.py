"""The log of operations."""

from dataclasses import replace
from datetime import datetime

from async_history import backend as api


class DictOperationLog:
    def __init__(self, operations: dict[str, api.StoreOperation]) -> None:
        self._operations = operations

    async def begin(self, operation: api.StoreOperation) -> None:
        self._operations.setdefault(operation.id, operation)

    async def add(self, operation_id: str, records: int, messages: int) -> None:
        one = self._operations[operation_id]
        self._operations[operation_id] = replace(
            one, records=one.records + records, messages=one.messages + messages
        )

    async def end(
        self, operation_id: str, ended_at: datetime, error: str | None, records: int, messages: int
    ) -> tuple[int, int]:
        await self.add(operation_id, records, messages)
        one = replace(self._operations[operation_id], ended_at=ended_at, error=error)
        self._operations[operation_id] = one
        return one.records, one.messages

    async def forget_actor(self, actor_id: str) -> None:
        for operation_id, one in self._operations.items():
            if one.actor_id == actor_id:
                self._operations[operation_id] = replace(one, actor_id=None)

    async def read(self) -> list[api.StoreOperation]:
        return list(self._operations.values())
