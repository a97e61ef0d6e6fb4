"""Returned records: exactly as given, in order, one for each id."""

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from typing import Final

import pytest

from async_history import HistoryClosed, HistoryConflict, HistoryRecord, IdConflict
from async_history.testing.fixtures import LONG_S, Cases, OpenStore

_TIMES: Final[tuple[tuple[str | datetime, str | None, str], ...]] = (
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
)
"""A time, the stored text if it differs, and the instant."""


class RecordCases(Cases):
    """Recording: exact, in order, repeated, refused."""

    async def test_history_is_in_the_order_of_recording(self, open_store: OpenStore) -> None:
        """Timestamps do not affect the order: clocks step back, and dates are missing."""
        stamps = ["2026-11-20T12:00:00+00:00", "2026-11-20T09:00:00+00:00", None]
        async with open_store() as history:
            for n, stamp in enumerate(stamps):
                await history.add_history("m", str(n), str(n + 1), "UPDATE", updated_at=stamp)
                await history.add_history("other", None, str(n), "ADD")
            records = await history.get_history("m")
        assert [record.old_memory for record in records] == ["0", "1", "2"]

    async def test_many_concurrent_reads_of_histories(self, open_store: OpenStore) -> None:
        names = [f"m{n}" for n in range(150)] + ["a,b", '["m1"]', "é", "M1", "m1 "]
        asked = [*names, "unknown", *names]
        async with open_store() as history:
            for way in ("ADD", "UPDATE"):
                await asyncio.gather(
                    *(history.add_history(name, None, f"{way} {name}", way) for name in names)
                )
            found = await asyncio.gather(*map(history.get_history, asked))
        for name, records in zip(asked, found, strict=True):
            texts = [] if name == "unknown" else [f"ADD {name}", f"UPDATE {name}"]
            assert [record.new_memory for record in records] == texts
        assert len(set(map(id, found))) == len(found), "each caller has its own list"

    async def test_many_concurrent_reads_of_states(self, open_store: OpenStore) -> None:
        names = [f"m{n}" for n in range(90)] + ["a,b", '["m1"]', "é", "M1", "m1 "]
        async with open_store() as history:
            for text in ("old", "new"):
                await history.batch_add_history(
                    {"memory_id": name, "new_memory": f"{text} {name}", "event": "UPDATE"}
                    for name in names
                )
            later = datetime.now(UTC) + timedelta(hours=1)
            asked = [(name, when) for name in [*names, "m1"] for when in (1, later, 2)]
            found = await asyncio.gather(*(history.memory_at(*one) for one in asked))
            assert await history.memory_at("unknown", later) is None
        texts = [None if one is None else one.new_memory for one in found]
        assert texts == [f"{'old' if when == 1 else 'new'} {name}" for name, when in asked]

    async def test_many_concurrent_reads_during_close(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            added = await history.add_history("m", None, "x", "ADD")
            reading = [asyncio.create_task(history.get_history("m")) for _ in range(200)]
            await asyncio.sleep(0)
        async with asyncio.timeout(LONG_S):
            found = await asyncio.gather(*reading, return_exceptions=True)
        assert [one for one in found if one != [added] and not isinstance(one, HistoryClosed)] == []

    async def test_texts_are_returned_exactly(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            for text in (
                *("", "x" * 16_000_000, "'; DROP TABLE history;--"),
                "\U0001f9e0 é ‏ 中 \U0010ffff \ue000 ﷐",
            ):
                memory_id = text[:50] or "m"
                await history.add_history(memory_id, text, text, "UPDATE", actor_id=text[:99])
                (record,) = await history.get_history(memory_id)
                await history.save_messages([{"role": "user", "content": text}], memory_id)
                (message,) = await history.get_last_messages(memory_id)
                assert record.old_memory == text
                assert record.new_memory == text
                assert record.actor_id == text[:99]
                assert message.content == text

    async def test_times_are_returned_exactly(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            for number, (given, stored, instant) in enumerate(_TIMES):
                memory_id = f"m{number}"
                written = await history.add_history(memory_id, None, "x", "ADD", created_at=given)
                (read,) = await history.get_history(memory_id)
                assert read == written
                assert read.created_at == (stored or given)
                occurred = datetime.fromisoformat(instant)
                assert read.occurred_at == written.occurred_at == occurred

    async def test_a_repeated_id_with_the_same_content_is_the_same_record(
        self, open_store: OpenStore
    ) -> None:
        async with open_store() as history:
            first = await history.add_history("m", None, "x", "ADD", id="one")
            again = await history.add_history("m", None, "x", "ADD", id="one")
            assert again == first
            assert (await history.batch_add_history([first, first])) == [first, first]
            assert await history.get_history("m") == [first]

    async def test_a_repeated_id_with_other_content_is_a_conflict(
        self, open_store: OpenStore
    ) -> None:
        others: tuple[dict[str, object], ...] = (
            {"new_memory": "y"},
            {"memory_id": "n"},
            {"event": "UPDATE"},
            {"created_at": "2020-01-01T00:00:00"},
            {"is_deleted": True},
            {"actor_id": "b"},
            {"role": "system"},
        )
        record: dict[str, object] = {
            "id": "one",
            "memory_id": "m",
            "new_memory": "x",
            "event": "ADD",
        }
        new: dict[str, object] = {"memory_id": "m", "event": "ADD", "new_memory": "never"}
        async with open_store() as history:
            (first,) = await history.batch_add_history([record])
            for other in others:
                for batch in ([new, record | other], [record | other, new]):
                    with pytest.raises(IdConflict, match="one"):
                        await history.batch_add_history(batch)
                twice: list[dict[str, object]] = [{**new, "id": "t"}, {**new, **other, "id": "t"}]
                with pytest.raises(IdConflict):
                    await history.batch_add_history(twice)
                assert await history.get_history("m") == [first]
            assert await history.count_history() == 1

    async def test_a_conflict_fails_only_its_call(self, open_store: OpenStore) -> None:
        async with open_store() as history:
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

    async def test_if_latest_refuses_after_a_change_by_another(self, open_store: OpenStore) -> None:
        async with open_store() as history:
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

    async def test_a_large_batch_is_whole_and_in_order(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            items = [
                {"memory_id": f"m{n % 7}", "new_memory": str(n), "event": "UPDATE"}
                for n in range(3_000)
            ]
            await history.batch_add_history(items)
            seen = [record.new_memory async for record in history.query_history(page_size=700)]
            assert seen == [str(n) for n in range(3_000)]
            some = [record.new_memory for record in await history.get_history("m3")]
            assert some == [str(n) for n in range(3, 3_000, 7)]

    async def test_a_memorys_records_are_in_the_order_of_the_calls(
        self, open_store: OpenStore
    ) -> None:
        async with open_store() as history:
            await asyncio.gather(
                *(history.add_history(f"m{n % 3}", None, str(n), "UPDATE") for n in range(2_000))
            )
            for m in range(3):
                texts = [record.new_memory for record in await history.get_history(f"m{m}")]
                assert texts == [str(n) for n in range(m, 2_000, 3)]
