"""Time travel: a memory's text at a time, all memories at a time, differences, restoring."""

import asyncio
import contextlib
import itertools
import json
import os
import sqlite3
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from async_history import (
    CursorGone,
    Event,
    HistoryClosed,
    HistoryManager,
    HistoryRecord,
    InvalidInput,
    JsonLines,
    MemoryDiff,
    copy_history,
    open_history,
)
from async_history._postgres.reading.timeline import FETCH as PLACES
from async_history._postgres.reading.timeline import FIND
from async_history._postgres.schema import in_schema
from async_history._sqlite.index import THROUGH_INDEX
from async_history._sqlite.reading.timeline import fetch_sql, find_sql
from async_history.sqlite import SQLiteHistoryManager
from tests.conftest import OpenStore, examples, new_stores, stores, url_of
from tests.support.keys import ring
from tests.support.legacy_files import NO, TODAY, build

pytestmark = pytest.mark.once

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def at(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


async def record_changes(history: HistoryManager, memory_id: str = "m") -> list[HistoryRecord]:
    """Record a memory: tea at 0, mate at 10, deleted at 20, added again at 30 as water."""
    return await history.batch_add_history(
        [
            change(memory_id, "ADD", None, "tea", 0),
            change(memory_id, "UPDATE", "tea", "mate", 10),
            change(memory_id, "DELETE", "mate", None, 20),
            change(memory_id, "ADD", None, "water", 30),
        ]
    )


async def state_or_error(
    history: HistoryManager, memory_id: str, when: datetime | int
) -> HistoryRecord | None:
    """Return a memory's record in force at a moment; None if there is none, or no such moment."""
    try:
        return await history.memory_at(memory_id, when)
    except InvalidInput:
        return None


def change(
    memory_id: str, event: str, old: str | None, new: str | None, minutes: float
) -> dict[str, Any]:
    time = "created_at" if event == "ADD" else "updated_at"
    return {
        "memory_id": memory_id,
        "event": event,
        "old_memory": old,
        "new_memory": new,
        time: at(minutes),
    }


async def all_at(history: HistoryManager, when: datetime) -> dict[str, str | None]:
    """Return what every memory says; a memory that is yielded twice is an error."""
    found = [record async for record in history.memories_at(when)]
    assert len({record.memory_id for record in found}) == len(found)
    return {record.memory_id: record.new_memory for record in found}


def diff_between(
    before: HistoryRecord | None, after: HistoryRecord | None, between: Sequence[HistoryRecord]
) -> MemoryDiff:
    return MemoryDiff(memory_id="m", before=before, after=after, between=between)


@pytest.mark.statements
class TestEveryBackend:
    async def test_memories_that_were_never_recorded(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            assert await history.memory_at("m", NOON) is None
            assert await all_at(history, NOON) == {}
            assert await history.diff("m", NOON, at(1)) == diff_between(None, None, ())
            with pytest.raises(InvalidInput, match="'m' has 0 versions, there is no version 1"):
                await history.memory_at("m", 1)
            with pytest.raises(InvalidInput, match="there is no history of 'm'"):
                await history.restore("m", to=1)

    @pytest.mark.parametrize(
        ("when", "words"),
        [
            (datetime(2026, 1, 1), "must be a datetime with a time zone or a version number"),  # noqa: DTZ001 - that is the test
            ("2026-01-01", "must be a datetime with a time zone"),
            (0, "must be at least 1, the version of the ADD, not 0"),
            (-1, "must be at least 1"),
            (True, "must be a datetime with a time zone"),
            (1.0, "must be a datetime with a time zone"),
            (None, "must be a datetime with a time zone"),
        ],
    )
    async def test_bad_moments_are_refused(
        self, open_store: OpenStore, when: Any, words: str
    ) -> None:
        async with open_store() as history:
            with pytest.raises(InvalidInput, match=f"when {words}"):
                await history.memory_at("m", when)
            with pytest.raises(InvalidInput, match=f"start {words}"):
                await history.diff("m", when, 1)
            with pytest.raises(InvalidInput, match=f"end {words}"):
                await history.diff("m", NOON, when)
            with pytest.raises(InvalidInput, match=f"to {words}"):
                await history.restore("m", to=when)
            with pytest.raises(InvalidInput, match="when must be a datetime with a time zone, not"):
                history.memories_at(when)

    async def test_other_bad_arguments_are_refused(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            for call in (
                history.memory_at(7, NOON),  # type: ignore[arg-type]
                history.diff("a\0b", 1, 2),
                history.restore(None, to=1),  # type: ignore[arg-type]
            ):
                with pytest.raises(InvalidInput, match="memory_id"):
                    await call
            with pytest.raises(InvalidInput, match="actor_id must be text"):
                await history.restore("m", to=1, actor_id=7)  # type: ignore[arg-type]
            with pytest.raises(InvalidInput, match="when must be"):
                history.memories_at(1)  # type: ignore[arg-type]

    async def test_calls_on_a_closed_manager(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            walking = history.memories_at(NOON)
        for call in (
            history.memory_at("m", NOON),
            history.diff("m", 1, 2),
            history.restore("m", to=1),
        ):
            with pytest.raises(HistoryClosed):
                await call
        with pytest.raises(HistoryClosed):
            history.memories_at(NOON)
        with contextlib.suppress(HistoryClosed):  # the null manager reads no store
            assert await anext(walking, None) is None


@pytest.mark.statements
class TestOneMemory:
    async def test_a_memory_at_every_moment(self, open_keeping_store: OpenStore) -> None:
        async with open_keeping_store() as history:
            recorded = await record_changes(history)
            await history.add_history("other", None, "x", "ADD", created_at=at(-5))
            for minutes, version in ((-1, None), (0, 0), (9.9, 0), (10, 1), (15, 1), (20, None)):
                expected = None if version is None else recorded[version]
                assert await history.memory_at("m", at(minutes)) == expected
            for minutes in (29, 30, 10**6):
                expected = recorded[3] if minutes >= 30 else None
                assert await history.memory_at("m", at(minutes)) == expected
            versions = [await history.memory_at("m", version) for version in (1, 2, 3, 4)]
            assert versions == [recorded[0], recorded[1], None, recorded[3]]
            with pytest.raises(InvalidInput, match="'m' has 4 versions, there is no version 5"):
                await history.memory_at("m", 5)

    async def test_times_are_compared_as_instants(self, open_keeping_store: OpenStore) -> None:
        east = timezone(timedelta(hours=8))
        async with open_keeping_store() as history:
            await history.add_history("m", None, "x", "ADD", created_at="2026-11-20T20:00:00+08:00")
            assert await history.memory_at("m", at(-0.01)) is None
            assert await history.memory_at("m", NOON) is not None
            assert await history.memory_at("m", NOON.astimezone(east)) is not None
            assert await all_at(history, at(-0.01)) == {}
            assert await all_at(history, NOON.astimezone(east)) == {"m": "x"}

    async def test_the_last_record_counts_even_if_clocks_step_back(
        self, open_keeping_store: OpenStore
    ) -> None:
        async with open_keeping_store() as history:
            await history.batch_add_history(
                [
                    change("m", "ADD", None, "a", 0),
                    change("m", "UPDATE", "a", "b", 10),
                    change("m", "UPDATE", "b", "c", 5),
                ]
            )
            for minutes, text in ((0, "a"), (5, "c"), (7, "c"), (10, "c")):
                record = await history.memory_at("m", at(minutes))
                assert record is not None
                assert record.new_memory == text
                assert await all_at(history, at(minutes)) == {"m": text}

    async def test_a_deletion_is_the_event_or_the_flag(self, open_keeping_store: OpenStore) -> None:
        async with open_keeping_store() as history:
            await history.add_history("marked", None, "x", "UPDATE", is_deleted=1)
            await history.add_history("unmarked", None, "x", "DELETE", is_deleted=0)
            await history.add_history("there", None, "x", "UPDATE")
            later = datetime.now(UTC) + timedelta(hours=1)
            assert await history.memory_at("marked", later) is None
            assert await history.memory_at("unmarked", later) is None
            assert await all_at(history, later) == {"there": "x"}

    async def test_the_ends_of_time(self, open_keeping_store: OpenStore) -> None:
        west, east = timezone(-timedelta(hours=14)), timezone(timedelta(hours=14))
        last, first = datetime.max.replace(tzinfo=west), datetime.min.replace(tzinfo=east)
        async with open_keeping_store() as history:
            await record_changes(history)
            await history.add_history("old", None, "x", "ADD", created_at="0001-01-01T00:00:00")
            assert await all_at(history, last) == {"m": "water", "old": "x"}
            assert set(await all_at(history, first)) <= {"old"}, "to the day, there"
            assert await history.memory_at("old", first) is None

    async def test_differences(self, open_keeping_store: OpenStore) -> None:
        async with open_keeping_store() as history:
            recorded = await record_changes(history)
            there = await history.diff("m", 1, 2)
            assert there == diff_between(recorded[0], recorded[1], (recorded[1],))
            assert (there.old_memory, there.new_memory) == ("tea", "mate")
            back = await history.diff("m", at(15), at(5))
            assert back == diff_between(recorded[1], recorded[0], (recorded[1],))
            over = await history.diff("m", at(-1), 4)
            assert over == diff_between(None, recorded[3], tuple(recorded))
            assert over.old_memory is None
            gone = await history.diff("m", 2, at(25))
            assert gone == diff_between(recorded[1], None, (recorded[2],))
            assert gone.new_memory is None
            assert (await history.diff("m", 2, 2)).between == ()
            with pytest.raises(InvalidInput, match="no version 9"):
                await history.diff("m", 9, 1)


class TestAllMemories:
    async def test_all_memories_at_every_moment(self, open_keeping_store: OpenStore) -> None:
        async with open_keeping_store() as history:
            await record_changes(history, "a")
            await record_changes(history, "b")
            await history.add_history("late", None, "x", "ADD", created_at=at(15))
            assert await all_at(history, at(-1)) == {}
            assert await all_at(history, at(0)) == {"a": "tea", "b": "tea"}
            assert await all_at(history, at(19)) == {"a": "mate", "b": "mate", "late": "x"}
            assert await all_at(history, at(20)) == {"late": "x"}
            assert await all_at(history, at(99)) == {"a": "water", "b": "water", "late": "x"}

    async def test_over_many_pages_while_others_write(self, open_keeping_store: OpenStore) -> None:
        """Every memory is yielded once, as it was. A slow reader holds up no other call."""
        async with open_keeping_store() as history:
            await history.batch_add_history(
                change(f"m{n}", "ADD", None, str(n), n % 7) for n in range(3_000)
            )
            await history.batch_add_history(
                change(f"m{n}", "DELETE", str(n), None, 10) for n in range(0, 3_000, 3)
            )
            found: dict[str, str | None] = {}
            async for record in history.memories_at(at(10)):
                if len(found) % 500 == 0:
                    await asyncio.gather(
                        *(history.add_history(f"new{n}", None, "x", "ADD") for n in range(20)),
                        *(history.get_history(f"m{n}") for n in range(20)),
                    )
                assert record.memory_id not in found
                found[record.memory_id] = record.new_memory
            assert found == {f"m{n}": str(n) for n in range(3_000) if n % 3}

    async def test_records_removed_meanwhile_raise_cursor_gone(
        self, open_keeping_store: OpenStore
    ) -> None:
        async with open_keeping_store() as history:
            records = [change(f"m{n}", "ADD", None, str(n), 0) for n in range(2_500)]
            await history.batch_add_history(records)
            walking = history.memories_at(NOON)
            await anext(walking)
            await history.reset()
            await history.batch_add_history(records)  # possibly with the same rowids
            with pytest.raises(CursorGone, match="ask again"):
                async for _ in walking:
                    pass
            assert len(await all_at(history, NOON)) == 2_500

    async def test_a_file_with_new_rowids_raises_cursor_gone(self, tmp_path: Path) -> None:
        path = tmp_path / "history.db"
        async with open_history(path) as history:
            await history.batch_add_history(
                change(f"m{n}", "ADD", None, str(n), 0) for n in range(2_500)
            )
            with contextlib.closing(sqlite3.connect(path)) as other:
                other.execute("DELETE FROM history WHERE memory_id = 'm1300'")
                other.commit()
                walking = history.memories_at(NOON)
                await anext(walking)
                other.executescript(
                    """
                    CREATE TABLE kept AS SELECT * FROM history ORDER BY rowid;
                    DELETE FROM history;
                    INSERT INTO history SELECT * FROM kept;
                    DROP TABLE kept;
                    """
                )
            with pytest.raises(CursorGone, match="ask again"):
                async for _ in walking:
                    pass
            assert len(await all_at(history, NOON)) == 2_499

    async def test_rows_of_other_programs(self, tmp_path: Path) -> None:
        """Rows that plain mem0 or a shell may have written: with any spelling of times, or none."""
        path = tmp_path / "history.db"
        async with open_history(path) as history:
            await record_changes(history)
            with contextlib.closing(sqlite3.connect(path)) as other:
                for n, (memory, event, created, updated) in enumerate(
                    [
                        ("number", "ADD", "2025", None),
                        ("naive", "ADD", "2026-11-20 12:00:00.5", None),
                        ("pacific", "ADD", "2026-11-20T04:00:00-08:00", None),
                        ("never", "ADD", "yesterday", None),
                        ("gone", "ADD", "2026-11-20T12:00:00+00:00", None),
                        ("gone", "DELETE", None, None),
                        (None, "ADD", "2020-01-01", None),
                        ("zulu", "ADD", "2026-11-20T12:00:00Z", None),
                        ("compact", "ADD", "20261120T120000", None),
                    ]
                ):
                    row = (f"r{n}", memory, None, "x", event, created, updated, None, None, None)
                    other.execute(f"INSERT INTO history VALUES ({', '.join('?' * 10)})", row)
                other.commit()
            known = {"number", "never"}
            assert set(await all_at(history, at(-0.01))) == known
            known |= {"m", "pacific", "zulu", "compact"}
            assert set(await all_at(history, NOON)) == known, "a deleted memory stays deleted"
            assert set(await all_at(history, at(0.01))) == known | {"naive"}

    @pytest.mark.parametrize("store", stores("file", "postgres"))
    async def test_a_change_without_a_time_has_that_of_the_one_before(
        self, store: str, request: pytest.FixtureRequest, tmp_path: Path
    ) -> None:
        url = url_of(store, request, tmp_path)
        async with open_history(url) as history:
            for number, (memory_id, text, minutes) in enumerate(
                [
                    ("m", "a", 0),
                    ("m", "b", None),
                    ("n", "x", None),
                    ("m", "c", None),
                    ("m", "d", 10),
                ]
            ):
                moment = None if minutes is None else at(minutes)
                row = {
                    "id": str(number),
                    "memory_id": memory_id,
                    "new_memory": text,
                    "event": "UPDATE",
                    "updated_at": moment and moment.isoformat(),
                    "is_deleted": False,
                }
                await asyncio.to_thread(insert_past_us, url, row, moment)
            for minutes, said in ((-1, None), (0, "c"), (9, "c"), (10, "d")):
                record = await history.memory_at("m", at(minutes))
                assert (record and record.new_memory) == said
                expected = {"n": "x"} if said is None else {"n": "x", "m": said}
                assert await all_at(history, at(minutes)) == expected

    @pytest.mark.parametrize("store", stores("file", "postgres"))
    async def test_one_record_removed_meanwhile_raises_cursor_gone(
        self, store: str, request: pytest.FixtureRequest, tmp_path: Path
    ) -> None:
        url = url_of(store, request, tmp_path)
        async with open_history(url) as history:
            await history.batch_add_history(
                change(f"m{n}", "ADD", None, str(n), 0) for n in range(2_500)
            )
            walking = history.memories_at(NOON)
            await anext(walking)
            await asyncio.to_thread(run_past_us, url, "DELETE FROM {} WHERE memory_id = 'm1300'")
            with pytest.raises(CursorGone, match="ask again"):
                async for _ in walking:
                    pass

    @pytest.mark.parametrize("migrate", [False, True])
    async def test_an_old_file(self, tmp_path: Path, migrate: bool) -> None:
        """Also a file whose migration was interrupted, read as it is."""
        path = build(tmp_path / "history.db", history_old=TODAY)
        async with open_history(path, migrate=migrate) as history:
            when = datetime(2026, 1, 1, tzinfo=UTC)
            memories = {str(row[1]) for row in TODAY.today}
            expected = {m: await history.memory_at(m, when) for m in memories}
            found = {record.memory_id: record async for record in history.memories_at(when)}
            assert found == {m: record for m, record in expected.items() if record is not None}

    async def test_ten_bytes_are_kept_per_memory(
        self, tmp_path: Path, new_schema: Callable[[], str]
    ) -> None:
        when = at(1).isoformat(timespec="microseconds")
        history: Any
        for url in (str(tmp_path / "history.db"), new_schema()):
            async with open_history(url) as history:
                await history.batch_add_history(
                    change(f"m{n}", "ADD", None, str(n), 0) for n in range(5_000)
                )
                if isinstance(history, SQLiteHistoryManager):
                    found = await history.store.fetch(
                        find_sql(THROUGH_INDEX.time_before), {"when": when}
                    )
                    found = found[1:]
                else:
                    found = await history.store.connections.fetch(
                        in_schema(FIND, history.store.schema), when
                    )
            assert sum(positions[0].count(",") + 1 for positions in found) == 5_000
            assert sum(map(sys.getsizeof, found)) + sum(sys.getsizeof(p[0]) for p in found) < 50_000

    async def test_pages_are_found_through_an_index(
        self, tmp_path: Path, new_schema: Callable[[], str]
    ) -> None:
        history: Any
        async with open_history(tmp_path / "history.db") as history:
            await record_changes(history)
            explain = f"EXPLAIN QUERY PLAN {fetch_sql(history.store.reader.columns)}"
            where = {"positions": "[1]", "newest": 4, "newest_id": "x"}
            plan = [row[3] for row in await history.store.fetch(explain, where)]
            assert "SEARCH history USING INTEGER PRIMARY KEY (rowid=?)" in plan
            assert not any(line.startswith("SCAN history") for line in plan)
            explain = f"EXPLAIN QUERY PLAN {find_sql(THROUGH_INDEX.time_before)}"
            plan = [row[3] for row in await history.store.fetch(explain, {"when": "2026"})]
            assert plan.count("SCAN history") == 1
        async with open_history(new_schema()) as history:
            await history.batch_add_history(
                change(f"m{n}", "ADD", None, str(n), 0) for n in range(3_000)
            )
            await history.store.connections.fetch(f"ANALYZE {history.store.schema}.history")
            explain = f"EXPLAIN {in_schema(PLACES, history.store.schema)}"
            plan = [row[0] for row in await history.store.connections.fetch(explain, "1,2,3")]
            assert any("using history_seq" in line for line in plan), plan


# Any history, compared with a replay written here


@dataclass(frozen=True)
class Change:
    """One row of a history, and who writes it: the library, or another program."""

    memory_id: str
    event: str
    is_deleted: bool
    moment: datetime | None
    spelling: str
    by_others: bool

    @property
    def time(self) -> str | None:
        """The moment as text."""
        if self.moment is None:
            return None if self.spelling == "naive" else "yesterday"
        return SPELLINGS[self.spelling](self.moment)


SPELLINGS: dict[str, Callable[[datetime], str]] = {
    "ours": lambda moment: moment.isoformat(timespec="microseconds"),
    "short": lambda moment: moment.isoformat(),
    "zulu": lambda moment: moment.isoformat().replace("+00:00", "Z"),
    "naive": lambda moment: moment.replace(tzinfo=None).isoformat(sep=" "),
    "east": lambda moment: moment.astimezone(timezone(timedelta(hours=8))).isoformat(),
    "west": lambda moment: moment.astimezone(timezone(-timedelta(hours=9.5))).isoformat(),
}

instants = st.builds(
    lambda seconds, microseconds: NOON + timedelta(seconds=seconds, microseconds=microseconds),
    st.integers(-2, 2),
    st.sampled_from([-1, 0, 0, 1, 499_999, 500_000]),
)
changes = st.lists(
    st.builds(
        Change,
        memory_id=st.sampled_from(["m1", "m2", "ünï"]),
        event=st.sampled_from(["ADD", "UPDATE", "UPDATE", "DELETE"]),
        is_deleted=st.sampled_from([False, False, False, True]),
        moment=st.none() | instants | instants,
        spelling=st.sampled_from(list(SPELLINGS)),
        by_others=st.booleans(),
    ),
    max_size=12,
)


def replayed(written: Sequence[Change], when: datetime) -> dict[str, str]:
    """Return what every memory said: apply each change that had happened, in turn."""
    states: dict[str, tuple[str, bool]] = {}
    times: dict[str, datetime | None] = {}
    for number, one in enumerate(written):
        times[one.memory_id] = time = one.moment or times.get(one.memory_id)
        if time is None or time <= when:
            is_there = one.event != "DELETE" and not one.is_deleted
            states[one.memory_id] = (str(number), is_there)
    return {memory: text for memory, (text, is_there) in states.items() if is_there}


@pytest.mark.parametrize("store", stores("file", "memory", "postgres", "pgbouncer"))
def test_every_way_to_go_back_agrees(
    store: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = url_of(store, request, tmp_path)

    async def check(written: Sequence[Change], when: datetime) -> None:
        await history.reset()
        for number, one in enumerate(written):
            row = {
                "id": f"{next(ids)}",
                "memory_id": one.memory_id,
                "new_memory": str(number),
                "event": one.event,
                "created_at" if one.event == "ADD" else "updated_at": one.time,
                "is_deleted": one.is_deleted,
            }
            if one.by_others:
                await asyncio.to_thread(insert_past_us, url, row, one.moment)
            else:
                await history.batch_add_history([row])
        expected = replayed(written, when)
        assert await all_at(history, when) == expected
        for memory_id in ("m1", "m2", "ünï", "nobody"):
            record = await history.memory_at(memory_id, when)
            assert (record and record.new_memory) == expected.get(memory_id)

    ids = itertools.count()
    with asyncio.Runner() as runner:

        async def opened() -> HistoryManager:
            return await open_history(url)

        history = runner.run(opened())

        @settings(
            max_examples=examples(store, 30 if store == "postgres" else 60),
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        )
        @given(written=changes, when=instants)
        def agree(written: list[Change], when: datetime) -> None:
            if store == "memory":  # no other program writes there, and our rows have times
                written = [one for one in written if not one.by_others]
            runner.run(check([o for o in written if o.by_others or o.moment], when))

        try:
            agree()
        finally:
            runner.run(history.aclose())


def insert_past_us(url: str, row: dict[str, Any], moment: datetime | None) -> None:
    """Write a row as plain mem0, a shell or other SQL would."""
    values = row if is_file(url) else {**row, "occurred_at": moment}
    marks = ", ".join("?" if is_file(url) else f"${n}" for n in range(1, len(values) + 1))
    run_past_us(url, f"INSERT INTO {{}} ({', '.join(values)}) VALUES ({marks})", *values.values())


def run_past_us(url: str, statement: str, *values: Any) -> None:
    """Run a statement on another connection, with the history's table in place of the braces."""
    if is_file(url):
        with contextlib.closing(sqlite3.connect(url)) as other:
            other.execute(statement.format("history"), values)
            other.commit()
        return

    async def run() -> None:
        server, _, schema = url.replace("&schema=", "?schema=").rpartition("?schema=")
        connection = await asyncpg.connect(server, statement_cache_size=0)
        await connection.execute(statement.format(f"{schema}.history"), *values)
        await connection.close()

    asyncio.run(run())


def is_file(url: str) -> bool:
    return not url.startswith("postgres")


class TestRestore:
    async def test_restoring_an_earlier_text(self, open_keeping_store: OpenStore) -> None:
        async with open_keeping_store() as history:
            recorded = (await record_changes(history))[:2]
            await history.reset()
            await history.batch_add_history(recorded)
            record = await history.restore("m", to=1, actor_id="ann", role="user")
            assert record.event is Event.UPDATE
            assert (record.old_memory, record.new_memory) == ("mate", "tea")
            assert (record.actor_id, record.role) == ("ann", "user")
            assert record.occurred_at is not None
            assert datetime.now(UTC) - record.occurred_at < timedelta(minutes=5)
            assert await history.get_history("m") == [*recorded, record]
            assert (await history.restore("m", to=at(12))).new_memory == "mate"
            assert (await history.diff("m", 3, 4)).new_memory == "mate"

    async def test_restoring_a_deleted_memory(self, open_keeping_store: OpenStore) -> None:
        async with open_keeping_store() as history:
            recorded = (await record_changes(history))[:3]
            await history.reset()
            await history.batch_add_history(recorded)
            record = await history.restore("m", to=2)
            assert (record.event, record.old_memory, record.new_memory) == ("ADD", None, "mate")
            assert not record.is_deleted
            assert await history.get_history("m") == [*recorded, record]
            assert await all_at(history, datetime.now(UTC) + timedelta(hours=1)) == {"m": "mate"}

    async def test_restoring_twice_records_once(self, open_keeping_store: OpenStore) -> None:
        async with open_keeping_store() as history:
            recorded = await record_changes(history)
            record = await history.restore("m", to=1)
            assert await history.restore("m", to=1) == record
            assert await history.restore("m", to=5) == record
            assert len(await history.get_history("m")) == len(recorded) + 1

    async def test_bad_restores_are_refused(self, open_keeping_store: OpenStore) -> None:
        async with open_keeping_store() as history:
            await record_changes(history)
            await history.add_history("empty", None, None, "ADD", created_at=at(0))
            for memory_id, to, words in (
                ("nobody", 1, "there is no history of 'nobody'"),
                ("m", at(-1), "'m' did not exist yet at 2026-11-20T11:59:00"),
                ("m", at(25), "'m' was deleted at 2026-11-20T12:25:00"),
                ("m", 3, "'m' was deleted at version 3"),
                ("m", 5, "'m' has 4 versions, there is no version 5"),
                ("empty", 1, "what 'empty' said at version 1 is not in its history"),
            ):
                with pytest.raises(InvalidInput, match=words):
                    await history.restore(memory_id, to=to)
            assert len(await history.get_history("m")) == 4

    async def test_a_memory_that_changes_first_conflicts(
        self, open_keeping_store: OpenStore
    ) -> None:
        async with open_keeping_store() as history:
            recorded = await record_changes(history)
            _, record = await asyncio.gather(
                history.add_history("m", "water", "wine", "UPDATE"), history.restore("m", to=1)
            )
            assert (record.old_memory, record.new_memory) == ("wine", "tea")
            texts = [record.new_memory for record in await history.get_history("m")]
        assert texts == [*(record.new_memory for record in recorded), "wine", "tea"]

    async def test_restoring_by_the_time_of_an_earlier_record(
        self, open_keeping_store: OpenStore, tmp_path: Path
    ) -> None:
        """A record without a time has the time of the record before it."""
        changes = (("tea", 0), ("mate", None), ("water", 20))
        lines = [
            json.dumps(
                {
                    "id": f"r{n}",
                    "memory_id": "m",
                    "event": "UPDATE",
                    "new_memory": text,
                    "updated_at": None if minutes is None else at(minutes).isoformat(),
                }
            )
            for n, (text, minutes) in enumerate(changes)
        ]
        async with open_keeping_store() as history:
            await copy_history(JsonLines(lines), history)
            restored = await asyncio.gather(
                *(history.restore("m", to=at(minutes)) for minutes in (-1, 5, 25)),
                return_exceptions=True,
            )
            assert isinstance(restored.pop(0), InvalidInput)
            assert [getattr(one, "new_memory", None) for one in restored] == ["mate", "water"]

    async def test_each_restore_that_wrote_is_logged(self, open_keeping_store: OpenStore) -> None:
        async with open_keeping_store() as history:
            await asyncio.gather(*(record_changes(history, f"m{n}") for n in range(40)))
            restored = await asyncio.gather(
                *(history.restore(f"m{n}", to=1, actor_id=f"a{n}") for n in range(39)),
                history.restore("m39", to=4),
            )
            logged = await history.operations()
        assert [one.new_memory for one in restored] == ["tea"] * 39 + ["water"]
        assert len({one.id for one in logged}) == len(logged) == 39
        for one in logged:
            number = str(one.arguments["memory_id"]).removeprefix("m")
            assert one.arguments == {"memory_id": f"m{number}", "to": 1}
            assert (one.kind, one.state, one.actor_id) == ("restore", "finished", f"a{number}")
            assert (one.records, one.messages, one.process_id) == (1, 0, os.getpid())

    async def test_no_change_is_lost_during_writes(self, open_keeping_store: OpenStore) -> None:
        """Each restore continues the latest record."""
        async with open_keeping_store() as history:
            await record_changes(history)
            results = await asyncio.gather(
                *(history.restore("m", to=1 + n % 2) for n in range(20)),
                *(history.add_history("m", None, f"w{n}", "UPDATE") for n in range(20)),
                *(history.restore("m", to=2 - n % 2) for n in range(20)),
            )
            records = await history.get_history("m")
            append_restoration = {r.id for r in results} - {
                r.id for r in records if (r.new_memory or "").startswith("w")
            }
            for before, after in itertools.pairwise(records):
                if after.id in append_restoration and after.old_memory is not None:
                    assert after.old_memory == before.new_memory
            assert len(records) <= 4 + len(results)

    async def test_restores_to_many_moments_at_once(self, open_keeping_store: OpenStore) -> None:
        """Each finds its own text, whatever the texts are and whatever others ask for."""
        texts = ("tea", "mate " * 1_000, "th\u00e9 \u8336 \U0001f375", "")
        end = datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-12)))
        moments = (1, 2, 3, 4, 99, at(-1), at(0), at(15), at(25), at(35), end)
        async with open_keeping_store() as history:
            for n, text in enumerate(texts):
                changes = [
                    change(f"m{n}", "ADD", None, f"first {n}", 0),
                    change(f"m{n}", "UPDATE", f"first {n}", text, 10),
                    change(f"m{n}", "DELETE", text, None, 20),
                    change(f"m{n}", "ADD", None, f"last {n}", 30),
                ]
                contexts = ({"n": n}, {"t": "\u8336"}, None, {"n": -n})
                await history.batch_add_history(
                    [
                        one | {"context": context}
                        for one, context in zip(changes, contexts, strict=True)
                    ]
                )
            asked = [(f"m{n}", when) for n in range(len(texts)) for when in moments]
            asked += [("none", 1), ("none", at(5))]
            found = [await state_or_error(history, *one) for one in asked]
            restored = await asyncio.gather(
                *(history.restore(memory, to=when) for memory, when in asked),
                return_exceptions=True,
            )
        for one, wanted, record in zip(asked, found, restored, strict=True):
            if wanted is None:
                assert isinstance(record, InvalidInput), one
            else:
                assert isinstance(record, HistoryRecord), one
                assert record.new_memory == wanted.new_memory, one
                assert wanted.context is None or record.context == wanted.context, one

    @pytest.mark.parametrize("store", stores("file", "postgres"))
    async def test_restores_in_an_encrypted_store(
        self, store: str, request: pytest.FixtureRequest, tmp_path: Path
    ) -> None:
        open_store = new_stores(store, request, tmp_path)()
        names = [f"m{n}" for n in range(9)]
        async with open_store(keys=ring("one")) as history:
            for name in names:
                changes = [
                    change(name, "ADD", None, f"tea of {name}", 0),
                    change(name, "UPDATE", f"tea of {name}", "mate", 10),
                ]
                await history.batch_add_history(
                    [one | {"context": {"of": name}} for one in changes]
                )
                await history.update_history(name, "water", context={})
            await asyncio.gather(
                *(history.restore(name, to=1) for name in names[:5]),
                *(history.restore(name, to=at(5)) for name in names[5:]),
            )
        async with open_store(keys=ring("one")) as history:
            for name in names:
                record = (await history.get_history(name))[-1]
                assert (record.old_memory, record.new_memory) == ("water", f"tea of {name}")
                assert record.context == {"of": name}

    async def test_restoring_after_rows_of_other_programs(self, tmp_path: Path) -> None:
        """An old date that a new record may not have does not prevent restoring."""
        path = tmp_path / "history.db"
        with contextlib.closing(sqlite3.connect(path)) as other:
            TODAY.build(other)
            for n, made in enumerate((None, "2025", "yesterday", "2025-06-01 10:00:00")):
                for event, text in (("ADD", "tea"), ("UPDATE", "mate")):
                    row = (f"{event}{n}", f"m{n}", None, text, event, made, None, 0, *NO)
                    other.execute(f"INSERT INTO history VALUES ({', '.join('?' * 10)})", row)
            other.commit()
        async with open_history(path) as history:
            append_restoration = [await history.restore(f"m{n}", to=1) for n in range(4)]
        dates = [record.created_at for record in append_restoration]
        assert dates == [None, None, None, "2025-06-01T10:00:00+00:00"]
