"""Writes that depend on a memory's latest record: `if_latest`, `update_history`, `restore`."""

import asyncio
import contextlib
import random
import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from async_history import (
    HistoryConflict,
    HistoryManager,
    HistoryRecord,
    IdConflict,
    InvalidInput,
    StorageRefused,
    open_history,
)
from async_history._sqlite.writing.commit import BatchCommitter
from async_history.blocking import BlockingHistoryManager
from async_history.postgres import PostgresHistoryManager
from async_history.sqlite import SQLiteHistoryManager
from tests.conftest import OpenStore, stores

pytestmark = [pytest.mark.once, pytest.mark.statements]

MANY = 300


async def texts(history: HistoryManager, memory_id: str) -> list[str | None]:
    return [record.new_memory for record in await history.get_history(memory_id)]


def check_chain(records: Sequence[HistoryRecord]) -> None:
    """Check that each record continues the one before it."""
    for before, after in pairwise(records):
        assert after.old_memory == before.new_memory


@contextlib.asynccontextmanager
async def counted(history: HistoryManager) -> Any:
    """Count the statements of the connection that writes."""
    sent: list[str] = []
    if isinstance(history, SQLiteHistoryManager):
        connection = history.store.pool._writer
        assert connection is not None
        await connection.set_trace_callback(sent.append)
        yield sent
        await connection.set_trace_callback(None)  # type: ignore[arg-type]
    else:
        assert isinstance(history, PostgresHistoryManager)
        assert history.store.connections._writing is not None
        writing = history.store.connections._writing._connection

        def hear(query: Any) -> None:
            sent.append(query.query)

        writing.add_query_logger(hear)
        yield sent
        writing.remove_query_logger(hear)


CONDITIONAL: Mapping[str, Callable[[HistoryManager, HistoryRecord], Awaitable[HistoryRecord]]] = {
    "if_latest": lambda history, one: history.add_history(
        one.memory_id, "x", "y", "UPDATE", if_latest=one
    ),
    "update": lambda history, one: history.update_history(one.memory_id, "y"),
    "restore": lambda history, one: history.restore(one.memory_id, to=1),
}


class TestGrouping:
    @pytest.mark.parametrize("how", [*CONDITIONAL, "all"])
    async def test_many_calls_at_once_take_a_few_statements(
        self, open_keeping_store: OpenStore, how: str
    ) -> None:
        ways = list(CONDITIONAL.values()) if how == "all" else [CONDITIONAL[how]]
        async with open_keeping_store() as history:
            await asyncio.gather(
                *(history.add_history(f"m{n}", None, "y", "ADD") for n in range(MANY))
            )
            latest = await asyncio.gather(
                *(history.update_history(f"m{n}", "x") for n in range(MANY))
            )
            async with counted(history) as sent:
                await asyncio.gather(
                    *(ways[n % len(ways)](history, one) for n, one in enumerate(latest))
                )
            # In a few batches. SQLite reports a statement again for each step of its triggers.
            assert len(set(sent)) < 60
            for one in latest[::10]:
                records = await history.get_history(one.memory_id)
                assert [r.new_memory for r in records] == ["y", "x", "y"]
                check_chain(records)


async def test_memories_of_any_name_in_one_batch(open_keeping_store: OpenStore) -> None:
    names = [
        "'",
        '"',
        "\\",
        "\\u0041",
        "\x01",
        "é\u2028",
        "\U0001f600",
        "{}",
        "null",
        "0",
        "1.5",
        "A",
        "a",
    ]
    async with open_keeping_store() as history:
        for text in ("tea", "mate"):
            await asyncio.gather(
                *(history.update_history(name, f"{text} {name}") for name in names)
            )
        restored = await asyncio.gather(*(history.restore(name, to=1) for name in names))
        for name, record in zip(names, restored, strict=True):
            assert (record.memory_id, record.event) == (name, "UPDATE")
            assert (record.old_memory, record.new_memory) == (f"mate {name}", f"tea {name}")


class Model:
    """Makes calls at the same time and knows what each must do, in the order of the calls."""

    def __init__(self, history: HistoryManager, seed: int) -> None:
        self._history = history
        self._random = random.Random(seed)  # noqa: S311
        self.records: dict[str, list[HistoryRecord]] = {f"m{n}": [] for n in range(4)}
        self.texts: dict[str, list[str]] = {memory_id: [] for memory_id in self.records}

    def call(self, number: int) -> tuple[Awaitable[Any], bool]:
        """Return a call, and whether it must be refused."""
        memory_id = self._random.choice(list(self.texts))
        known, there = self.records[memory_id], self.texts[memory_id]
        text = f"text {number}"
        kinds = ("add", "if_latest", "batch", "update", "update", "same", "restore")
        kind = self._random.choice(kinds)
        if kind in ("if_latest", "batch") and known:
            seen = self._random.choice(known[-2:])
            is_latest = seen is known[-1] and len(there) == len(known)
            expected = self._random.choice((seen, seen.id))
            if kind == "batch":
                given = [
                    {"memory_id": memory_id, "new_memory": f"{text}.{n}", "event": "UPDATE"}
                    for n in range(3)
                ]
                if is_latest:
                    there += [str(one["new_memory"]) for one in given]
                return self._history.batch_add_history(given, if_latest=expected), not is_latest
            if is_latest:
                there.append(text)
            return self._history.add_history(
                memory_id, None, text, "UPDATE", if_latest=expected
            ), not is_latest
        if kind == "restore" and known:
            # Half of them restore the latest text of before the round: often it still is.
            version = self._random.choice((self._random.randint(1, len(known)), len(known)))
            if there[version - 1] != there[-1]:
                there.append(there[version - 1])
            return self._history.restore(memory_id, to=version), False
        if kind == "same" and there:
            return self._history.update_history(memory_id, there[-1]), False
        there.append(text)
        if kind == "add":
            return self._history.add_history(memory_id, None, text, "UPDATE"), False
        return self._history.update_history(memory_id, text), False

    async def round(self, number: int) -> None:
        calls = [self.call(100 * number + n) for n in range(40)]
        results = await asyncio.gather(*(call for call, _ in calls), return_exceptions=True)
        for result, (_, is_refused) in zip(results, calls, strict=True):
            if is_refused:
                assert isinstance(result, HistoryConflict)
            else:
                assert isinstance(result, HistoryRecord | list)
        for memory_id in self.records:
            self.records[memory_id] = await self._history.get_history(memory_id)
            assert await texts(self._history, memory_id) == self.texts[memory_id]


class TestWithinABatch:
    @pytest.mark.parametrize("seed", range(2))
    async def test_each_call_sees_what_earlier_calls_write(
        self, open_keeping_store: OpenStore, seed: int
    ) -> None:
        async with open_keeping_store() as history:
            model = Model(history, seed)
            for number in range(4):
                await model.round(number)

    @pytest.mark.parametrize("store", stores("file", "postgres"))
    async def test_a_record_that_a_trigger_refuses_is_not_the_latest(
        self, store: str, tmp_path: Path, postgres: str, new_schema: Callable[[], str]
    ) -> None:
        url = str(tmp_path / "h.db") if store == "file" else new_schema()
        async with open_history(url) as history:
            first = await history.add_history("m", None, "first", "ADD")
            for text in ("no", "yes"):
                latest = await history.update_history("restored", text)
            if store == "file":
                with contextlib.closing(sqlite3.connect(url)) as owner:
                    owner.execute(
                        "CREATE TRIGGER no AFTER INSERT ON history WHEN new.new_memory = 'no' "
                        "BEGIN SELECT RAISE(ABORT, 'no'); END"
                    )
            else:
                schema = parse_qs(urlsplit(url).query)["schema"][0]
                connection = await asyncpg.connect(postgres)
                await connection.execute(
                    f"ALTER TABLE {schema}.history ADD CHECK (new_memory IS DISTINCT FROM 'no') "
                    "NOT VALID"
                )
                await connection.close()
            results = await asyncio.gather(
                history.update_history("other", "x"),
                history.add_history("m", "first", "no", "UPDATE", if_latest=first),
                history.update_history("m", "no"),
                history.add_history("m", "first", "second", "UPDATE", if_latest=first),
                history.add_history("m", "first", "late", "UPDATE", if_latest=first),
                history.update_history("m", "third"),
                return_exceptions=True,
            )
            assert [type(result) for result in results] == [
                HistoryRecord,
                StorageRefused,
                StorageRefused,
                HistoryRecord,
                HistoryConflict,
                HistoryRecord,
            ]
            records = await history.get_history("m")
            assert [record.new_memory for record in records] == ["first", "second", "third"]
            check_chain(records)
            refused, unchanged = await asyncio.gather(
                history.restore("restored", to=1),
                history.restore("restored", to=2),
                return_exceptions=True,
            )
            assert (type(refused), unchanged) == (StorageRefused, latest)


async def test_if_latest_is_for_records_of_one_memory(open_store: OpenStore) -> None:
    def change(memory_id: str) -> dict[str, str]:
        return {"memory_id": memory_id, "event": "UPDATE"}

    async with open_store() as history:
        for records in ([change("a"), change("b")], [change(str(n % 2)) for n in range(1_200)]):
            with pytest.raises(InvalidInput, match=r"if_latest .* several memories"):
                await history.batch_add_history(records, if_latest="some id")
        assert await history.batch_add_history([], if_latest="some id") == []
        unusable: tuple[Any, ...] = (5, "", "a\0b", {})
        for value in unusable:
            with pytest.raises(InvalidInput, match="if_latest"):
                await history.add_history("m", None, "x", "ADD", if_latest=value)


async def test_an_id_of_another_memory_is_a_conflict(open_keeping_store: OpenStore) -> None:
    async with open_keeping_store() as history:
        one = await history.add_history("one", None, "x", "ADD")
        await history.add_history("two", None, "x", "ADD")
        for memory_id in ("two", "three"):
            with pytest.raises(HistoryConflict, match=one.id):
                await history.add_history(memory_id, "x", "y", "UPDATE", if_latest=one.id)
        await history.add_history("one", "x", "y", "UPDATE", if_latest=one.id)
        # The record names its memory, whatever is written.
        with pytest.raises(HistoryConflict, match="is not the latest of memory 'one'"):
            await history.batch_add_history([{"memory_id": "two", "event": "ADD"}], if_latest=one)


class TestUpdate:
    async def test_the_records_of_update_history(self, open_keeping_store: OpenStore) -> None:
        async with open_keeping_store() as history:
            when = datetime(2026, 1, 2, 3, tzinfo=UTC)
            added = await history.update_history("m", "tea", actor_id="ann", role="user")
            updated = await history.update_history("m", "mate", updated_at=when, id="mine")
            same = await history.update_history("m", "mate", actor_id="bob")
            await history.add_history("m", "mate", None, "DELETE")
            again = await history.update_history("m", "mate")
            assert (added.event, added.old_memory, added.actor_id) == ("ADD", None, "ann")
            assert (updated.event, updated.old_memory, updated.id) == ("UPDATE", "tea", "mine")
            assert (updated.created_at, updated.occurred_at) == (added.created_at, when)
            assert same == updated
            assert (again.event, again.old_memory, again.is_deleted) == ("ADD", None, False)
            records = await history.get_history("m")
            assert [records[0], records[1], records[3]] == [added, updated, again]
            assert len(records) == 4

    async def test_update_history_with_an_id(self, open_keeping_store: OpenStore) -> None:
        async with open_keeping_store() as history:
            first = await history.update_history("m", "tea", id="a", actor_id="ann")
            await history.update_history("m", "mate")
            assert await history.update_history("m", "tea", id="a", actor_id="ann") == first
            assert await history.update_history("m", "tea", id="a") == first
            others: tuple[dict[str, Any], ...] = (
                {"memory_id": "m", "new_memory": "water"},
                {"memory_id": "n", "new_memory": "tea"},
                {"memory_id": "m", "new_memory": "tea", "actor_id": "bob"},
                {"memory_id": "m", "new_memory": "tea", "updated_at": "2026-01-01T00:00:00Z"},
            )
            for other in others:
                with pytest.raises(IdConflict):
                    await history.update_history(**other, id="a")
            assert await texts(history, "m") == ["tea", "mate"]

    async def test_bad_arguments_are_refused_at_once(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            wrongs: tuple[dict[str, Any], ...] = (
                {"memory_id": "", "new_memory": "x"},
                {"memory_id": "m", "new_memory": None},
                {"memory_id": "m", "new_memory": "x\0"},
                {"memory_id": "m", "new_memory": "x", "updated_at": "soon"},
                {"memory_id": "m", "new_memory": "x", "actor_id": 1},
            )
            for wrong in wrongs:
                with pytest.raises(InvalidInput):
                    await history.update_history(**wrong)
            with pytest.raises(InvalidInput, match="updated_at"):
                await history.update_history("m", "x", updated_at="soon")
            with pytest.raises(InvalidInput, match="if_latest"):
                await history.add_history("m", None, "x", "ADD", if_latest="")
            assert await history.get_history("m") == []

    async def test_two_managers_update_at_the_same_time(
        self, open_keeping_store: OpenStore
    ) -> None:
        async with open_keeping_store() as one, open_keeping_store() as other:
            await asyncio.gather(
                *(
                    manager.update_history(f"m{n % 2}", f"{name} {n}")
                    for n in range(60)
                    for name, manager in (("one", one), ("other", other))
                )
            )
            for manager in (one, other):
                for memory_id in ("m0", "m1"):
                    check_chain(await manager.get_history(memory_id))

    async def test_update_history_on_the_null_manager(self) -> None:
        async with open_history("null://") as history:
            for _ in range(2):
                record = await history.update_history("m", "tea")
                assert (record.event, record.new_memory) == ("ADD", "tea")

    def test_update_history_of_a_blocking_manager(self, tmp_path: Path) -> None:
        history = BlockingHistoryManager(tmp_path / "h.db")
        history.update_history("m", "tea", actor_id="ann")
        record = history.update_history("m", "mate")
        assert history.get_history("m")[1] == record
        assert (record["event"], record["old_memory"]) == ("UPDATE", "tea")
        history.close()

    async def test_a_commit_that_took_effect_but_reported_an_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real: Any = BatchCommitter.commit
        failures = [sqlite3.SQLITE_IOERR_FSYNC] * 2

        async def commit(
            committer: BatchCommitter, batch: Sequence[Any], *, is_repeated: bool
        ) -> Mapping[int, Any]:
            refused: Mapping[int, Any] = await real(committer, batch, is_repeated=is_repeated)
            if failures:
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = failures.pop(0)
                raise error
            return refused

        async with open_history(tmp_path / "h.db") as history:
            first = await history.add_history("m", None, "x", "ADD", id="first")
            monkeypatch.setattr(BatchCommitter, "commit", commit)
            await asyncio.gather(
                history.update_history("m", "y"),
                history.update_history("m", "y"),
                history.update_history("n", "y"),
                history.update_history("m", "z"),
                history.restore("m", to=1),
                history.restore("m", to=1),
            )
            assert not failures
            records = await history.get_history("m")
            assert [record.new_memory for record in records] == ["x", "y", "z", "x"]
            check_chain(records)
            assert records[0] == first
            assert await texts(history, "n") == ["y"]
            (logged,) = await history.operations()
            assert (logged.kind, logged.state, logged.records) == ("restore", "finished", 1)


class TestInAFile:
    async def test_the_latest_record_is_found_wherever_it_is_indexed(self, tmp_path: Path) -> None:
        """In any level of the index, or not indexed yet, written by us or by others."""
        path = tmp_path / "h.db"
        async with open_history(path) as history:
            for n in range(4):
                await history.batch_add_history(
                    [
                        {"memory_id": f"m{k % 500}", "new_memory": f"{n}.{k}", "event": "UPDATE"}
                        for k in range(3_000)
                    ]
                )
            for k in range(3):
                await history.add_history(f"m{k}", None, "alone", "UPDATE")
            with contextlib.closing(sqlite3.connect(path)) as other, other:
                other.executemany(
                    "INSERT INTO history (id, memory_id, new_memory, event) "
                    "VALUES (?, ?, 'theirs', 'UPDATE')",
                    [(f"theirs {n}", f"m{2 + n}") for n in range(100)],
                )
            before = [r.id async for r in history.query_history(order="newest", page_size=1000)]
            updated = await asyncio.gather(
                *(history.update_history(f"m{k}", "after") for k in range(500))
            )
            assert len(before) == 12_103
            for record in updated:
                check_chain((await history.get_history(record.memory_id))[-2:])
            old = [record.old_memory for record in updated]
            assert old[:2] == ["alone"] * 2
            assert old[2:102] == ["theirs"] * 100
            assert old[102:] == [f"3.{2_500 + k}" for k in range(102, 500)]

    @pytest.mark.parametrize("how", ["update", "restore"])
    async def test_a_row_that_another_program_gave_to_the_memory_is_its_latest(
        self, tmp_path: Path, how: str
    ) -> None:
        path = tmp_path / "h.db"
        async with open_history(path) as history:
            await asyncio.gather(
                *(history.add_history(f"m{n}", None, f"old {n}", "ADD") for n in range(20))
            )
            for n in range(20):
                await history.add_history(f"other {n}", None, f"theirs {n}", "ADD", id=f"id {n}")
            await asyncio.gather(
                *(history.add_history(f"later {n}", None, "x", "ADD") for n in range(100))
            )
            with contextlib.closing(sqlite3.connect(path)) as other, other:
                other.execute(
                    "UPDATE history SET memory_id = replace(memory_id, 'other ', 'm') "
                    "WHERE id GLOB 'id *'"
                )
            calls = [
                CONDITIONAL[how](history, HistoryRecord("", f"m{n}", None, None, "ADD"))
                for n in range(20)
            ]
            for n, record in enumerate(await asyncio.gather(*calls)):
                assert record.old_memory == f"theirs {n}"
                check_chain((await history.get_history(record.memory_id))[-2:])

    async def test_rows_that_json_cannot_hold_do_not_disturb(self, tmp_path: Path) -> None:
        path = tmp_path / "h.db"
        async with open_history(path) as history:
            with contextlib.closing(sqlite3.connect(path)) as other, other:
                other.execute(
                    "INSERT INTO history (id, memory_id, new_memory, event, role) "
                    "VALUES ('theirs', 'm', 'old', 'ADD', x'00ff')"
                )
            updates = [history.update_history(name, "new") for name in ("m", "n")]
            record, _ = await asyncio.gather(*updates)
            assert (record.event, record.old_memory) == ("UPDATE", "old")

    async def test_restored_rows_that_json_cannot_hold(self, tmp_path: Path) -> None:
        path = tmp_path / "h.db"
        ids, times = [b"\0\xff", "a", "b", "c"], [None, 20260101, 2026.5, b"2026-01-01"]
        rows = [(one, f"m{n}", "old", times[n]) for n, one in enumerate(ids)]
        rows += [(f"{n} newer", f"m{n}", "new", times[n]) for n in range(4)]
        async with open_history(path) as history:
            with contextlib.closing(sqlite3.connect(path)) as other, other:
                other.executemany(
                    "INSERT INTO history (id, memory_id, new_memory, event, created_at) "
                    "VALUES (?, ?, ?, 'UPDATE', ?)",
                    rows,
                )
            restored = await asyncio.gather(*(history.restore(f"m{n}", to=1) for n in range(4)))
            for record in restored:
                assert (record.old_memory, record.new_memory) == ("new", "old")
            created = [record.created_at for record in restored]
            assert created == [None, "2026-01-01T00:00:00+00:00", None, None]
