"""The contract suite: what every backend must do, whatever keeps its records."""

import asyncio
from collections.abc import Iterator
from dataclasses import fields
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum
from itertools import product
from typing import Any

import pytest

from async_history import (
    CursorGone,
    Event,
    HistoryClosed,
    HistoryConflict,
    HistoryRecord,
    IdConflict,
    InvalidInput,
    Message,
)
from tests.conftest import OpenStore
from tests.patience import LONG_S

pytestmark = pytest.mark.versions

MEM0_KEYS = [
    *("id", "memory_id", "old_memory", "new_memory", "event", "created_at", "updated_at"),
    *("is_deleted", "actor_id", "role"),
]


class TestEveryBackend:
    async def test_add_gives_the_record_back(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            record = await history.add_history("m", None, "tea", "ADD", actor_id="a", role="user")
        assert (record.memory_id, record.old_memory, record.new_memory) == ("m", None, "tea")
        assert record.event is Event.ADD
        assert (record.actor_id, record.role, record.is_deleted) == ("a", "user", False)
        assert record.id[14] == "7", "a missing id becomes a UUIDv7"
        assert record.created_at is not None
        assert record.updated_at is None
        assert record.occurred_at == datetime.fromisoformat(record.created_at)
        assert record.occurred_at.utcoffset() == timedelta(0)
        assert list(record.as_dict()) == MEM0_KEYS
        assert type(record.as_dict()["event"]) is str

    async def test_delete_is_marked_deleted(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            deleted = await history.add_history("m", "tea", None, Event.DELETE)
            undeleted = await history.add_history("m", "tea", None, "DELETE", is_deleted=0)
        assert deleted.is_deleted is True
        assert undeleted.is_deleted is False

    async def test_batch_gives_its_records_back(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            records = await history.batch_add_history(
                [{"memory_id": "m", "new_memory": str(n), "event": "ADD"} for n in range(3)]
            )
            assert await history.batch_add_history([]) == []
        assert [record.new_memory for record in records] == ["0", "1", "2"]

    async def test_messages_keep_the_last_ten_in_order(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            await history.save_messages(
                [{"role": "user", "content": str(n)} for n in range(1, 13)], "scope"
            )
            kept = await history.get_last_messages("scope")
            assert [message.content for message in kept] == [str(n) for n in range(3, 13)]
            assert [m.content for m in await history.get_last_messages("scope", 1)] == ["12"]
            assert await history.get_last_messages("scope", limit=0) == []
            assert await history.get_last_messages("another") == []
            await history.save_messages([Message("assistant", "13", name="bot")], "scope")
            await history.save_messages([], "scope")
            last = (await history.get_last_messages("scope"))[-2:]
        assert [m.content for m in last] == ["12", "13"]
        assert list(last[1].as_dict()) == ["role", "content", "name", "created_at"]
        assert last[1].name == "bot"

    async def test_a_message_keeps_whether_it_is_json(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            await history.save_messages(
                [Message("user", '["a"]', is_json=True), Message("user", '["a"]')], "scope"
            )
            kept = await history.get_last_messages("scope")
            assert [message.is_json for message in kept] == [True, False]
            await history.save_messages(kept, "another")
            again = await history.get_last_messages("another")
            assert [message.is_json for message in again] == [True, False]

    async def test_reset_empties_and_goes_on(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            await history.add_history("m", None, "tea", "ADD")
            await history.save_messages([{"role": "user", "content": "x"}], "scope")
            await history.reset()
            assert await history.get_history("m") == []
            assert await history.get_last_messages("scope") == []
            await history.add_history("m", None, "coffee", "ADD")

    async def test_closing_twice_and_at_once_is_closing_once(self, open_store: OpenStore) -> None:
        history = await open_store()
        await asyncio.gather(*(history.aclose() for _ in range(5)))
        await history.aclose()
        history.close()

    async def test_close_returns_at_once_on_the_loop(self, open_store: OpenStore) -> None:
        history = await open_store()
        adding = [asyncio.create_task(history.add_history("m", None, "x", "ADD")) for _ in "123"]
        await asyncio.sleep(0)
        history.close()
        with pytest.raises(HistoryClosed):
            await history.add_history("m", None, "late", "ADD")
        await asyncio.gather(*adding)
        await history.aclose()

    async def test_close_from_another_thread_waits(self, open_store: OpenStore) -> None:
        history = await open_store()
        await asyncio.to_thread(history.close)
        with pytest.raises(HistoryClosed):
            await history.get_history("m")

    async def test_unopened_and_closed_managers_say_so(self, open_store: OpenStore) -> None:
        history = open_store()
        with pytest.raises(HistoryClosed, match="not open yet"):
            await history.add_history("m", None, "x", "ADD")
        async with history:
            pass
        for call in (
            history.add_history("m", None, "x", "ADD"),
            history.batch_add_history([{"memory_id": "m", "event": "ADD"}]),
            history.get_history("m"),
            history.save_messages([{"role": "user"}], "s"),
            history.get_last_messages("s"),
            history.stats(),
            history.reset(),
            history.count_history(),
        ):
            with pytest.raises(HistoryClosed, match="closed"):
                await call
        with pytest.raises(HistoryClosed, match="closed"):
            history.query_history()
        with pytest.raises(HistoryClosed, match="once"):
            await history

    async def test_stats_count(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            await history.add_history("m", None, "x", "ADD")
            stats = await history.stats()
        assert stats.store
        if stats.writer is not None:
            assert stats.writer.acked_records == 1
            assert stats.writer.batches == 1
            assert stats.writer.queued_records == 0

    @pytest.mark.parametrize(
        ("field", "value", "words"),
        [
            ("memory_id", None, "memory_id must be text"),
            ("memory_id", 7, "memory_id must be text, not int"),
            ("memory_id", "", "memory_id must not be empty"),
            ("old_memory", b"x", "old_memory must be text"),
            ("new_memory", ["x"], "new_memory must be text, not list"),
            ("new_memory", "a\0b", "new_memory holds a NUL"),
            ("new_memory", "a\ud800b", "new_memory holds a lone surrogate at position 1"),
            ("event", "MERGE", "event must be ADD, UPDATE or DELETE"),
            ("event", None, "event must be ADD, UPDATE or DELETE"),
            ("event", 1, "event must be"),
            ("created_at", "yesterday", "created_at must be a datetime or an ISO 8601 text"),
            ("created_at", "20251120", "created_at must be"),
            ("updated_at", 1735689600.5, "updated_at must be text"),
            ("is_deleted", 2, "is_deleted must be a bool"),
            ("is_deleted", "yes", "is_deleted must be a bool"),
            ("actor_id", 5, "actor_id must be text"),
            ("role", "\udfff", "role holds a lone surrogate"),
            ("id", "", "id must not be empty"),
            ("id", 3, "id must be text"),
        ],
    )
    async def test_bad_values_are_refused_by_name(
        self, open_store: OpenStore, field: str, value: object, words: str
    ) -> None:
        good = {"memory_id": "m", "old_memory": None, "new_memory": "x", "event": "UPDATE"}
        bad = good | {field: value}
        async with open_store() as history:
            with pytest.raises(InvalidInput, match=words):
                await history.add_history(**bad)  # type: ignore[arg-type]
            if field != "is_deleted" and value is not None:
                with pytest.raises(InvalidInput, match=f"record 1: {words}"):
                    await history.batch_add_history([good, bad, good])
            assert await history.get_history("m") == []

    async def test_bad_items_and_arguments(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            with pytest.raises(InvalidInput, match="'colour' is no column"):
                await history.batch_add_history([{"memory_id": "m", "event": "ADD", "colour": 1}])
            with pytest.raises(InvalidInput, match="record 0: must be a HistoryRecord or a map"):
                await history.batch_add_history(["x"])  # type: ignore[list-item]
            with pytest.raises(InvalidInput, match="event is missing"):
                await history.batch_add_history([{"memory_id": "m"}])
            with pytest.raises(InvalidInput, match="if_latest must be a HistoryRecord"):
                await history.batch_add_history([], if_latest={"id": "id"})  # type: ignore[arg-type]
            with pytest.raises(InvalidInput, match="message 0: content must be text"):
                await history.save_messages([{"role": "user", "content": ["x"]}], "s")
            with pytest.raises(InvalidInput, match="message 0: must be a mapping"):
                await history.save_messages(["x"], "s")  # type: ignore[list-item]
            with pytest.raises(InvalidInput, match="session_scope must not be empty"):
                await history.save_messages([], "")
            with pytest.raises(InvalidInput, match="limit"):
                await history.get_last_messages("s", -1)
            with pytest.raises(InvalidInput, match="page_size"):
                history.query_history(page_size=0)
            with pytest.raises(InvalidInput, match="time zone"):
                history.query_history(since=datetime(2026, 1, 1))  # noqa: DTZ001 - the point
            with pytest.raises(InvalidInput, match="order"):
                history.query_history(order="random")  # type: ignore[arg-type]
            with pytest.raises(InvalidInput, match="event"):
                history.query_history(event="MERGE")
            with pytest.raises(InvalidInput, match="text must not be empty"):
                history.query_history(text="")
            with pytest.raises(InvalidInput, match="memory_id must be text, not int"):
                history.query_history(memory_id=["m", 1])  # type: ignore[list-item]
            with pytest.raises(InvalidInput, match="memory_id must be text or several"):
                await history.count_history(memory_id=1)  # type: ignore[arg-type]
            for text in ("", "x", "bm9uZQ", "WzEsMl0"):
                with pytest.raises(InvalidInput, match="not a cursor"):
                    history.query_history(after=text)


class TestBackendsThatKeep:
    async def test_history_is_in_the_order_of_recording(
        self, open_keeping_store: OpenStore
    ) -> None:
        """Timestamps order nothing: clocks step back, and dates are missing."""
        stamps = ["2026-11-20T12:00:00+00:00", "2026-11-20T09:00:00+00:00", None]
        async with open_keeping_store() as history:
            for n, stamp in enumerate(stamps):
                await history.add_history("m", str(n), str(n + 1), "UPDATE", updated_at=stamp)
                await history.add_history("other", None, str(n), "ADD")
            records = await history.get_history("m")
        assert [record.old_memory for record in records] == ["0", "1", "2"]

    async def test_each_of_a_crowd_gets_the_history_it_asked_for(
        self, open_keeping_store: OpenStore
    ) -> None:
        names = [f"m{n}" for n in range(150)] + ["a,b", '["m1"]', "é", "M1", "m1 "]
        asked = [*names, "unknown", *names]
        async with open_keeping_store() as history:
            for way in ("ADD", "UPDATE"):
                await asyncio.gather(
                    *(history.add_history(name, None, f"{way} {name}", way) for name in names)
                )
            found = await asyncio.gather(*map(history.get_history, asked))
        for name, records in zip(asked, found, strict=True):
            texts = [] if name == "unknown" else [f"ADD {name}", f"UPDATE {name}"]
            assert [record.new_memory for record in records] == texts

    async def test_a_crowd_that_reads_while_it_is_closed(
        self, open_keeping_store: OpenStore
    ) -> None:
        async with open_keeping_store() as history:
            added = await history.add_history("m", None, "x", "ADD")
            reading = [asyncio.create_task(history.get_history("m")) for _ in range(200)]
            await asyncio.sleep(0)
        async with asyncio.timeout(LONG_S):
            found = await asyncio.gather(*reading, return_exceptions=True)
        assert [one for one in found if one != [added] and not isinstance(one, HistoryClosed)] == []

    @pytest.mark.parametrize(
        "text",
        ["", "x" * 16_000_000, "\U0001f9e0 é ‏ 中 \U0010ffff \ue000 ﷐", "'; DROP TABLE history;--"],
        ids=["empty", "16 MB", "planes", "SQL"],
    )
    async def test_text_comes_back_to_the_letter(
        self, open_keeping_store: OpenStore, text: str
    ) -> None:
        async with open_keeping_store() as history:
            await history.add_history(text[:50] or "m", text, text, "UPDATE", actor_id=text[:99])
            (record,) = await history.get_history(text[:50] or "m")
            await history.save_messages([{"role": "user", "content": text}], text[:50] or "m")
            (message,) = await history.get_last_messages(text[:50] or "m")
        assert record.old_memory == text
        assert record.new_memory == text
        assert record.actor_id == text[:99]
        assert message.content == text

    @pytest.mark.parametrize(
        ("given", "stored", "instant"),
        [
            ("2026-11-20T09:41:15", None, "2026-11-20T09:41:15+00:00"),
            ("2026-11-20 09:41:15.123456", None, "2026-11-20T09:41:15.123456+00:00"),
            ("2026-11-20T09:41:15.5-07:00", None, "2026-11-20T16:41:15.5+00:00"),
            ("2026-11-20T09:41:15Z", None, "2026-11-20T09:41:15+00:00"),
            ("0001-01-01T00:00:00+14:00", None, "0001-01-01T00:00:00+14:00"),
            ("2026-11-20", None, "2026-11-20T00:00:00+00:00"),
            (
                datetime(2026, 11, 20, 9, tzinfo=timezone(timedelta(hours=8))),
                "2026-11-20T09:00:00+08:00",
                "2026-11-20T01:00:00+00:00",
            ),
            (
                datetime(2026, 11, 20, 9),  # noqa: DTZ001 - naive on purpose
                "2026-11-20T09:00:00",
                "2026-11-20T09:00:00+00:00",
            ),
        ],
    )
    async def test_times_are_kept_to_the_letter(
        self,
        open_keeping_store: OpenStore,
        given: str | datetime,
        stored: str | None,
        instant: str,
    ) -> None:
        async with open_keeping_store() as history:
            written = await history.add_history("m", None, "x", "ADD", created_at=given)
            (read,) = await history.get_history("m")
        assert read == written
        assert read.created_at == (stored or given)
        assert read.occurred_at == written.occurred_at == datetime.fromisoformat(instant)

    async def test_a_text_may_be_a_member_of_an_enum(self, open_keeping_store: OpenStore) -> None:
        """Its value counts, wherever a text is taken: `str()` of it would be its name."""
        async with open_keeping_store() as history:
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

    async def test_repeated_id_with_the_same_content_is_the_same_record(
        self, open_keeping_store: OpenStore
    ) -> None:
        async with open_keeping_store() as history:
            first = await history.add_history("m", None, "x", "ADD", id="one")
            again = await history.add_history("m", None, "x", "ADD", id="one")
            assert again == first
            assert (await history.batch_add_history([first, first])) == [first, first]
            assert await history.get_history("m") == [first]

    @pytest.mark.parametrize(
        "other",
        [
            {"new_memory": "y"},
            {"memory_id": "n"},
            {"event": "UPDATE"},
            {"created_at": "2020-01-01T00:00:00"},
            {"is_deleted": True},
            {"actor_id": "b"},
            {"role": "system"},
        ],
    )
    async def test_repeated_id_with_other_content_is_a_conflict(
        self, open_keeping_store: OpenStore, other: dict[str, object]
    ) -> None:
        record: dict[str, object] = {
            "id": "one",
            "memory_id": "m",
            "new_memory": "x",
            "event": "ADD",
        }
        async with open_keeping_store() as history:
            (first,) = await history.batch_add_history([record])
            new: dict[str, object] = {"memory_id": "m", "event": "ADD", "new_memory": "never"}
            for batch in ([new, record | other], [record | other, new]):
                with pytest.raises(IdConflict, match="one"):
                    await history.batch_add_history(batch)
            with pytest.raises(IdConflict):
                await history.batch_add_history([{**new, "id": "t"}, {**new, **other, "id": "t"}])
            assert await history.get_history("m") == [first]

    async def test_a_conflict_costs_the_neighbours_nothing(
        self, open_keeping_store: OpenStore
    ) -> None:
        async with open_keeping_store() as history:
            await history.add_history("m", None, "x", "ADD", id="taken")
            results = await asyncio.gather(
                *(
                    history.add_history(
                        "m", None, str(n), "UPDATE", id="taken" if n % 5 == 2 else None
                    )
                    for n in range(20)
                ),
                return_exceptions=True,
            )
            kept = [str(n) for n in range(20) if n % 5 != 2]
            assert [r.new_memory for r in (await history.get_history("m"))[1:]] == kept
            assert [type(r) for r in results].count(IdConflict) == 4
            writer = (await history.stats()).writer
            assert writer is not None
            assert writer.batches <= 3

    async def test_if_latest_guards_against_a_change_meanwhile(
        self, open_keeping_store: OpenStore
    ) -> None:
        async with open_keeping_store() as history:
            first = await history.add_history("m", None, "x", "ADD")
            update = {"memory_id": "m", "old_memory": "x", "event": "UPDATE"}
            results = await asyncio.gather(
                *(
                    history.batch_add_history([{**update, "new_memory": str(n)}], if_latest=first)
                    for n in range(5)
                ),
                return_exceptions=True,
            )
            assert [isinstance(result, list) for result in results] == [True, *[False] * 4]
            assert all(isinstance(result, HistoryConflict) for result in results[1:])
            assert len(await history.get_history("m")) == 2
            assert isinstance(results[0], list)
            (won,) = results[0]
            assert await history.batch_add_history([won], if_latest=first) == [won]
            with pytest.raises(HistoryConflict):
                await history.batch_add_history(
                    [{**update, "new_memory": "z"}],
                    if_latest=HistoryRecord("nobody", "unknown", None, None, "ADD"),
                )

    async def test_a_large_batch_is_whole_and_in_order(self, open_keeping_store: OpenStore) -> None:
        async with open_keeping_store() as history:
            items = [
                {"memory_id": f"m{n % 7}", "new_memory": str(n), "event": "UPDATE"}
                for n in range(3_000)
            ]
            await history.batch_add_history(items)
            seen = [record.new_memory async for record in history.query_history(page_size=700)]
            assert seen == [str(n) for n in range(3_000)]
            some = [record.new_memory for record in await history.get_history("m3")]
            assert some == [str(n) for n in range(3, 3_000, 7)]

    async def test_order_of_calls_is_the_order_of_a_memory(
        self, open_keeping_store: OpenStore
    ) -> None:
        async with open_keeping_store() as history:
            await asyncio.gather(
                *(history.add_history(f"m{n % 3}", None, str(n), "UPDATE") for n in range(2_000))
            )
            for m in range(3):
                texts = [record.new_memory for record in await history.get_history(f"m{m}")]
                assert texts == [str(n) for n in range(m, 2_000, 3)]


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
    """A text that `str()` makes another of."""

    def __str__(self) -> str:
        return "its name"


def all_plain(stored: list[Any]) -> bool:
    """Whether all that is text in records, messages and values is `str` itself, or our Event."""

    def values(one: Any) -> Iterator[Any]:
        if isinstance(one, HistoryRecord | Message):
            yield from (getattr(one, field.name) for field in fields(one))
        else:
            yield one

    found = [value for one in stored for value in values(one)]
    return all(type(value) in (str, Event) for value in found if isinstance(value, str))


def matches(
    record: HistoryRecord, *, memory_id: Any = None, text: str | None = None, **columns: Any
) -> bool:
    """What a filter means, said once more."""
    if isinstance(memory_id, str):
        memory_id = [memory_id]
    return (
        (memory_id is None or record.memory_id in memory_id)
        and (text is None or any(text in (t or "") for t in (record.old_memory, record.new_memory)))
        and all(getattr(record, name) == value for name, value in columns.items())
    )


class TestQueries:
    async def test_filters_directions_and_pages(self, open_keeping_store: OpenStore) -> None:
        start = datetime(2026, 1, 1, tzinfo=UTC)
        async with open_keeping_store() as history:
            records = await history.batch_add_history(
                [
                    {
                        "memory_id": f"m{n % 4}",
                        "new_memory": str(n),
                        "event": ("ADD", "UPDATE", "DELETE")[n % 3],
                        "created_at": start + timedelta(hours=n),
                        "updated_at": start + timedelta(hours=n),
                        "actor_id": f"a{n % 5}",
                        "role": ("user", "assistant")[n % 2],
                    }
                    for n in range(60)
                ]
            )
            filters: tuple[dict[str, Any], ...] = (
                {},
                {"memory_id": "m1"},
                {"actor_id": "a2"},
                {"role": "user"},
                {"event": Event.DELETE},
                {"memory_id": "m1", "event": "UPDATE", "role": "assistant"},
                {"memory_id": "nobody"},
                {"memory_id": ["m2", "m0", "m2", "nobody"]},
                {"memory_id": {"m2", "m0"}, "actor_id": "a1", "event": "ADD"},
                {"memory_id": []},
                {"text": "5"},
                {"text": "5", "memory_id": "m1"},
            )
            for wanted in filters:
                expected = [r for r in records if matches(r, **wanted)]
                assert await history.count_history(**wanted) == len(expected)
                for page_size in (1, 7, 500):
                    query = history.query_history(**wanted, page_size=page_size)
                    assert [r async for r in query] == expected
                    assert [r async for r in query] == expected, "a query can be walked again"
                    newest = history.query_history(
                        **wanted,
                        order="newest",
                        page_size=page_size,
                    )
                    assert [r async for r in newest] == expected[::-1]
            since, until = start + timedelta(hours=10), start + timedelta(hours=20)
            assert await history.count_history(since=since, until=until) == 10
            window = [r async for r in history.query_history(since=since, until=until, page_size=3)]
            assert window == records[10:20]
            late = [r async for r in history.query_history(since=until, memory_id="m0")]
            assert late == [r for r in records[20:] if r.memory_id == "m0"]

    async def test_time_compares_by_instant(self, open_keeping_store: OpenStore) -> None:
        times = [
            "2026-01-01T00:00:00.999999+00:00",
            "2026-01-01T02:00:01+02:00",
            "2025-12-31T17:00:02-07:00",
            "2026-01-01 00:00:03",
        ]
        async with open_keeping_store() as history:
            for time in times:
                await history.add_history("m", None, time, "ADD", created_at=time)
            since = datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC)
            found = history.query_history(since=since, until=since + timedelta(seconds=2))
            assert [r.new_memory async for r in found] == times[1:3]

    async def test_text_is_sought_to_the_letter(self, open_keeping_store: OpenStore) -> None:
        texts = ["100% wool", "100 wool", "Über_Tee", "über_tee", "a'b", "a\\b", None]
        async with open_keeping_store() as history:
            for text in texts:
                await history.add_history("m", text, None, "DELETE")
            for sought in ("%", "0% w", "Ü", "_", "'", "\\", "tee", "nothing"):
                found = [r.old_memory async for r in history.query_history(text=sought)]
                assert found == [text for text in texts if sought in (text or "")]

    async def test_the_first_and_the_last_instants(self, open_keeping_store: OpenStore) -> None:
        ends = ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999999-14:00"]
        since = datetime(1, 1, 2, tzinfo=timezone(timedelta(hours=14)))
        until = datetime(9999, 12, 30, tzinfo=timezone(timedelta(hours=-14)))
        async with open_keeping_store() as history:
            for end in ends:
                await history.add_history("m", None, end, "ADD", created_at=end)
            assert [r.new_memory async for r in history.query_history(until=since)] == ends[:1]
            assert [r.new_memory async for r in history.query_history(since=until)] == ends[1:]
            assert await history.count_history(since=since, until=until) == 0

    async def test_a_limit_bounds_all_pages(self, open_keeping_store: OpenStore) -> None:
        """Of one memory, of several (whose pages are read ahead) and of all, either way round."""
        async with open_keeping_store() as history:
            records = await history.batch_add_history(
                [
                    {"memory_id": f"m{n % 3}", "event": "ADD", "new_memory": str(n)}
                    for n in range(40)
                ]
            )
            for memory_id, limit, page_size, order in product(
                (None, "m1", ["m0", "m1", "m2"]),
                (0, 1, 7, 13, 39, 40, 41, None),
                (1, 3, 500),
                ("oldest", "newest"),
            ):
                wanted: dict[str, Any] = {"memory_id": memory_id, "order": order}
                expected = [r for r in records if memory_id != "m1" or r.memory_id == "m1"]
                expected = expected[:: 1 if order == "oldest" else -1]
                query = history.query_history(**wanted, limit=limit, page_size=page_size)
                pages = [page async for page in query.pages()]
                found = [record for page in pages for record in page.records]
                assert found == expected[:limit]
                assert all(len(page.records) <= page_size for page in pages)
                assert [record async for record in query] == found
                after = pages[-1].cursor if pages else None
                rest = history.query_history(**wanted, after=after, limit=2)
                assert [record async for record in rest] == expected[len(found) :][:2]

    async def test_a_cursor_continues_with_what_comes_later(
        self, open_keeping_store: OpenStore
    ) -> None:
        async with open_keeping_store() as history:
            for n in range(5):
                await history.add_history("m", None, str(n), "UPDATE")
            pages = [page async for page in history.query_history(page_size=2).pages()]
            assert [[r.new_memory for r in page.records] for page in pages] == [
                ["0", "1"],
                ["2", "3"],
                ["4"],
            ]
            await history.add_history("m", None, "5", "UPDATE")
            later = [r.new_memory async for r in history.query_history(after=pages[-1].cursor)]
            assert later == ["5"]
            before = history.query_history(after=pages[1].cursor, order="newest")
            assert [r.new_memory async for r in before] == ["2", "1", "0"]

    async def test_a_cursor_says_when_its_place_is_gone(
        self, open_keeping_store: OpenStore
    ) -> None:
        async with open_keeping_store() as history:
            for n in range(3):
                await history.add_history("m", None, str(n), "UPDATE")
            (page,) = [page async for page in history.query_history().pages()]
            await history.reset()
            with pytest.raises(CursorGone):
                [r async for r in history.query_history(after=page.cursor)]
            for n in range(3):
                await history.add_history("m", None, str(n), "UPDATE")
            with pytest.raises(CursorGone):
                [r async for r in history.query_history(after=page.cursor)]

    async def test_a_copy_says_when_its_place_is_gone(self, open_keeping_store: OpenStore) -> None:
        async with open_keeping_store() as history:
            for n in range(3):
                await history.add_history("m", None, str(n), "UPDATE")
            read = await history.store.reader.rows(None, 2)
            assert len((await history.store.reader.rows(read.place, 2)).rows) == 1
            await history.reset()
            with pytest.raises(CursorGone):
                await history.store.reader.rows(read.place, 2)
            await history.batch_add_history(
                [{"memory_id": "m", "event": "UPDATE"} for _ in range(9)]
            )
            with pytest.raises(CursorGone):
                await history.store.reader.rows(read.place, 2)

    async def test_an_empty_history_has_no_place(self, open_keeping_store: OpenStore) -> None:
        async with open_keeping_store() as history:
            (page,) = [page async for page in history.query_history().pages()]
        assert (list(page.records), page.cursor) == ([], None)
