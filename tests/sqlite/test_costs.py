"""A call's cost grows only with what it returns or changes, on SQLite: counted in VM steps.

The same call is made on a small and on a large history of one shape.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from async_history import HistoryManager, copy_history, open_history
from async_history._core.records.records import COLUMNS
from async_history._sqlite.index.levels import memory_key
from tests.support.history_shapes import (
    GROWTH,
    LARGE,
    LONG_SHAPES,
    LOOSE,
    REMOVALS,
    SHAPES,
    SMALL,
    START,
    Call,
    Shape,
    above,
    by_two,
    moment,
    prune,
    row,
)
from tests.support.keys import ring
from tests.support.vm_steps import Steps

pytestmark = pytest.mark.once


def write_as_others(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany(
            f"INSERT INTO history ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * 10)})", rows
        )


async def measured(
    path: Path, shape: Shape, size: int, calls: Mapping[str, Call], **options: Any
) -> list[int]:
    """Return the steps that each call takes on a history of this shape and size."""
    async with open_history(path, **options):
        pass
    write_as_others(path, [shape(n) for n in range(size)])
    taken: list[int] = []
    async with open_history(path, **options) as history:
        for call in calls.values():
            async with Steps(history) as steps:
                await call(history, size)
            taken.append(steps.taken)
    return taken


async def growths(
    folder: Path, shape: Shape, calls: Mapping[str, Call], **options: Any
) -> dict[str, float]:
    """Return how many times more each call takes on the large history than on the small one."""
    small = await measured(folder / "small.db", shape, SMALL, calls, **options)
    large = await measured(folder / "large.db", shape, LARGE, calls, **options)
    pairs = zip(calls, small, large, strict=True)
    return {name: round(after / before, 1) for name, before, after in pairs}


async def whole_memory(history: HistoryManager, _: int) -> None:
    assert any([await history.get_history(memory_id) for memory_id in ("m", "m0")])


def pages(**wanted: Any) -> Call:
    async def walk(history: HistoryManager, _: int) -> None:
        async for _page in history.query_history(page_size=50, **wanted).pages():
            pass

    return walk


async def resumed(history: HistoryManager, _: int) -> None:
    """Read each page by a new query, from the cursor of the last."""
    cursor: str | None = None
    while True:
        query = history.query_history(memory_id="m", after=cursor, page_size=50)
        async for page in query.pages():
            cursor = page.cursor
            break
        if len(page.records) < 50:
            return


def followed(memory_id: str | None) -> Call:
    async def follow(history: HistoryManager, size: int) -> None:
        seen = 0
        async for record in history.follow(memory_id=memory_id):
            seen += memory_id is None or record.memory_id == memory_id
            if seen == size:
                return

    return follow


async def states(history: HistoryManager, _: int) -> None:
    async for _record in history.memories_at(datetime.now(UTC)):
        pass


async def copied(history: HistoryManager, size: int) -> None:
    async with open_history("memory://") as target:
        report = await copy_history(history, target)
        assert report.records == size


EVERYTHING: dict[str, Call] = {
    "get_history": whole_memory,
    "oldest first": pages(),
    "newest first": pages(order="newest"),
    "since": pages(since=START),
    "until": pages(until=moment(LARGE), order="newest"),
    "of an event": pages(event="DELETE"),
    "of an actor": pages(actor_id="actor", order="newest"),
    "memories_at": states,
    "follow": followed(None),
    "copy": copied,
    "dry prune": lambda history, _: history.prune(older_than=moment(LARGE), dry_run=True),
}
ONE_MEMORY: dict[str, Call] = {
    "its pages": pages(memory_id="m"),
    "newest first": pages(memory_id="m", order="newest"),
    "since": pages(memory_id="m", since=START),
    "resumed": resumed,
    "follow": followed("m"),
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_call_that_reads_everything_grows_with_the_history(
    tmp_path: Path, shape: str
) -> None:
    grown = await growths(tmp_path, SHAPES[shape], EVERYTHING)
    assert not above(grown, LOOSE * GROWTH)


@pytest.mark.parametrize("shape", ["as we write it", "no time in one memory"])
async def test_a_call_on_one_memory_grows_with_the_memory(tmp_path: Path, shape: str) -> None:
    grown = await growths(tmp_path, SHAPES[shape], ONE_MEMORY)
    assert not above(grown, LOOSE * GROWTH)


async def conditional_write(history: HistoryManager, _: int) -> None:
    async for page in history.query_history(order="newest", page_size=1).pages():
        latest = page.records[0]
        break
    await history.batch_add_history([{"memory_id": "m", "event": "UPDATE"}], if_latest=latest)


def page_of_last(order: Any) -> Call:
    async def read(history: HistoryManager, size: int) -> None:
        async for _page in history.query_history(
            since=moment(size - 100), page_size=10, order=order
        ).pages():
            return

    return read


SHORT: dict[str, Call] = {
    "oldest": page_of_last("oldest"),
    "newest": page_of_last("newest"),
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_page_costs_the_same_in_a_long_history(tmp_path: Path, shape: str) -> None:
    assert not above(await growths(tmp_path, SHAPES[shape], SHORT), 1.5)


@pytest.mark.parametrize("order", ["oldest", "newest"])
async def test_a_limit_reads_no_more_than_it_gives(tmp_path: Path, order: Any) -> None:
    def three(**paging: Any) -> Call:
        async def read(history: HistoryManager, size: int) -> None:
            async for page in history.query_history(order=order, **paging).pages():
                assert len(page.records) == 3
                return

        return read

    calls = {"of three": three(page_size=3), "limited": three(limit=3)}
    page_of_three, limited = await measured(tmp_path / "h.db", SHAPES["as we write it"], 900, calls)
    assert limited <= 2 * page_of_three


async def test_a_call_about_one_version_costs_the_same_in_a_long_memory(tmp_path: Path) -> None:
    calls: dict[str, Call] = {
        "if_latest": conditional_write,
        "the first version": lambda history, _: history.memory_at("m", 1),
        "restoring it": lambda history, _: history.restore("m", to=1),
        "a moment ago": lambda history, size: history.memory_at("m", moment(size - 3)),
        "restoring that": lambda history, size: history.restore("m", to=moment(size - 3)),
    }
    assert not above(await growths(tmp_path, SHAPES["as we write it"], calls), 1.5)


def named(text: str, **arguments: Any) -> Call:
    """Return a call that erases or queries all memories by name."""

    async def call(history: HistoryManager, size: int) -> None:
        ids = [text.format(n) for n in range(size)]
        if arguments:
            report = await history.erase(memory_ids=ids, vacuum=False, **arguments)
            assert report.records == size
        else:
            found = history.query_history(memory_id=ids, page_size=50)
            assert len([record async for record in found]) == size

    return call


MANY: dict[str, Call] = {
    "query": named("m{}"),
    "count with a text": lambda history, size: history.count_history(
        memory_id=[f"m{n}" for n in range(size)], text="text"
    ),
    "dry erase": named("m{}", reason="x", dry_run=True),
    "dry erase of actor": lambda history, _: history.erase(
        actor_id="actor", reason="x", dry_run=True
    ),
    "erase": named("m{}", reason="x"),
    "dry prune": lambda history, _: history.prune(older_than=moment(LARGE), dry_run=True),
    "prune": lambda history, _: history.prune(older_than=moment(LARGE), keep_last=0),
}
WITH_ONE_LARGE: dict[str, Call] = {
    "dry erase": lambda history, size: history.erase(
        memory_ids=["m", *map(str, range(size))], reason="x", dry_run=True
    ),
    "erase": lambda history, size: history.erase(
        memory_ids=["m", *map(str, range(size))], reason="x", vacuum=False
    ),
}


@pytest.mark.parametrize("options", [{}, {"keys": ring("one"), "ledger": True}])
async def test_a_call_that_names_many_memories_grows_with_their_number(
    options: dict[str, Any], tmp_path: Path
) -> None:
    grown = await growths(tmp_path, SHAPES["naive"], MANY, **options)
    assert not above(grown, LOOSE * GROWTH)


async def test_one_large_memory_among_many_costs_in_proportion(tmp_path: Path) -> None:
    def shape(n: int) -> tuple[Any, ...]:
        return row(n, "m" if n % 2 else str(n // 2), moment(n).isoformat())

    assert not above(await growths(tmp_path, shape, WITH_ONE_LARGE), LOOSE * GROWTH)


@pytest.mark.parametrize("shape", LONG_SHAPES)
async def test_pruning_and_erasing_grow_with_what_is_removed(tmp_path: Path, shape: str) -> None:
    grown = await growths(tmp_path, by_two(LONG_SHAPES[shape]), REMOVALS)
    assert not above(grown, LOOSE * GROWTH)


async def test_keeping_many_records_costs_no_more_than_keeping_one(tmp_path: Path) -> None:
    """Each record that stays is read once a memory, not once for each record that goes."""
    calls = {str(keep_last): prune(keep_last) for keep_last in (1, 1_000)}
    one, many = await measured(tmp_path / "h.db", SHAPES["as we write it"], LARGE, calls)
    assert many < 1.5 * one


def colliding(count: int, length: int = 48) -> list[str]:
    """Return texts with the same CRC-32: it is linear, so some changes of case do not change it."""
    zero = crc32(b"a" * length)
    basis: dict[int, tuple[int, int]] = {}
    kernel: list[int] = []
    for i in range(length):
        text = bytearray(b"a" * length)
        text[i] ^= 32
        value, flips = crc32(text) ^ zero, 1 << i
        while value and value.bit_length() in basis:
            other, flipped = basis[value.bit_length()]
            value, flips = value ^ other, flips ^ flipped
        if value:
            basis[value.bit_length()] = value, flips
        else:
            kernel.append(flips)
    texts: list[str] = []
    chosen = 0
    for k in range(count):
        if k:
            chosen ^= kernel[(k & -k).bit_length() - 1]
        texts.append("".join("A" if chosen >> i & 1 else "a" for i in range(length)))
    assert len({crc32(text.encode()) for text in texts}) == 1
    return texts


def test_memories_cannot_be_made_to_share_a_key() -> None:
    texts = colliding(2_000)
    assert len({memory_key(text) for text in texts}) == len(texts)
