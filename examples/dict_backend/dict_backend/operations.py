"""The log of operations."""

from dataclasses import replace
from itertools import dropwhile

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

    async def end(self, end: api.OperationEnd) -> tuple[int, int]:
        await self.add(end.operation_id, end.records, end.messages)
        one = self._operations[end.operation_id]
        one = replace(one, ended_at=end.ended_at, error=end.error)
        self._operations[one.id] = one
        return one.records, one.messages

    async def forget_actor(self, actor_id: str) -> None:
        for operation_id, one in self._operations.items():
            if one.actor_id == actor_id:
                self._operations[operation_id] = replace(one, actor_id=None)

    async def read(
        self, *, up_to: str | None = None, limit: int | None = None, kind: str | None = None
    ) -> list[api.StoreOperation]:
        last = list(reversed(self._operations.values()))
        if up_to is not None:
            last = list(dropwhile(lambda one: one.id != up_to, last))
        if kind is not None:
            last = [one for one in last if one.kind == kind]
        return last[:limit][::-1]
