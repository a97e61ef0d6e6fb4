"""States at an instant, records without a time, and the log of erasures."""

from datetime import UTC, datetime, timedelta

from async_history import HistoryRecord
from async_history.backend import records_to_copy
from async_history.testing.fixtures import Cases, OpenStore

START = datetime(2026, 1, 1, tzinfo=UTC)


class StateCases(Cases):
    """All memories at an instant, records without a time, the log of erasures, rows of copies."""

    async def test_all_memories_at_an_instant_equal_each_ones_state(
        self, open_store: OpenStore
    ) -> None:
        async with open_store() as history:
            await history.batch_add_history(
                [
                    {
                        "memory_id": f"m{n % 5}",
                        "new_memory": str(n),
                        "event": ("ADD", "UPDATE", "DELETE")[n % 3],
                        "created_at": START + timedelta(hours=n),
                        "updated_at": START + timedelta(hours=n),
                    }
                    for n in range(30)
                ]
            )
            for hours in range(-1, 31, 4):
                when = START + timedelta(hours=hours)
                each = [await history.memory_at(f"m{n}", when) for n in range(5)]
                found = [record async for record in history.memories_at(when)]
                assert {record.id for record in found} == {one.id for one in each if one}
                assert len(found) == len(each) - each.count(None)

    async def test_a_record_without_a_time_has_the_time_of_the_one_before(
        self, open_store: OpenStore
    ) -> None:
        """Old histories have such records. They come by copying."""
        dated = HistoryRecord("1", "m", None, "a", "ADD", START.isoformat())
        undated = HistoryRecord("2", "m", "a", "b", "UPDATE", time_before=START)
        alone = HistoryRecord("3", "n", None, "x", "ADD")
        async with open_store() as history:
            await history.store.writer.submit(records_to_copy([dated, alone, undated], 100))
            assert await history.count_history(since=START) == 2
            for wanted in ("m", None):
                query = history.query_history(memory_id=wanted, since=START)
                assert [record async for record in query] == [dated, undated]
            times = await history.store.reader.times_before(["2", "3"])
            assert (times.get("2"), times.get("3")) == (START, None)
            assert {one.id async for one in history.memories_at(START)} == {"2", "3"}
            later = START + timedelta(days=1)
            assert (await history.prune(older_than=later, keep_last=0)).records == 2
            assert [record async for record in history.query_history()] == [alone]

    async def test_a_copied_record_without_a_time_has_the_time_of_the_one_before(
        self, open_store: OpenStore
    ) -> None:
        """The source does not know the time: in the same copy, in an earlier one, or never."""
        later = START + timedelta(days=1)
        told = [
            ("m", "ADD", START),
            ("m", "UPDATE", None),
            ("n", "ADD", None),
            ("n", "UPDATE", later),
            ("m", "DELETE", None),
            ("n", "UPDATE", None),
            ("alone", "DELETE", None),
        ]
        records = [
            HistoryRecord(
                str(number),
                memory_id,
                None,
                None,
                event,
                None if when is None or event != "ADD" else when.isoformat(),
                "yesterday" if when is None else when.isoformat(),
            )
            for number, (memory_id, event, when) in enumerate(told)
        ]
        expected = [START, START, None, later, START, later, None]
        for size in (1, 2, 3, len(records)):
            async with open_store() as history:
                await history.reset()
                for begin in range(0, len(records), size):
                    page = records[begin : begin + size]
                    for _ in range(2):  # the second finds them there
                        await history.store.writer.submit(records_to_copy(page, 100))
                found = [record async for record in history.query_history()]
                assert found == records
                assert [record.occurred_at for record in found] == expected
                for memory_id in ("m", "n", "alone"):
                    of_memory = [r.occurred_at for r in found if r.memory_id == memory_id]
                    read = await history.get_history(memory_id)
                    assert [record.occurred_at for record in read] == of_memory
                assert await history.count_history(since=START) == 5
                assert {one.id async for one in history.memories_at(START)} == {"2"}

    async def test_erasures_stay_listed_after_a_reset(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            await history.add_history("m", None, "x", "ADD")
            report = await history.erase(memory_ids=["m"], reason="asked", vacuum=False)
            (erasure,) = await history.erasures()
            assert erasure.id == report.erasure_id
            assert (erasure.memory_ids, erasure.records, erasure.messages) == (("m",), 1, 0)
            assert erasure.reason == "asked"
            assert erasure.actor_sha256 is None
            assert erasure.finished_at is not None
            assert erasure.begun_at <= erasure.finished_at
            await history.reset()
            assert await history.erasures() == [erasure]

    async def test_rows_that_a_copy_reads(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            reader = history.store.reader
            assert await reader.newest() is None
            for scope in ("b", "a", "é", "Z"):
                await history.save_messages([{"role": "user", "content": "x"}], scope)
            assert list(await reader.scopes("", 3)) == ["Z", "a", "b"]
            assert list(await reader.scopes("b", 3)) == ["é"]
            positions = []
            for text in "123":
                await history.add_history("m", None, text, "UPDATE")
                positions.append(await reader.newest() or 0)
            assert positions == sorted(set(positions))
            read = await reader.rows(None, 2)
            assert [row[3] for row in read.rows] == ["1", "2"]
            assert not read.is_last
            read = await reader.rows(read.cursor, 2)
            assert [row[3] for row in read.rows] == ["3"]
            assert read.is_last
