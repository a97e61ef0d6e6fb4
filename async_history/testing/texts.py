"""Texts of subclasses of `str`, in every argument for text."""

from collections.abc import Iterator
from dataclasses import fields
from enum import Enum
from typing import Any

from async_history import Event, HistoryRecord, Message
from async_history.testing.fixtures import Cases, OpenStore


class Text(str, Enum):  # noqa: UP042 - StrEnum is shown by its value
    """As programs name roles and tenants: pydantic, llama_index."""

    MEMORY = "memory-1"
    OTHER = "other"
    OLD = "old"
    NEW = "new"
    UPDATE = "UPDATE"
    DELETE = "DELETE"
    TIME = "2026-11-20T09:41:15+00:00"
    ACTOR = "ann"
    ROLE = "user"
    ID = "id-1"
    SCOPE = "user_id=ann"
    REASON = "asked to"


class Named(str):
    """A text whose `str()` is another text."""

    def __str__(self) -> str:
        return "its name"


def all_plain(stored: list[Any]) -> bool:
    """Whether all texts in records, messages and values are plain `str`, or `Event`."""

    def values(one: Any) -> Iterator[Any]:
        if isinstance(one, HistoryRecord | Message):
            yield from (getattr(one, field.name) for field in fields(one))
        else:
            yield one

    found = [value for one in stored for value in values(one)]
    return all(type(value) in (str, Event) for value in found if isinstance(value, str))


class TextCases(Cases):
    """A text of another type is stored and returned as a plain `str`."""

    async def test_a_text_may_be_an_enum_member(self, open_store: OpenStore) -> None:
        """Its value is used in every argument: its `str()` would be its name."""
        async with open_store() as history:
            made = await history.add_history(
                *(Text.MEMORY, Text.OLD, Text.NEW, Text.UPDATE),
                created_at=Text.TIME,
                updated_at=Text.TIME,
                actor_id=Text.ACTOR,
                role=Text.ROLE,
                id=Text.ID,
            )
            (mapped,) = await history.batch_add_history(
                [{"memory_id": Text.MEMORY, "event": Text.DELETE, "role": Text.ROLE}]
            )
            (again,) = await history.batch_add_history([HistoryRecord(*made.as_dict().values())])
            built = HistoryRecord("1", Text.OTHER, None, Text.NEW, Text.UPDATE, None, Text.TIME)
            (built,) = await history.batch_add_history([built])
            assert again == made
            assert await history.get_history(Text.MEMORY) == [made, mapped]
            assert await history.get_history("memory-1") == [made, mapped]
            stored = [made, mapped, built, *await history.get_history(Text.MEMORY)]
            stored += await history.get_history("other")
            assert all_plain(stored)
            assert all_plain([value for one in stored for value in one.as_dict().values()])
            assert (made.role, made.actor_id, made.created_at) == ("user", "ann", Text.TIME.value)

            for wanted in (
                {"memory_id": Text.MEMORY, "role": Text.ROLE},
                {"memory_id": {Text.MEMORY}, "event": Text.UPDATE},
                {"actor_id": Text.ACTOR, "text": Text.OLD},
            ):
                assert made in [record async for record in history.query_history(**wanted)]
            page = await anext(aiter(history.query_history(page_size=1).pages()))
            left = [record async for record in history.query_history(after=Named(page.cursor))]
            assert left == [mapped, built]
            async for followed in history.follow(memory_id=Text.OTHER):
                assert followed == built
                break

            assert await history.memory_at(Text.MEMORY, 1) == made
            assert (await history.diff(Text.MEMORY, 1, 2)).after is None
            back = await history.restore(Text.MEMORY, to=1, actor_id=Text.ACTOR, role=Text.ROLE)
            assert all_plain([back])
            assert (back.memory_id, back.actor_id, back.role) == ("memory-1", "ann", "user")

            await history.save_messages(
                [{"role": Text.ROLE, "content": Text.NEW, "name": Text.ACTOR}], Text.SCOPE
            )
            (message,) = await history.get_last_messages(Text.SCOPE)
            assert [message] == await history.get_last_messages("user_id=ann")
            assert all_plain([message])
            assert (message.role, message.content, message.name) == ("user", "new", "ann")

            await history.erase(
                memory_ids=[Text.OTHER], session_scopes=[Text.SCOPE], reason=Text.REASON
            )
            assert [one.new_memory for one in await history.get_history("other")] == [None]
            assert await history.get_last_messages("user_id=ann") == []
            await history.erase(actor_id=Text.ACTOR, reason=Text.REASON)
            assert [one.actor_id for one in await history.get_history("memory-1")] == [None] * 3
