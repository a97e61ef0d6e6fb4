"""Followers: every record once and in order, whatever happens."""

import asyncio

import pytest

from async_history import CursorGone, HistoryClosed, InvalidInput
from async_history.testing.fixtures import LONG_S, Cases, NewStore, OpenStore
from async_history.testing.followers import NEVER_S, SOON_S, Reading, add_many, first

PAGES = 4_203
"""Records of more than two pages."""


def numbers(first: int, behind: int) -> list[str]:
    return [str(n) for n in range(first, behind)]


class FollowCases(Cases):
    """Committed records, and later ones."""

    async def test_earlier_records_then_later_ones(self, open_store: OpenStore) -> None:
        """This manager's commits wake the follower: it does not poll here."""
        async with open_store() as history:
            await history.batch_add_history(add_many(numbers(0, PAGES)))
            async with Reading(history.follow(poll_interval_s=NEVER_S)) as reading:
                await reading.until(PAGES)
                for number in range(PAGES, PAGES + 20):
                    await history.add_history("m", None, str(number), "UPDATE", actor_id="a")
                    await reading.until(number + 1)
                await asyncio.gather(
                    *(history.add_history("m", None, f"late {n}", "UPDATE") for n in range(600))
                )
                texts = await reading.until(PAGES + 620)
            assert texts[: PAGES + 20] == numbers(0, PAGES + 20)
            stored = [record async for record in history.query_history()]
            assert reading.records == stored

    async def test_every_cursor_continues_after_its_record(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            await history.batch_add_history(add_many(numbers(0, 3)))
            for text in numbers(3, 6):
                await history.add_history("m", None, text, "UPDATE")
            await history.batch_add_history(add_many(numbers(6, PAGES)))
            following = history.follow()
            cursors = [following.cursor]
            assert cursors == [None]
            async for record in following:
                cursors.append(following.cursor)
                if record.new_memory == str(PAGES - 1):
                    break
            await history.add_history("m", None, str(PAGES), "UPDATE")
        assert len(set(cursors)) == PAGES + 1
        async with open_store() as history:
            if not await history.get_history("m"):
                return  # a store in memory ends with its manager
            for place in (0, 1, 2, 3, 5, 6, 1_999, 2_000, 2_001, 4_000, PAGES - 1, PAGES):
                left = PAGES + 1 - place
                found = await first(history.follow(after=cursors[place]), left)
                assert found == numbers(place, PAGES + 1)

    async def test_a_follower_of_one_memory(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            for part in range(4):
                await history.batch_add_history(add_many([f"o{n}" for n in range(900)], "others"))
                await history.batch_add_history(add_many(numbers(part * 600, part * 600 + 600)))
            following = history.follow(memory_id="m", poll_interval_s=SOON_S)
            assert await first(following, 2_350) == numbers(0, 2_350)
            again = history.follow(memory_id="m", after=following.cursor)
            assert await first(again, 50) == numbers(2_350, 2_400)
            async with Reading(again) as reading:
                before = again.cursor
                await history.batch_add_history(add_many(["x"], "others"))
                while again.cursor == before:  # noqa: ASYNC110 - nothing is yielded
                    await asyncio.sleep(0)
                await history.batch_add_history(add_many(["2400", "2401"]))
                assert await reading.until(2) == ["2400", "2401"]
            other = history.follow(memory_id="others", after=before)
            assert await first(other, 1) == ["x"]

    async def test_following_from_now_yields_only_new_records(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            nothing = await history.end_cursor()
            assert nothing is None
            await history.add_history("m", None, "0", "ADD")
            end = await history.end_cursor()
            await history.add_history("m", None, "1", "UPDATE")
            assert await first(history.follow(after=end), 1) == ["1"]
            assert await first(history.follow(after=nothing), 2) == ["0", "1"]
            async with Reading(history.follow(after=await history.end_cursor())) as reading:
                await history.add_history("m", None, "2", "UPDATE")
                assert await reading.until(1) == ["2"]

    async def test_a_follower_of_an_empty_history(self, open_store: OpenStore) -> None:
        async with (
            open_store() as history,
            Reading(history.follow(poll_interval_s=NEVER_S)) as all_,
            Reading(history.follow(memory_id="m", poll_interval_s=NEVER_S)) as one,
        ):
            await history.add_history("n", None, "0", "ADD")
            await history.add_history("m", None, "1", "ADD")
            assert await all_.until(2) == ["0", "1"]
            assert await one.until(1) == ["1"]

    async def test_a_slow_follower_delays_nothing_else(self, open_store: OpenStore) -> None:
        """It stops within a page; others and the writer continue, and it misses nothing."""
        async with open_store() as history:
            slow = history.follow()
            async with Reading(history.follow()) as fast:
                await history.batch_add_history(add_many(numbers(0, 10)))
                iterator = aiter(slow)
                assert (await anext(iterator)).new_memory == "0"
                for number in range(10, 5_000, 100):
                    await history.batch_add_history(add_many(numbers(number, number + 100)))
                assert await fast.until(5_010) == numbers(0, 5_010)
                rest = [(await anext(iterator)).new_memory for _ in range(5_009)]
            assert rest == numbers(1, 5_010)

    async def test_a_cancelled_follower_continues_at_its_record(
        self, open_store: OpenStore
    ) -> None:
        async with open_store() as history:
            following = history.follow(poll_interval_s=NEVER_S)
            found: list[str | None] = []
            for round_ in range(40):
                async with Reading(following) as reading:
                    adding = history.batch_add_history(
                        add_many(numbers(round_ * 5, round_ * 5 + 5))
                    )
                    if round_ % 2:
                        await adding
                        await asyncio.sleep(0)  # in the middle of a read, or before it
                    else:
                        await asyncio.gather(adding, reading.until(1))
                found += reading.texts
            found += await first(following, 200 - len(found))
            assert found == numbers(0, 200)

    async def test_records_of_another_manager_are_yielded(self, open_store: OpenStore) -> None:
        async with open_store() as history, open_store() as other:
            await other.add_history("m", None, "0", "ADD")
            if not await history.get_history("m"):
                return  # two databases in memory
            async with Reading(history.follow(poll_interval_s=SOON_S)) as reading:
                for number in range(1, 50):
                    await (other, history)[number % 2].add_history("m", None, str(number), "ADD")
                assert await reading.until(50) == numbers(0, 50)

    async def test_a_followers_cursor_of_another_store_raises(self, new_store: NewStore) -> None:
        """Even if that store has as many records, of the same memories."""
        async with new_store()() as history, new_store()() as other:
            for store in (history, other):
                await store.batch_add_history(add_many(numbers(0, 6)))
            follower = history.follow()
            await first(follower, 3)
            with pytest.raises(CursorGone):
                await first(other.follow(after=follower.cursor), 3)
            assert await first(history.follow(after=follower.cursor), 3) == numbers(3, 6)

    async def test_a_follower_and_a_reset(self, open_store: OpenStore) -> None:
        """It continues with all later records, or raises `CursorGone`."""
        async with open_store() as history:
            async with Reading(history.follow()) as reading:
                await history.batch_add_history(add_many(numbers(0, 10)))
                await reading.until(10)
                await history.reset()
                await history.batch_add_history(add_many(numbers(10, 25)))
                try:
                    assert await reading.until(25) == numbers(0, 25)
                except CursorGone:
                    assert reading.texts == numbers(0, 10)
            assert await first(history.follow(), 15) == numbers(10, 25)


class FollowerEndCases(Cases):
    """The end of a follower, and its refusals; also for a backend that stores nothing."""

    @pytest.mark.parametrize("how", ["close", "aclose"])
    async def test_closing_ends_a_follower(self, open_store: OpenStore, how: str) -> None:
        history = await open_store()
        waiting = history.follow(poll_interval_s=NEVER_S)
        async with Reading(waiting) as reading, Reading(history.follow()) as busy:
            adding = [
                asyncio.create_task(history.add_history("m", None, str(n), "ADD"))
                for n in range(1_000)
            ]
            await asyncio.gather(*adding[:500])
            await asyncio.sleep(0)
            if how == "close":
                history.close()
            await history.aclose()
            async with asyncio.timeout(LONG_S):
                await asyncio.wait([reading.task, busy.task])
            for one in (reading, busy):
                assert isinstance(one.task.exception(), HistoryClosed)
        with pytest.raises(HistoryClosed):
            history.follow()
        with pytest.raises(HistoryClosed):
            await history.end_cursor()

    async def test_closing_ends_a_waiting_follower(self, open_store: OpenStore) -> None:
        """No commit could wake it instead."""
        history = await open_store()
        async with Reading(history.follow(poll_interval_s=NEVER_S)) as reading:
            await history.stats()
            await asyncio.sleep(0)
            await history.aclose()
            async with asyncio.timeout(LONG_S):
                await asyncio.wait([reading.task])
            assert isinstance(reading.task.exception(), HistoryClosed)

    async def test_bad_arguments_of_followers_are_refused(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            await history.add_history("m", None, "x", "ADD")
            (page,) = [page async for page in history.query_history().pages()]
            for cursor in (page.cursor, "", "x", "W10", "bnVsbA", "WyJwb3N0Z3Jlc3FsIiwwXQ"):
                if cursor is not None:
                    with pytest.raises(InvalidInput, match="is not a cursor"):
                        history.follow(after=cursor)
            with pytest.raises(InvalidInput, match="after must be text"):
                history.follow(after=7)  # type: ignore[arg-type]
            with pytest.raises(InvalidInput, match="memory_id must be text"):
                history.follow(memory_id=7)  # type: ignore[arg-type]
            for seconds in (0, -1, float("nan"), "1", True):
                with pytest.raises(InvalidInput, match="poll_interval_s must be"):
                    history.follow(poll_interval_s=seconds)  # type: ignore[arg-type]
            end = await history.end_cursor()
            if end is not None:
                with pytest.raises(InvalidInput, match="is not a cursor"):
                    history.query_history(after=end)
