"""Following: the records committed after a place. Positions are in commit order."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from async_history import backend as api
from dict_backend.data import Kept

CURSORS: Final = api.CursorCodec("dict", "follow on a history in dicts")


class FollowPlace(NamedTuple):
    position: int
    id: str

    def __str__(self) -> str:
        return CURSORS.text(*self)


class DictFollowReader:
    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    def place(self, cursor: str | None) -> FollowPlace | None:
        def read(parts: Sequence[str | int | None]) -> FollowPlace | None:
            match parts:
                case [int(position), str(record_id)]:
                    return FollowPlace(position, record_id)
            return None

        return None if cursor is None else CURSORS.place(cursor, read)

    async def page(
        self, place: FollowPlace | None, memory_id: str | None, limit: int
    ) -> api.FollowRead[FollowPlace]:
        found = self._kept.after(place)
        places = [FollowPlace(p, one.id) for p, one in found if memory_id in (None, one.memory_id)]
        part = places[:limit]
        records = [self._kept.records[one.position] for one in part]
        if is_last := len(part) == len(places):
            end = FollowPlace(found[-1][0], found[-1][1].id) if found else place
        else:
            end = part[-1]
        return api.FollowRead(records, part.__getitem__, end, is_last)

    async def end(self) -> FollowPlace | None:
        for position, record in reversed(self._kept.records.items()):
            return FollowPlace(position, record.id)
        return None

    async def mark(self) -> object:
        return await self.end()
