"""The contract of every backend: results, refusals, and closing."""

import asyncio
from datetime import datetime, timedelta
from typing import Final

import pytest

from async_history import (
    Event,
    HistoryClosed,
    HistoryManager,
    InvalidInput,
    Message,
    StorageMissing,
)
from async_history.testing.fixtures import Cases, OpenStore

MEM0_KEYS = [
    *("id", "memory_id", "old_memory", "new_memory", "event", "created_at", "updated_at"),
    *("is_deleted", "actor_id", "role"),
]


_BAD_VALUES: Final = (
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
)
"""A field of a record, a value, and the expected message."""


class ContractCases(Cases):
    """Behaviour of every backend, also of one that stores nothing."""

    async def test_add_returns_the_record(self, open_store: OpenStore) -> None:
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

    async def test_a_delete_is_marked_deleted(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            deleted = await history.add_history("m", "tea", None, Event.DELETE)
            undeleted = await history.add_history("m", "tea", None, "DELETE", is_deleted=0)
        assert deleted.is_deleted is True
        assert undeleted.is_deleted is False

    async def test_a_batch_returns_its_records(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            records = await history.batch_add_history(
                [{"memory_id": "m", "new_memory": str(n), "event": "ADD"} for n in range(3)]
            )
            assert await history.batch_add_history([]) == []
        assert [record.new_memory for record in records] == ["0", "1", "2"]

    async def test_the_last_ten_messages_are_kept_in_order(self, open_store: OpenStore) -> None:
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

    async def test_a_message_remembers_whether_it_is_json(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            await history.save_messages(
                [Message("user", '["a"]', is_json=True), Message("user", '["a"]')], "scope"
            )
            kept = await history.get_last_messages("scope")
            assert [message.is_json for message in kept] == [True, False]
            await history.save_messages(kept, "another")
            again = await history.get_last_messages("another")
            assert [message.is_json for message in again] == [True, False]

    async def test_a_reset_empties_the_store_and_it_stays_usable(
        self, open_store: OpenStore
    ) -> None:
        async with open_store() as history:
            await history.add_history("m", None, "tea", "ADD")
            await history.save_messages([{"role": "user", "content": "x"}], "scope")
            await history.reset()
            assert await history.get_history("m") == []
            assert await history.get_last_messages("scope") == []
            await history.add_history("m", None, "coffee", "ADD")

    async def test_closing_is_idempotent_and_concurrent(self, open_store: OpenStore) -> None:
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

    async def test_unopened_and_closed_managers_refuse_calls(self, open_store: OpenStore) -> None:
        history = open_store()
        with pytest.raises(HistoryClosed, match="not open yet"):
            await history.add_history("m", None, "x", "ADD")
        async with history:
            pass
        await _check_refused(history)
        with pytest.raises(HistoryClosed, match="once"):
            await history

    async def test_a_closed_manager_does_not_ask_its_writer(
        self, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its writer may refuse everything, such as one of a file that was removed."""

        def refuse(_: object) -> None:
            raise StorageMissing("the file was removed")

        history = await open_store()
        monkeypatch.setattr(type(history.store.writer), "require_writable", refuse)
        history.close()
        await _check_refused(history)
        await history.aclose()
        await _check_refused(history)

    async def test_stats_count_what_was_written(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            await history.add_history("m", None, "x", "ADD")
            stats = await history.stats()
        assert stats.store
        if stats.writer is not None:
            assert stats.writer.acked_records == 1
            assert stats.writer.batches == 1
            assert stats.writer.queued_records == 0

    async def test_bad_values_are_refused_by_name(self, open_store: OpenStore) -> None:
        good = {"memory_id": "m", "old_memory": None, "new_memory": "x", "event": "UPDATE"}
        async with open_store() as history:
            for field, value, words in _BAD_VALUES:
                bad = good | {field: value}
                with pytest.raises(InvalidInput, match=words):
                    await history.add_history(**bad)  # type: ignore[arg-type]
                if field != "is_deleted" and value is not None:
                    with pytest.raises(InvalidInput, match=f"record 1: {words}"):
                        await history.batch_add_history([good, bad, good])
            assert await history.get_history("m") == []
            assert await history.count_history() == 0

    async def test_bad_items_and_arguments_are_refused(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            with pytest.raises(InvalidInput, match="'colour' is not a field"):
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
                history.query_history(since=datetime(2026, 1, 1))  # noqa: DTZ001 - that is the test
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


async def _check_refused(history: HistoryManager) -> None:
    """Check that a closed manager refuses its calls."""
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
    with pytest.raises(HistoryClosed, match="closed"):
        history.require_writable()
