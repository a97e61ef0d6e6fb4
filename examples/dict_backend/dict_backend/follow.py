"""Following: the records committed after a position. Positions are in commit order."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from async_history import backend as api
from dict_backend.data import Kept

CURSORS: Final = api.CursorCodec("dict", "follow on a history in dicts")


class FollowPosition(NamedTuple):
    position: int
    id: str

    def __str__(self) -> str:
        return CURSORS.text(*self)


class DictFollowReader:
    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    def position(self, cursor: str | None) -> FollowPosition | None:
        def read(parts: Sequence[str | int | None]) -> FollowPosition | None:
            match parts:
                case [int(position), str(record_id)]:
                    return FollowPosition(position, record_id)
            return None

        return None if cursor is None else CURSORS.parse(cursor, read)

    async def page(
        self, after: FollowPosition | None, memory_id: str | None, limit: int
    ) -> api.FollowRead[FollowPosition]:
        found = self._kept.after(after)
        positions = [
            FollowPosition(p, one.id) for p, one in found if memory_id in (None, one.memory_id)
        ]
        part = positions[:limit]
        records = [self._kept.records[one.position] for one in part]
        if is_last := len(part) == len(positions):
            end = FollowPosition(found[-1][0], found[-1][1].id) if found else after
        else:
            end = part[-1]
        return api.FollowRead(records, part.__getitem__, end, is_last)

    async def end(self) -> FollowPosition | None:
        for position, record in reversed(self._kept.records.items()):
            return FollowPosition(position, record.id)
        return None

    async def mark(self) -> object:
        return await self.end()
