"""Queries: filters, directions, pages, limits and cursors."""

from datetime import UTC, datetime, timedelta, timezone
from itertools import product
from typing import Any

import pytest

from async_history import CursorGone, Event, HistoryRecord, InvalidInput
from async_history.backend import Cursor
from async_history.testing.fixtures import Cases, NewStore, OpenStore


def matches(
    record: HistoryRecord, *, memory_id: Any = None, text: str | None = None, **columns: Any
) -> bool:
    """A model of a filter."""
    if isinstance(memory_id, str):
        memory_id = [memory_id]
    return (
        (memory_id is None or record.memory_id in memory_id)
        and (text is None or any(text in (t or "") for t in (record.old_memory, record.new_memory)))
        and all(getattr(record, name) == value for name, value in columns.items())
    )


class QueryCases(Cases):
    """Filters, pages and cursors."""

    async def test_filters_directions_and_pages(self, open_store: OpenStore) -> None:
        start = datetime(2026, 1, 1, tzinfo=UTC)
        async with open_store() as history:
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
                    assert [r async for r in query] == expected, (
                        "a query can be iterated over again"
                    )
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

    async def test_times_are_compared_as_instants(self, open_store: OpenStore) -> None:
        times = [
            "2026-01-01T00:00:00.999999+00:00",
            "2026-01-01T02:00:01+02:00",
            "2025-12-31T17:00:02-07:00",
            "2026-01-01 00:00:03",
        ]
        async with open_store() as history:
            for time in times:
                await history.add_history("m", None, time, "ADD", created_at=time)
            since = datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC)
            found = history.query_history(since=since, until=since + timedelta(seconds=2))
            assert [r.new_memory async for r in found] == times[1:3]

    async def test_text_filters_match_exactly(self, open_store: OpenStore) -> None:
        texts = ["100% wool", "100 wool", "Über_Tee", "über_tee", "a'b", "a\\b", None]
        async with open_store() as history:
            for text in texts:
                await history.add_history("m", text, None, "DELETE")
            for sought in ("%", "0% w", "Ü", "_", "'", "\\", "tee", "nothing"):
                found = [r.old_memory async for r in history.query_history(text=sought)]
                assert found == [text for text in texts if sought in (text or "")]

    async def test_the_first_and_the_last_instants(self, open_store: OpenStore) -> None:
        ends = ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999999-14:00"]
        since = datetime(1, 1, 2, tzinfo=timezone(timedelta(hours=14)))
        until = datetime(9999, 12, 30, tzinfo=timezone(timedelta(hours=-14)))
        async with open_store() as history:
            for end in ends:
                await history.add_history("m", None, end, "ADD", created_at=end)
            assert [r.new_memory async for r in history.query_history(until=since)] == ends[:1]
            assert [r.new_memory async for r in history.query_history(since=until)] == ends[1:]
            assert await history.count_history(since=since, until=until) == 0

    async def test_a_limit_bounds_all_pages(self, open_store: OpenStore) -> None:
        """For one memory, several (whose pages are read ahead) and all, in both orders."""
        async with open_store() as history:
            records = await history.batch_add_history(
                [
                    {"memory_id": f"m{n % 3}", "event": "ADD", "new_memory": str(n)}
                    for n in range(40)
                ]
            )
            for memory_id, limit, page_size, order in product(
                (None, "m1", ["m0", "m1", "m2"]),
                (0, 1, 13, 39, 40, 41, None),
                (3, 500),
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

    async def test_a_page_ends_after_so_many_records(self, open_store: OpenStore) -> None:
        """Whatever it has found. The next page continues after them, and the last one says so."""
        start = datetime(2026, 1, 1, tzinfo=UTC)
        filters: tuple[dict[str, Any], ...] = (
            {},
            {"text": "nowhere"},
            {"text": "rare"},
            {"role": "user"},
            {"event": "UPDATE"},
            {"actor_id": "a1"},
            {"actor_id": "a1", "event": "UPDATE"},
            {"memory_id": "m1"},
            {"memory_id": ["m1", "m2"], "text": "rare"},
            {"user_id": "u1"},
            {"user_id": "u1", "text": "rare"},
            {"cause": {"request_id": "1"}},
            {"cause": {"other": "1"}},
            {"since": start + timedelta(hours=20)},
            {"since": start + timedelta(hours=9), "until": start + timedelta(hours=11)},
            {"until": start + timedelta(hours=5), "user_id": "u1"},
        )
        async with open_store() as history:
            records = await history.batch_add_history(
                [
                    {
                        "memory_id": f"m{n % 4}",
                        "new_memory": "rare" if n in (0, 9, 23) else "text",
                        "event": ("ADD", "UPDATE")[n % 2],
                        "created_at": start + timedelta(hours=n),
                        "updated_at": start + timedelta(hours=n),
                        "actor_id": f"a{n % 3}",
                        "role": "user" if n == 12 else "assistant",
                        "owner": {"user_id": f"u{n % 4}"},
                        "cause": {"request_id": f"{n % 5}", "other": f"{n % 5}"},
                    }
                    for n in range(24)
                ]
            )
            for wanted, order, scan_size in product(filters, ("oldest", "newest"), (2, 7, 99)):
                asked: dict[str, Any] = {**wanted, "order": order}
                expected = [record async for record in history.query_history(**asked)]
                in_order = records[:: 1 if order == "oldest" else -1]
                place = {record.id: number for number, record in enumerate(in_order)}
                found: list[HistoryRecord] = []
                after, reached, is_last = None, 0, False
                while not is_last:
                    query = history.query_history(
                        **asked, after=after, page_size=5, scan_size=scan_size
                    )
                    page = await anext(query.pages())
                    found += page.records
                    after, is_last = page.cursor, page.is_last
                    if not is_last:
                        assert after is not None
                        end = place[Cursor.parse(after).id]
                        assert reached < end <= reached + scan_size
                        reached = end
                assert found == expected, (asked, scan_size)
                query = history.query_history(**asked, page_size=5, scan_size=scan_size)
                assert [record async for record in query] == expected

    async def test_a_page_of_an_empty_history_is_the_last(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            for order in ("oldest", "newest"):
                query = history.query_history(order=order, scan_size=1)
                pages = [page async for page in query.pages()]
                assert [(page.records, page.cursor, page.is_last) for page in pages] == [
                    ([], None, True)
                ]
            with pytest.raises(InvalidInput, match="scan_size must be"):
                history.query_history(scan_size=0)

    async def test_a_cursor_continues_with_later_records(self, open_store: OpenStore) -> None:
        async with open_store() as history:
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

    async def test_a_cursor_of_a_removed_record_raises(self, open_store: OpenStore) -> None:
        async with open_store() as history:
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

    async def test_a_cursor_of_another_store_raises(self, new_store: NewStore) -> None:
        """Even if that store has as many records, of the same memories."""
        async with new_store()() as history, new_store()() as other:
            for store in (history, other):
                for n in range(4):
                    await store.add_history("m", None, str(n), "UPDATE", actor_id="ann")
            filters: tuple[dict[str, Any], ...] = ({}, {"memory_id": "m"}, {"actor_id": "ann"})
            for wanted, order in product(filters, ("oldest", "newest")):
                query: dict[str, Any] = {**wanted, "order": order, "page_size": 2}
                page = await anext(history.query_history(**query).pages())
                assert (
                    len([r async for r in history.query_history(**query, after=page.cursor)]) == 2
                )
                with pytest.raises(CursorGone):
                    [r async for r in other.query_history(**query, after=page.cursor)]

    async def test_a_copy_at_a_removed_record_raises(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            for n in range(3):
                await history.add_history("m", None, str(n), "UPDATE")
            read = await history.store.reader.rows(None, 2)
            assert len((await history.store.reader.rows(read.cursor, 2)).rows) == 1
            await history.reset()
            with pytest.raises(CursorGone):
                await history.store.reader.rows(read.cursor, 2)
            await history.batch_add_history(
                [{"memory_id": "m", "event": "UPDATE"} for _ in range(9)]
            )
            with pytest.raises(CursorGone):
                await history.store.reader.rows(read.cursor, 2)

    async def test_an_empty_history_has_no_cursor(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            (page,) = [page async for page in history.query_history().pages()]
        assert (list(page.records), page.cursor) == ([], None)
