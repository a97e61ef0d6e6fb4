"""Erasing an actor: compared with a naive list, interrupted anywhere, during writes."""

import asyncio
import random
import sqlite3
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from async_history import HistoryManager, HistoryRecord, open_history
from async_history._core.removing.erase_request import EraseLimits
from tests.conftest import OpenStore, examples
from tests.support.limits import limited

pytestmark = pytest.mark.once

ANN = "ann"
Facts = tuple[str, str | None, str | None, str | None]


SMALL_STEPS = EraseLimits(records=3)
"""Steps so small that most memories need several."""


@pytest.fixture
def open_keeping_store(open_keeping_store: OpenStore) -> OpenStore:
    return lambda **options: limited(open_keeping_store(**options), erase=SMALL_STEPS)


def change(memory_id: str, old: str | None, new: str | None, actor: str | None) -> dict[str, Any]:
    return {
        "memory_id": memory_id,
        "event": "UPDATE",
        "old_memory": old,
        "new_memory": new,
        "actor_id": actor,
    }


def some_changes(seed: int) -> list[dict[str, Any]]:
    """Return changes of long and short memories, in turns, in which a few texts recur often."""
    chance = random.Random(seed)  # noqa: S311 - a test's random choices
    memories = [f"m{n}" for n in range(chance.randrange(1, 7))]
    texts = [None, "", "ü", *(f"t{n}" for n in range(chance.randrange(1, 9)))]
    return [
        change(
            chance.choice(memories),
            chance.choice(texts),
            chance.choice(texts),
            chance.choice([ANN, ANN, "bob", None]),
        )
        for _ in range(chance.randrange(40))
    ]


def facts(records: Sequence[HistoryRecord]) -> list[Facts]:
    return [(r.memory_id, r.old_memory, r.new_memory, r.actor_id) for r in records]


def without_ann(records: Sequence[HistoryRecord]) -> list[Facts]:
    """Return what erasing an actor leaves, computed from the whole history."""
    erased: dict[str, set[str]] = defaultdict(set)
    for record in records:
        if record.actor_id == ANN and record.new_memory is not None:
            erased[record.memory_id].add(record.new_memory)
    left: list[Facts] = []
    for memory_id, old, new, actor in facts(records):
        if actor == ANN:
            left.append((memory_id, None, None, None))
        else:
            old, new = (None if text in erased[memory_id] else text for text in (old, new))
            left.append((memory_id, old, new, actor))
    return left


async def everything(history: HistoryManager) -> list[HistoryRecord]:
    return [record async for record in history.query_history()]


def changed(before: Sequence[Facts], after: Sequence[Facts]) -> int:
    return sum(one != other for one, other in zip(before, after, strict=True))


@contextmanager
def before_each_step(
    history: HistoryManager, call: Callable[[int], Awaitable[None]]
) -> Iterator[None]:
    """Call a function before each step of erasing, with the number of steps before it."""
    kind = type(history.store.eraser)
    taken = 0

    async def step(self: Any, work: Any) -> Any:
        nonlocal taken
        await call(taken)
        taken += 1
        return await original(self, work)

    with pytest.MonkeyPatch.context() as patched:
        original = kind.in_transaction
        patched.setattr(kind, "in_transaction", step)
        yield


async def erase(history: HistoryManager, *, dry_run: bool = False) -> int:
    report = await history.erase(actor_id=ANN, reason="asked", vacuum=False, dry_run=dry_run)
    return report.records


async def test_it_erases_what_a_naive_list_would(
    open_keeping_store: OpenStore, request: pytest.FixtureRequest
) -> None:
    store = request.node.callspec.params["new_keeping_store"]
    async with open_keeping_store() as history:
        for seed in range(examples(store, 25)):
            await history.reset()
            await history.batch_add_history(some_changes(seed))
            before = await everything(history)
            expected = without_ann(before)
            lost = changed(facts(before), expected)
            # A record of the actor's without a text or a copy only loses the actor: it counts.
            assert await erase(history, dry_run=True) == lost
            assert await everything(history) == before
            assert await erase(history) == lost
            assert facts(await everything(history)) == expected
            assert await erase(history) == 0


class Interrupted(Exception):
    """Raised between two steps, in place of a killed process."""


async def test_interrupted_anywhere_it_is_listed_and_can_be_repeated(
    open_keeping_store: OpenStore,
) -> None:
    async with open_keeping_store() as history:
        at, finished = 0, False
        while not finished:
            await history.reset()
            await history.batch_add_history(
                [
                    *(change("long", f"t{n}", f"t{n + 1}", ANN) for n in range(7)),
                    *(change("long", f"t{n}", f"t{9 - n}", "bob") for n in range(7)),
                    change("short", "before", "told", ANN),
                    change("short", "told", "bob's", "bob"),
                    change("long", "t7", "bob's", "bob"),
                ]
            )
            before = await everything(history)
            earlier = len(await history.erasures())

            async def die(taken: int, at: int = at) -> None:
                if taken == at:
                    raise Interrupted

            finished = True
            with before_each_step(history, die):
                try:
                    await erase(history)
                except Interrupted:
                    finished = False
            if not finished:
                (begun,) = (await history.erasures())[earlier:]
                assert begun.finished_at is None
                await erase(history)
            expected = without_ann(before)
            assert facts(await everything(history)) == expected, f"interrupted at step {at}"
            noted = (await history.erasures())[earlier:]
            assert noted[-1].finished_at is not None
            assert sum(one.records for one in noted) == changed(facts(before), expected)
            at += 1
        assert at > 12


async def test_records_added_meanwhile_stay_but_for_copies(open_keeping_store: OpenStore) -> None:
    """A copy that is added while its memory is read is erased. Other new records stay."""
    async with open_keeping_store() as history:
        await history.batch_add_history(
            [change("m", f"t{n}", f"t{n + 1}", ANN if n % 2 else "bob") for n in range(20)]
        )
        walks = 20 // 3 + 1
        added: list[HistoryRecord] = []

        async def add(taken: int) -> None:
            if taken <= 3 * walks - 2:  # before the last step
                added.append(await history.add_history("m", "t2", f"new {taken}", "UPDATE"))

        with before_each_step(history, add):
            await erase(history)
        left = await history.get_history("m")
        assert len(added) > walks
        assert not [r for r in left if r.actor_id == ANN or r.old_memory == "t2"]
        assert [r.new_memory for r in left[20:]] == [r.new_memory for r in added]


async def test_it_ends_although_the_actor_goes_on_writing(open_keeping_store: OpenStore) -> None:
    async with open_keeping_store() as history:
        await history.batch_add_history([change("m", None, f"t{n}", ANN) for n in range(12)])

        async def add(taken: int) -> None:
            assert taken < 100
            if taken % 4 == 3:
                await history.batch_add_history(
                    [change("m", None, f"new {taken}", ANN), change("m", "t1", "bob's", "bob")]
                )

        with before_each_step(history, add):
            await erase(history)
        left = await history.get_history("m")
        assert all(record.new_memory is None for record in left[:12])
        assert await erase(history) > 0
        assert not [r for r in await history.get_history("m") if r.actor_id == ANN]


@pytest.mark.parametrize("at", [1, 3, 10, 18, 25, 32, 40])
async def test_rows_that_get_new_rowids_meanwhile_are_erased(at: int, tmp_path: Path) -> None:
    """Also rows that it has not reached. VACUUM may change rowids, as SQLite documents."""
    path = tmp_path / "h.db"

    def number_again() -> None:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE history SET rowid = rowid - 30")

    async def at_once(taken: int) -> None:
        if taken == at:
            await asyncio.to_thread(number_again)

    async with limited(open_history(path), erase=SMALL_STEPS) as history:
        await history.batch_add_history([change("gone", None, "x", None)] * 30)
        await history.batch_add_history(
            [change(f"m{n % 2}", f"t{n}", f"t{n + 2}", ANN if n % 3 else "bob") for n in range(40)]
        )
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("DELETE FROM history WHERE memory_id = 'gone'")
        expected = without_ann(await everything(history))
        with before_each_step(history, at_once):
            await erase(history)
        assert facts(await everything(history)) == expected


async def test_records_without_a_memory_id_are_erased(tmp_path: Path) -> None:
    """Other programs may store any value as memory_id. The record is erased all the same."""
    path = tmp_path / "h.db"
    async with limited(open_history(path), erase=SMALL_STEPS) as history:
        await history.add_history("m", None, "x", "ADD", actor_id=ANN)
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.executemany(
                "INSERT INTO history (id, memory_id, new_memory, event, actor_id)"
                " VALUES (?, ?, ?, 'ADD', ?)",
                [
                    ("1", None, "told", ANN),
                    ("2", b"\xff", "told", ANN),
                    ("3", "m", b"x", "bob"),  # bytes are not the text
                    ("4", "m", "x", "bob"),
                ],
            )
        assert await erase(history, dry_run=True) == await erase(history) == 4
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("SELECT id, new_memory FROM history").fetchall()[1:] == [
                *(("1", None), ("2", None), ("3", b"x"), ("4", None))
            ]
