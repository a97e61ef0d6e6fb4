"""Code that is shared by every database, tried without one: pages of states, kinds of cursors."""

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from async_history import CursorGone, InvalidInput
from async_history._core.reading.cursors import Cursor, CursorCodec
from async_history._core.reading.filters import Filter, Order
from async_history._core.reading.query import PageRead, new_query
from async_history._core.reading.timeline import states_at
from async_history._core.records.records import HistoryRecord

pytestmark = pytest.mark.once

NOW = datetime(2026, 11, 28, tzinfo=UTC)
CODEC = CursorCodec("kind", "a test's history")


class Places:
    """A reader that still has some of the records."""

    def __init__(self, pages: Sequence[str], there: set[str]) -> None:
        self._pages = pages
        self._there = there

    async def find(self, when: datetime) -> Sequence[str]:
        return self._pages if when == NOW else []

    async def fetch(self, positions: str) -> Sequence[HistoryRecord]:
        return [
            HistoryRecord(position, "m", None, position, "ADD")
            for position in positions.split(",")
            if position in self._there
        ]


async def pages_of(reader: Places) -> list[list[str]]:
    return [[record.id for record in page] async for page in states_at(reader, NOW)]


async def test_states_come_page_by_page() -> None:
    reader = Places(["1,2", "7"], {"1", "2", "7"})
    assert await pages_of(reader) == [["1", "2"], ["7"]]


@pytest.mark.parametrize("gone", ["1", "2", "7"])
async def test_an_incomplete_page_of_states_raises_cursor_gone(gone: str) -> None:
    reader = Places(["1,2", "7"], {"1", "2", "7"} - {gone})
    with pytest.raises(CursorGone):
        await pages_of(reader)


def read(parts: Sequence[str | int | None]) -> tuple[int, str] | None:
    match parts:
        case [int(number), str(name)]:
            return number, name
    return None


def test_a_cursor_is_read_back() -> None:
    assert CODEC.parse(CODEC.text(7, "ü"), read) == (7, "ü")


@pytest.mark.parametrize(
    "text",
    [
        CursorCodec("other", "another's history").text(7, "x"),
        CODEC.text(),
        CODEC.text(7),
        CODEC.text("7", "x"),
        CODEC.text(7, "x", None),
        CODEC.text(7, "x") + "=",
        str(Cursor(7, "x")),
        "",
        "kind",
        "\ud800",
    ],
)
def test_other_texts_are_not_cursors_of_a_kind(text: str) -> None:
    with pytest.raises(InvalidInput, match="not a cursor of a test's history"):
        CODEC.parse(text, read)


async def test_a_query_goes_on_after_the_rest_of_a_bounded_read() -> None:
    """A reader may leave out records after it has read them, such as one that decrypts texts."""
    asked: list[int | None] = []

    async def next_cursor(position: int, order: Order) -> Cursor | None:
        return Cursor(max(position, 1), "x") if position <= 5 else None

    async def nothing_left(size: int) -> PageRead:
        return PageRead([], None, is_last=True)

    async def read_page(wanted: Filter, after: Cursor | None, limit: int, ahead: int) -> PageRead:
        asked.append(wanted.through)
        return PageRead([], None, is_last=False, rest=nothing_left)

    everything = Filter()
    query = new_query(
        read_page, next_cursor, everything, after=None, limit=None, page_size=9, scan_size=2
    )
    pages = [page async for page in query.pages()]
    assert asked == [3, 5, None]
    assert [page.is_last for page in pages] == [False] * 5 + [True]
