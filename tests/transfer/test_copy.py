"""Copies: in order, unchanged, interrupted anywhere, and stopped if a target differs."""

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mem0.memory.storage import SQLiteManager

from async_history import (
    CopyMismatch,
    CopyReport,
    HistoryManager,
    HistoryRecord,
    IdConflict,
    InvalidInput,
    JsonLines,
    Message,
    MigrationError,
    Owner,
    OwnerConflict,
    StorageError,
    StorageMissing,
    copy_history,
    dump_lines,
    open_history,
)
from async_history._transfer.copy import CopyLimits, copy_within
from async_history._transfer.sources import RecordSource
from async_history.postgres import ForeignTable
from tests.conftest import OpenStore, new_stores, stores, url_of
from tests.support.postgres_server import with_query

pytestmark = pytest.mark.once

Urls = Callable[[], str]
Copy = Callable[[HistoryManager | RecordSource, HistoryManager], Awaitable[CopyReport]]

MEM0_TABLE = """
CREATE TABLE history (
    id TEXT PRIMARY KEY, memory_id TEXT, old_memory TEXT, new_memory TEXT, event TEXT,
    created_at DATETIME, updated_at DATETIME, is_deleted INTEGER, actor_id TEXT, role TEXT
)
"""
INSERT = "INSERT INTO history VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


copy_in_small_pages = partial(copy_within, CopyLimits(records=3, compared=2))
"""Copy pages of three records, which are read back two at a time."""


def legacy_file(path: Path, rows: Sequence[Sequence[Any]]) -> str:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(MEM0_TABLE)
        connection.executemany(INSERT, rows)
    return str(path)


async def filled(history: HistoryManager, count: int, prefix: str = "r") -> list[HistoryRecord]:
    return await history.batch_add_history(
        [
            {"id": f"{prefix}{n}", "memory_id": f"m{n % 4}", "new_memory": str(n), "event": "ADD"}
            for n in range(count)
        ]
    )


async def all_of(history: HistoryManager) -> list[HistoryRecord]:
    return [record async for record in history.query_history()]


class TestEveryBackend:
    async def test_everything_arrives_in_order(
        self, open_keeping_store: OpenStore, tmp_path: Path
    ) -> None:
        seen: list[tuple[int, int | None]] = []
        async with open_history(tmp_path / "source.db") as source, open_keeping_store() as target:
            records = await filled(source, 20)
            report = await copy_in_small_pages(
                source, target, on_progress=lambda *done: seen.append(done)
            )
            assert await all_of(target) == records
            assert (report.records, report.written) == (20, 20)
            assert seen == [(done, 20) for done in (3, 6, 9, 12, 15, 18, 20)]
            again = await copy_in_small_pages(source, target)
            assert (again.records, again.written, again.digest) == (20, 0, report.digest)
            more = await filled(source, 2, "more")
            assert (await copy_in_small_pages(source, target)).written == 2
            assert await all_of(target) == records + more
            back = tmp_path / "back.db"
            async with open_history(back) as third:
                assert (await copy_in_small_pages(target, third)).records == 22
                assert await all_of(third) == records + more

    async def test_an_empty_history_can_be_copied(self, open_store: OpenStore) -> None:
        async with open_history("memory://") as source, open_store() as target:
            report = await copy_history(source, target)
        assert (report.records, report.written, report.scopes) == (0, 0, 0)

    async def test_the_null_manager_is_not_a_target(self) -> None:
        async with open_history("memory://") as source, open_history("null://") as target:
            await filled(source, 1)
            with pytest.raises(CopyMismatch, match="r0"):
                await copy_history(source, target)

    async def test_the_targets_other_records_stay(self, open_keeping_store: OpenStore) -> None:
        async with open_history("memory://") as source, open_keeping_store() as target:
            records = await filled(source, 10)
            before = await filled(target, 7, "own")
            await copy_in_small_pages(source, target)
            between = await filled(target, 5, "late")
            more = await filled(source, 4, "more")
            report = await copy_in_small_pages(source, target)
            assert (report.records, report.written) == (14, 4)
            assert await all_of(target) == before + records + between + more

    async def test_an_id_of_another_record_of_the_target_is_a_conflict(
        self, open_keeping_store: OpenStore
    ) -> None:
        async with open_history("memory://") as source, open_keeping_store() as target:
            records = await filled(source, 10)
            one = await target.batch_add_history([records[7].as_dict() | {"role": "user"}])
            with pytest.raises(IdConflict, match="r7"):
                await copy_in_small_pages(source, target)
            assert await all_of(target) == one + records[:6]

    async def test_message_buffers_are_copied_and_continue(self, open_store: OpenStore) -> None:
        async with open_history("memory://") as source, open_store() as target:
            for scope in range(130):
                texts = [Message("user", f"{scope} {n}", is_json=n == 1) for n in range(3)]
                await source.save_messages(texts, f"scope {scope:03}")
            kept = await source.get_last_messages("scope 007")
            report = await copy_history(source, target)
            assert (report.scopes, report.scopes_left) == (130, 0)
            assert await target.get_last_messages("scope 007") == kept, "times and kind too"
            await source.save_messages([Message("user", str(n)) for n in range(9)], "scope 007")
            await target.save_messages([Message("user", "answer")], "scope 008")
            await source.save_messages([Message("user", "other")], "scope 008")
            report = await copy_history(source, target)
            assert (report.scopes, report.scopes_left) == (130, 1)
            kept = await source.get_last_messages("scope 007")
            assert await target.get_last_messages("scope 007") == kept
            last = [m.content for m in await target.get_last_messages("scope 008")]
            assert last == ["8 0", "8 1", "8 2", "answer"], (
                "another conversation began in this scope"
            )

    async def test_a_file_whose_name_is_not_utf8_is_a_source(
        self, open_keeping_store: OpenStore, tmp_path: Path
    ) -> None:
        path = tmp_path / os.fsdecode(b"\xff.db")
        async with open_history(path) as source, open_keeping_store() as target:
            await filled(source, 3)
            assert (await copy_history(source, target)).written == 3
            operations = [one for one in await target.operations() if one.kind == "copy"]
            assert [one.arguments["source"] for one in operations] == [str(tmp_path / "?.db")]

    async def test_scopes_are_listed_in_pages(self, open_store: OpenStore) -> None:
        names = sorted(["b", "a", "ü", "Z", "a b", "é"], key=str.encode)
        async with open_store() as history:
            for name in names[::-1]:
                await history.save_messages([Message("user", "x")] * 2, name)
            assert list(await history.store.reader.scopes("", 4)) == names[:4]
            assert list(await history.store.reader.scopes(names[3], 4)) == names[4:]

    async def test_sources_that_are_not_histories_are_refused(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            with pytest.raises(InvalidInput, match="source must be"):
                await copy_history("x.db", history)  # type: ignore[arg-type]
            with pytest.raises(InvalidInput, match="target must be"):
                await copy_history(history, "x.db")  # type: ignore[arg-type]


class TestUnchanged:
    ROWS = (
        ("1", "m", None, "x", "ADD", None, None, 0, None, None),
        ("2", "m", "x", "y", "MERGE", "2025-01-01 00:00:00.5", None, None, "", ""),
        ("3", "m", "", "", "UPDATE", "2025", "1735689600.5", 7, "ä", "r"),
        ("4", "", "y", None, "DELETE", None, None, 1, "actor", "user"),
        ("5", "m", "y", None, "DELETE", None, None, 0, "actor", "user"),
        ("a'\x1f\x1e", "m", "\x1f\x1e", "☃\n\r", "", "yesterday", "", 1, "\x1f", "\x1e"),
        ("6", "m", "y", "z", "UPDATE", None, "2025-01-02T00:00:00+02:00", 0, None, None),
        ("7", "m", "z", None, "DELETE", None, None, 1, None, None),
    )

    async def test_rows_of_other_programs(self, new_schema: Urls, tmp_path: Path) -> None:
        file = legacy_file(tmp_path / "mem0.db", self.ROWS)
        url, back = new_schema(), str(tmp_path / "back.db")
        async with (
            open_history(file, migrate=False) as source,
            open_history(url) as server,
            open_history(back) as again,
        ):
            first = await copy_history(source, server)
            second = await copy_history(server, again)
            assert first.digest == second.digest
            expected = [record.as_dict() for record in await all_of(source)]
            assert [record["id"] for record in expected] == [row[0] for row in self.ROWS]
            assert [record.as_dict() for record in await all_of(server)] == expected
            assert [record.as_dict() for record in await all_of(again)] == expected
            times = [record.occurred_at for record in await source.get_history("m")]
            assert times[-1] is not None
            last = (await server.get_history("m"))[-1]
            assert last.occurred_at == times[-1], "the time of the record before"
        with closing(sqlite3.connect(file)) as connection:
            rows = connection.execute("SELECT * FROM history").fetchall()
        assert [row[:5] for row in rows] == [row[:5] for row in self.ROWS], "only read"

    @pytest.mark.parametrize(
        ("row", "words"),
        [
            ((None, "m", None, "x", "ADD", None, None, 0, None, None), "id must be text"),
            (("", "m", None, "x", "ADD", None, None, 0, None, None), "id must not be empty"),
            (("9", None, None, "x", "ADD", None, None, 0, None, None), "'9'.*memory_id must be"),
            (("9", "m", None, "x", None, None, None, 0, None, None), "'9'.*event must be text"),
            (("9", "m", None, b"x", "ADD", None, None, 0, None, None), "'9'.*new_memory must be"),
            (("9", "m", "a\0b", "x", "ADD", None, None, 0, None, None), "'9'.*old_memory holds a"),
        ],
    )
    async def test_a_record_that_the_target_cannot_store_is_named(
        self, row: Sequence[Any], words: str, tmp_path: Path
    ) -> None:
        good = [(str(n), "m", None, "x", "ADD", None, None, 0, None, None) for n in range(7)]
        file = legacy_file(tmp_path / "mem0.db", [*good, row])
        async with (
            open_history(file, migrate=False) as source,
            open_history("memory://") as target,
        ):
            with pytest.raises(InvalidInput, match=words):
                await copy_in_small_pages(source, target)
            there = [record.id for record in await all_of(target)]
            assert there == [str(n) for n in range(len(there))]

    def test_any_record_survives_the_round_trip(self, new_schema: Urls, tmp_path: Path) -> None:
        texts = st.text(
            st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12
        )
        maybe = st.none() | texts
        times = (
            st.none()
            | st.sampled_from(["2025", "1735689600.5", "", "soon"])
            | st.datetimes(timezones=st.timezones() | st.none()).map(
                lambda moment: moment.isoformat()
            )
        )
        events = st.sampled_from(["ADD", "UPDATE", "DELETE", "NONE", "add"]) | texts
        memories = st.sampled_from(["m", "n", "", "ü"])
        rows = st.tuples(memories, maybe, maybe, events, times, times, st.booleans(), maybe, maybe)
        number = 0

        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(rows, max_size=12), st.integers(1, 5), st.integers(1, 5))
        def round_trip(some: list[tuple[Any, ...]], page: int, compared: int) -> None:
            nonlocal number
            number += 1
            file = legacy_file(
                tmp_path / f"{number}.db", [(f"id {n}", *row) for n, row in enumerate(some)]
            )
            limits = CopyLimits(records=page, compared=compared)
            asyncio.run(self.check_round_trip(file, url, partial(copy_within, limits)))

        url = new_schema()
        round_trip()

    async def check_round_trip(self, file: str, url: str, copied: Copy) -> None:
        async with (
            open_history(file, migrate=False) as source,
            open_history(url) as server,
            open_history("memory://") as back,
            open_history("memory://") as from_lines,
        ):
            await server.reset()
            lines = [line async for line in dump_lines(source)]
            digests = {
                (await copied(source, server)).digest,
                (await copied(server, back)).digest,
                (await copied(JsonLines(lines), from_lines)).digest,
            }
            assert len(digests) == 1
            expected = [record.as_dict() for record in await all_of(source)]
            for history in (server, back, from_lines):
                assert [record.as_dict() for record in await all_of(history)] == expected
            assert [json.loads(line) for line in lines] == expected


def cut_calls(history: HistoryManager) -> Iterator[tuple[Any, str]]:
    """Yield every method of a store that a copy calls."""
    for name in ("rows", "scopes", "newest"):
        yield history.store.primary_reader, name
    yield history.store.writer, "submit"
    yield history, "get_last_messages"


class Cut:
    """Interrupts a copy before or after its nth call of either store."""

    def __init__(self, step: int, *, after: bool, act: Callable[[], object]) -> None:
        self.left = step
        self.has_cut = False
        self._after = after
        self._act = act

    def watch(self, patch: pytest.MonkeyPatch, history: HistoryManager) -> None:
        for part, name in cut_calls(history):
            patch.setattr(part, name, self._watched(getattr(part, name)))

    def _watched(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., "asyncio.Future[Any]"]:
        async def watched(*arguments: Any) -> Any:
            self.left -= 1
            is_turn = self.left == 0
            if is_turn and not self._after:
                self._cut()
            result = await call(*arguments)
            if is_turn and self._after:
                self._cut()
            return result

        return lambda *arguments: asyncio.ensure_future(watched(*arguments))

    def _cut(self) -> None:
        self.has_cut = True
        self._act()


def fail() -> None:
    raise StorageError("cut")


def cancel_first(tasks: Sequence["asyncio.Task[CopyReport]"]) -> None:
    tasks[0].cancel()


@pytest.mark.faults
class TestInterrupted:
    @pytest.mark.parametrize("after", [False, True])
    @pytest.mark.parametrize("kind", ["cancelled", "failed"])
    @pytest.mark.parametrize("new_keeping_store", stores("memory"), indirect=True)
    async def test_interrupted_at_every_call_and_finished(
        self, open_keeping_store: OpenStore, after: bool, kind: str
    ) -> None:
        await self.interrupted(open_keeping_store, range(1, 100), after=after, kind=kind)

    @pytest.mark.parametrize(("kind", "after"), [("cancelled", True), ("failed", False)])
    @pytest.mark.parametrize("new_keeping_store", stores("file", "postgres"), indirect=True)
    async def test_interrupted_at_every_fifth_call_of_a_database(
        self, open_keeping_store: OpenStore, after: bool, kind: str
    ) -> None:
        steps = range(random.randint(1, 5), 100, 5)  # noqa: S311 - a test's random choices
        await self.interrupted(open_keeping_store, steps, after=after, kind=kind)

    async def interrupted(
        self, open_keeping_store: OpenStore, steps: range, *, after: bool, kind: str
    ) -> None:
        async with open_history("memory://") as source, open_keeping_store() as target:
            records = await filled(source, 13)
            await source.save_messages([Message("user", "hello")], "scope")
            whole = await copy_in_small_pages(source, target)
            for step in steps:
                await target.reset()
                own = await filled(target, 3, "own")
                done: list[asyncio.Task[CopyReport]] = []
                cut = Cut(
                    step,
                    after=after,
                    act=fail if kind == "failed" else partial(cancel_first, done),
                )
                with pytest.MonkeyPatch.context() as patch:
                    cut.watch(patch, source)
                    cut.watch(patch, target)
                    done.append(asyncio.ensure_future(copy_in_small_pages(source, target)))
                    await asyncio.wait(done)
                if not cut.has_cut:
                    assert done[0].result().records == 13
                    break
                assert done[0].cancelled() or isinstance(done[0].exception(), StorageError)
                there = await all_of(target)
                assert there == own + records[: len(there) - 3], f"no gap, at call {step}"
                report = await copy_in_small_pages(source, target)
                assert (report.records, report.digest) == (13, whole.digest)
                assert report.written <= 13 - (len(there) - 3)
                assert await all_of(target) == own + records
                assert [m.content for m in await target.get_last_messages("scope")] == ["hello"]
            else:
                pytest.fail("the copy never ended")
            assert step > 20

    @pytest.mark.subprocess
    async def test_killed_and_finished(self, tmp_path: Path) -> None:
        source, target = tmp_path / "source.db", tmp_path / "target.db"
        program = (
            "import asyncio, sys\n"
            "from async_history import open_history\n"
            "from async_history._transfer.copy import CopyLimits, copy_within\n"
            "limits = CopyLimits(records=50)\n"
            "def step(*done):\n"
            "    print(*done, flush=True)\n"
            "    sys.stdin.readline()\n"
            "async def main():\n"
            "    async with open_history(sys.argv[1]) as a, open_history(sys.argv[2]) as b:\n"
            "        await copy_within(limits, a, b, on_progress=step)\n"
            "asyncio.run(main())\n"
        )
        async with open_history(source) as history:
            records = await filled(history, 2_000)
        for lines in (1, 3, 7, 15, 30):
            with subprocess.Popen(
                [sys.executable, "-c", program, str(source), str(target)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            ) as process:
                assert process.stdin is not None
                assert process.stdout is not None
                for _ in range(lines):
                    assert process.stdout.readline()
                    process.stdin.write(b"\n")
                    process.stdin.flush()
                process.send_signal(signal.SIGKILL)
        async with open_history(source) as history, open_history(target) as copy:
            there = len(await all_of(copy))
            assert 0 < there < 2_000
            report = await copy_history(history, copy)
            assert (report.records, report.written) == (2_000, 2_000 - there)
            assert await all_of(copy) == records

    async def test_two_copies_at_once_copy_each_record_once(
        self, open_keeping_store: OpenStore
    ) -> None:
        async with open_history("memory://") as source, open_keeping_store() as target:
            records = await filled(source, 40)
            reports = await asyncio.gather(*(copy_in_small_pages(source, target) for _ in range(3)))
            assert await all_of(target) == records
            assert {report.records for report in reports} == {40}


class TestWhileOthersWrite:
    async def test_writes_to_the_source(self, open_keeping_store: OpenStore) -> None:
        async with open_keeping_store() as source, open_history("memory://") as target:
            before = await filled(source, 30)
            going_on = True

            async def write(number: int) -> None:
                while going_on:
                    await source.add_history(f"w{number}", None, "x", "ADD")

            writing = [asyncio.create_task(write(n)) for n in range(4)]
            report = await copy_in_small_pages(source, target)
            going_on = False
            await asyncio.gather(*writing)
            there = await all_of(target)
            assert there[:30] == before
            assert report.records == len(there) >= 30
            everything = await all_of(source)
            assert there == everything[: len(there)]
            await copy_in_small_pages(source, target)
            assert await all_of(target) == everything

    async def test_writes_to_the_target(self, new_schema: Urls) -> None:
        limits = CopyLimits(records=3, compared=20)
        url = new_schema()
        async with (
            open_history("memory://") as source,
            open_history(url) as target,
            open_history(url) as other,
            open_history(url) as third,
        ):
            records = await filled(source, 150)
            going_on = True

            async def write(history: HistoryManager) -> None:
                while going_on:
                    await history.add_history("w", None, "x", "ADD")

            writing = [asyncio.create_task(write(one)) for one in (target, other, third, other)]
            report = await copy_within(limits, source, target)
            going_on = False
            await asyncio.gather(*writing)
            assert report.records == 150
            assert [one for one in await all_of(target) if one.memory_id != "w"] == records

    @pytest.mark.parametrize(
        ("trigger", "place"),
        [
            ("CONSTRAINT TRIGGER wait AFTER INSERT ON {} DEFERRABLE INITIALLY DEFERRED", 9),
            ("TRIGGER wait BEFORE INSERT ON {}", 7),
        ],
        ids=["than a page", "than the first of a page"],
    )
    async def test_writes_to_the_target_with_later_numbers_that_commit_first(
        self,
        new_schema: Urls,
        postgres: str,
        monkeypatch: pytest.MonkeyPatch,
        trigger: str,
        place: int,
    ) -> None:
        """A page waits at its commit while another record, numbered later, is read."""
        url = new_schema()
        schema = url.partition("schema=")[2]
        gate = await asyncpg.connect(postgres)
        async with (
            open_history("memory://") as source,
            open_history(url) as target,
            open_history(url) as other,
        ):
            records = await filled(source, 12)
            await gate.execute(
                f"""
                CREATE FUNCTION {schema}.wait() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN PERFORM pg_advisory_xact_lock(hashtext('{schema}')); RETURN new; END $$;
                CREATE {trigger.format(f"{schema}.history")} FOR EACH ROW WHEN (new.id = 'r6')
                EXECUTE FUNCTION {schema}.wait()
                """
            )
            await gate.execute("SELECT pg_advisory_lock(hashtext($1))", schema)
            submit, read = target.store.writer.submit, target.store.primary_reader.rows
            submitted = 0

            def counted(submission: Any) -> "asyncio.Future[None]":
                nonlocal submitted
                submitted += 1
                return submit(submission)

            async def held(after: Any, limit: int) -> Any:
                nonlocal submitted
                if submitted != 3:
                    return await read(after, limit)
                submitted += 1
                while not await gate.fetchval(
                    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                ):
                    pass
                await other.add_history("late", None, "x", "ADD")
                found = await read(after, 20)
                assert [row[1] for row in found.rows][-1] == "late"
                await gate.execute("SELECT pg_advisory_unlock(hashtext($1))", schema)
                return found

            monkeypatch.setattr(target.store.writer, "submit", counted)
            monkeypatch.setattr(target.store.primary_reader, "rows", held)
            assert (await copy_in_small_pages(source, target)).written == 12
            there = await all_of(target)
            assert there[place].memory_id == "late"
            assert there[:place] + there[place + 1 :] == records
        await gate.close()


class TestChangedTargets:
    """Changes of the target between two copies."""

    CHANGES = (
        ("UPDATE history SET new_memory = 'z' WHERE id = 'r7'", "r7 has another new_memory"),
        ("UPDATE history SET memory_id = 'z' WHERE id = 'r0'", "r0 has another memory_id"),
        ("UPDATE history SET updated_at = '2026-01-01T00:00:00' WHERE id = 'r19'", "updated_at"),
        ("UPDATE history SET role = '' WHERE id = 'r4'", "r4 has another role"),
        ("DELETE FROM history WHERE id = 'r3'", "r3"),
        ("DELETE FROM history WHERE id = 'r8'", "r9"),
        ("UPDATE history SET id = 'other' WHERE id = 'r0'", "r0"),
        ("UPDATE history SET ROW = -ROW WHERE id = 'r9'", "r"),
    )

    @pytest.mark.parametrize(("change", "words"), CHANGES)
    @pytest.mark.parametrize("store", stores("file", "postgres"))
    async def test_a_changed_target_stops_the_copy(
        self,
        store: str,
        change: str,
        words: str,
        request: pytest.FixtureRequest,
        tmp_path: Path,
        postgres: str,
    ) -> None:
        url = url_of(store, request, tmp_path)
        async with open_history("memory://") as source:
            await filled(source, 20)
            async with open_history(url) as target:
                await copy_in_small_pages(source, target)
            if store == "file":
                with closing(sqlite3.connect(url)) as connection, connection:
                    connection.execute(change.replace("ROW", "rowid"))
            else:
                schema = url.partition("schema=")[2]
                connection = await asyncpg.connect(postgres)
                sql = change.replace("UPDATE history", f"UPDATE {schema}.history")
                if "ROW" in sql:
                    await connection.execute(
                        f"ALTER TABLE {schema}.history ALTER seq DROP IDENTITY"
                    )
                    sql = sql.replace("ROW", "seq")
                await connection.execute(sql.replace("FROM history", f"FROM {schema}.history"))
                await connection.close()
            async with open_history(url) as target:
                with pytest.raises(CopyMismatch, match=words):
                    await copy_in_small_pages(source, target)

    async def test_a_target_that_changes_records_stops_the_copy(self, tmp_path: Path) -> None:
        path = tmp_path / "target.db"
        async with open_history(path):
            pass
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(
                "CREATE TRIGGER shout AFTER INSERT ON history WHEN new.id = 'r5' BEGIN "
                "UPDATE history SET new_memory = upper('loud') WHERE id = new.id; END"
            )
        async with open_history("memory://") as source, open_history(path) as target:
            await filled(source, 10)
            with pytest.raises(CopyMismatch, match="r5 has another new_memory"):
                await copy_history(source, target)


OWNER = Owner(user_id="ann")
KINDS = stores("file", "postgres", "mariadb", "sqlalchemy")
EACH_TO_ANOTHER = pytest.mark.parametrize(
    ("new_source", "new_target"),
    [
        pytest.param(*source.values, *target.values, marks=[*source.marks, *target.marks])
        for source, target in zip(KINDS, [*KINDS[1:], KINDS[0]], strict=True)
    ],
    indirect=True,
)
"""Copies read any source in one way, and write to any target in one way."""


def change(number: int, **fields: Any) -> dict[str, Any]:
    at = "2026-01-01T00:00:00+00:00"
    one = {"id": f"r{number}", "memory_id": "m", "new_memory": "x", "event": "ADD"}
    return {**one, "created_at": at, **fields}


class TestOwners:
    """An owner is given once, and holds for all records of its memory."""

    @pytest.fixture
    def new_source(
        self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
    ) -> OpenStore:
        return new_stores(request.param, request, tmp_path_factory.mktemp("source"))()

    @pytest.fixture(params=KINDS)
    def new_target(
        self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
    ) -> OpenStore:
        return new_stores(request.param, request, tmp_path_factory.mktemp("target"))()

    @EACH_TO_ANOTHER
    @pytest.mark.parametrize("as_lines", [False, True])
    async def test_a_record_without_an_owner_takes_its_memorys(
        self, new_source: OpenStore, new_target: OpenStore, *, as_lines: bool
    ) -> None:
        async with new_source() as source, new_target() as target:
            await target.add_history("m1", None, "x", "ADD", owner=OWNER)
            records = await filled(source, 9)
            lines = JsonLines([line async for line in dump_lines(source)])
            for written in (9, 0):
                report = await copy_in_small_pages(lines if as_lines else source, target)
                assert (report.records, report.written) == (9, written)
            copied = (await all_of(target))[1:]
            assert copied == records
            assert [one.owner for one in copied] == [
                OWNER if one.memory_id == "m1" else None for one in records
            ]

    @pytest.mark.parametrize("page", [1, 10])
    @pytest.mark.parametrize("giving", [0, 1, 3])
    async def test_one_line_of_a_memory_gives_its_owner(
        self, giving: int, page: int, new_target: OpenStore
    ) -> None:
        given = {"owner": OWNER.as_dict()}
        lines = [json.dumps(change(n, **given if n == giving else {})) for n in range(4)]
        async with new_target() as target:
            for written in (4, 0):
                limits = CopyLimits(records=page)
                report = await copy_within(limits, JsonLines(lines), target)
                assert (report.records, report.written) == (4, written)
            assert [record.owner for record in await all_of(target)] == [OWNER] * 4

    @EACH_TO_ANOTHER
    async def test_an_owner_given_since_the_last_copy(
        self, new_source: OpenStore, new_target: OpenStore
    ) -> None:
        async with new_source() as source, new_target() as target:
            await filled(source, 9)
            await copy_in_small_pages(source, target)
            await source.add_history("m1", "x", "y", "UPDATE", owner=OWNER)
            for written in (1, 0):
                report = await copy_in_small_pages(source, target)
                assert (report.records, report.written) == (10, written)
            owners = [(one.id, one.owner) for one in await all_of(source)]
            assert [(one.id, one.owner) for one in await all_of(target)] == owners
            assert await target.count_history(user_id="ann") == 3

    @pytest.mark.parametrize("lines", [1, 2])
    async def test_an_owner_that_no_new_line_gives_is_a_mismatch(
        self, lines: int, new_target: OpenStore
    ) -> None:
        async with new_target() as target:
            await target.batch_add_history([change(0), change(1)])
            before = await all_of(target)
            owned = [json.dumps(change(0) | {"owner": OWNER.as_dict()}), json.dumps(change(1))]
            with pytest.raises(CopyMismatch, match="the record r0 has another owner"):
                await copy_history(JsonLines(owned[:lines]), target)
            assert await all_of(target) == before

    async def test_a_memory_of_another_owner_gets_no_record(self, new_target: OpenStore) -> None:
        async with new_target() as target:
            own = await target.add_history("m", None, "x", "ADD", owner=OWNER)
            lines = [json.dumps(change(n, owner={"user_id": "eve"})) for n in range(3)]
            with pytest.raises(OwnerConflict):
                await copy_history(JsonLines(lines), target)
            assert await all_of(target) == [own]

    async def test_other_values_and_other_owners_differ(self, new_target: OpenStore) -> None:
        async with new_target() as target:
            await target.batch_add_history([change(0, owner=OWNER)])
            for name, other in {
                "owner": {"user_id": "eve"},
                "new_memory": "y",
                "context": {"a": 1},
            }.items():
                line = json.dumps(change(0) | {name: other})
                with pytest.raises(CopyMismatch, match=f"the record r0 has another {name}"):
                    await copy_history(JsonLines([line]), target)


class TestNamedIds:
    async def test_looking_up_ids_scans_no_table(self, new_schema: Urls, postgres: str) -> None:
        url = new_schema()
        async with open_history(url) as history:
            records = [await filled(history, 300, f"{start} ") for start in range(20)]
            await history.batch_add_history(records[7])
        connection = await asyncpg.connect(postgres)
        read = await connection.fetchval(
            "SELECT seq_tup_read FROM pg_stat_user_tables"
            " WHERE relname = 'history' AND schemaname = $1",
            url.partition("schema=")[2],
        )
        await connection.close()
        assert read < 6_000, "as many as there are rows: a single scan would be too much"


async def _asynchronous(lines: Sequence[str]) -> AsyncIterator[str]:
    for line in lines:
        yield line


def _interrupt(done: int, total: int | None) -> None:
    raise RuntimeError("interrupted")


class TestLines:
    async def test_lines_equal_those_of_log(self, open_keeping_store: OpenStore) -> None:
        async with open_keeping_store() as history:
            records = await filled(history, 3)
            lines = [line async for line in dump_lines(history)]
        assert [json.loads(line) for line in lines] == [record.as_dict() for record in records]

    async def test_lines_of_every_kind(self) -> None:
        async def lines() -> AsyncIterator[bytes]:
            for n in range(10):
                yield b'{"id": "%d", "memory_id": "m", "event": "DELETE"}\r\n' % n
                yield b"\n"

        async with open_history("memory://") as history:
            assert (await copy_in_small_pages(JsonLines(lines()), history)).records == 10
            assert all(record.is_deleted for record in await all_of(history))
            again = ['{"id": "0", "memory_id": "m", "event": "DELETE", "is_deleted": 1}']
            assert (await copy_in_small_pages(JsonLines(again), history)).written == 0

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("{", "line 2: not JSON"),
            ("[]", "line 2: not a JSON object"),
            ('{"memory_id": "m", "event": "ADD"}', "line 2: .*id must be text"),
            ('{"id": 7, "memory_id": "m", "event": "ADD"}', "line 2: .*id must be text"),
            ('{"id": "7", "memory_id": "m"}', "line 2: .*event must be text"),
            (
                '{"id": "7", "memory_id": "m", "event": "ADD", "x": 1}',
                "line 2: 'x' is not a field",
            ),
            ('{"id": "7", "memory_id": "m", "event": "ADD", "is_deleted": 2}', "is_deleted must"),
            ('{"id": "7", "memory_id": "m", "event": "ADD", "role": "\\ud800"}', "surrogate"),
            ('{"id": "7", "memory_id": "m", "event": "ADD", "created_at": 2025}', "created_at"),
            (b"\xff", "line 2: not JSON"),
            ({"id": "7", "memory_id": "m", "event": "ADD"}, "line 2: not text or bytes"),
            (None, "line 2: not text or bytes"),
        ],
    )
    async def test_a_line_that_is_not_a_record_is_named(self, line: Any, words: str) -> None:
        good = '{"id": "1", "memory_id": "m", "event": "ADD"}'
        async with open_history("memory://") as history:
            with pytest.raises(InvalidInput, match=words):
                await copy_history(JsonLines([good, line]), history)

    @pytest.mark.parametrize("kind", [iter, _asynchronous, list])
    async def test_lines_that_can_be_read_once_are_not_read_twice(self, kind: Any) -> None:
        lines = [f'{{"id": "{n}", "memory_id": "m", "event": "ADD"}}' for n in range(9)]
        source = JsonLines(kind(lines))
        async with open_history("memory://") as history:
            with pytest.raises(RuntimeError, match="interrupted"):
                await copy_within(CopyLimits(records=2), source, history, on_progress=_interrupt)
            if kind is list:
                await copy_history(source, history)
            else:
                with pytest.raises(InvalidInput, match="these lines were read before"):
                    await copy_history(source, history)
                await copy_history(JsonLines(kind(lines)), history)
            assert [record.id for record in await all_of(history)] == list("012345678")

    async def test_a_line_has_no_other_line_ends(self) -> None:
        ends = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
        assert len(f"{ends}x".splitlines()) == len(ends) + 1
        async with open_history("memory://") as history, open_history("memory://") as other:
            names: dict[str, Any] = {"actor_id": ends, "role": ends, "owner": {"user_id": ends}}
            await history.add_history(
                ends, None, ends, "ADD", context={ends: ends}, cause={ends: ends}, **names
            )
            lines = [line async for line in dump_lines(history)]
            assert "".join(f"{line}\n" for line in lines).splitlines() == lines
            await copy_history(JsonLines(lines), other)
            (record,), (copied,) = await all_of(history), await all_of(other)
            assert (copied, copied.owner) == (record, record.owner)

    async def test_bytes_are_not_lines(self, tmp_path: Path) -> None:
        row = ("9", "m", None, b"x", "ADD", None, None, 0, None, None)
        file = legacy_file(tmp_path / "mem0.db", [row])
        async with open_history(file, migrate=False) as history:
            with pytest.raises(InvalidInput, match=r"'9'.*new_memory must be text"):
                [line async for line in dump_lines(history)]

    async def test_a_single_text_is_not_lines(self) -> None:
        with pytest.raises(InvalidInput, match="lines must be"):
            JsonLines("{}")


SUPABASE = """
create table {table} (
  id text primary key, memory_id text not null, previous_value text, new_value text,
  action text not null,
  created_at timestamp with time zone default timezone('utc', now()),
  updated_at timestamp with time zone, is_deleted integer default 0
)
"""
"""mem0-ts, src/oss/src/storage/SupabaseHistoryManager.ts."""
PATCHED = """
create table {table} (
  id varchar not null primary key, memory_id text, old_memory text, new_memory text, event text,
  created_at timestamp without time zone, updated_at timestamp without time zone,
  is_deleted integer, actor_id text, role text
)
"""
"""mem0-history-db-patch 1.0.3, whose table SQLAlchemy makes."""


@pytest.fixture
async def foreign(postgres: str) -> AsyncIterator[tuple[asyncpg.Connection, str]]:
    """A connection, and a schema that is dropped afterwards."""
    connection = await asyncpg.connect(postgres)
    await connection.execute('CREATE SCHEMA "Their ""own"')
    yield connection, 'Their "own'
    await connection.execute('DROP SCHEMA "Their ""own" CASCADE')
    await connection.close()


class TestForeignTables:
    async def test_mem0_ts_on_supabase(
        self, foreign: tuple[asyncpg.Connection, str], postgres: str, new_schema: Urls
    ) -> None:
        connection, schema = foreign
        table = '"Their ""own".memory_history'
        await connection.execute(SUPABASE.format(table=table))
        await connection.executemany(
            f"INSERT INTO {table} VALUES ($1, 'm', $2, $3, $4, $5::text::timestamptz,"
            " $6::text::timestamptz, $7)",
            [
                ("d", "y", None, "DELETE", "2025-01-03T00:00:00Z", None, 1),
                ("c", "x", "y", "UPDATE", "2025-01-01T00:00:00Z", "2025-01-02T01:00:00+01:00", 0),
                ("b", None, "x", "ADD", "2025-01-01T00:00:00Z", None, 0),
                ("a", "x", "x", "UPDATE", "2025-01-01T00:00:00Z", "2025-01-01T00:00:00Z", 0),
            ],
        )
        source = ForeignTable(postgres, schema=schema)
        async with open_history(new_schema()) as target:
            report = await copy_history(source, target)
            assert (report.records, report.written) == (4, 4)
            records = await all_of(target)
            assert [record.id for record in records] == ["b", "a", "c", "d"], "by time, ADD first"
            assert records[2].as_dict() == {
                "id": "c",
                "memory_id": "m",
                "old_memory": "x",
                "new_memory": "y",
                "event": "UPDATE",
                "created_at": "2025-01-01T00:00:00+00:00",
                "updated_at": "2025-01-02T00:00:00+00:00",
                "is_deleted": False,
                "actor_id": None,
                "role": None,
            }
            assert records[3].is_deleted is True
            assert records[3].occurred_at is not None
            assert records[3].occurred_at.isoformat() == "2025-01-03T00:00:00+00:00"
            assert (await copy_history(source, target)).written == 0

    async def test_mem0_history_db_patch(
        self, foreign: tuple[asyncpg.Connection, str], postgres: str
    ) -> None:
        connection, schema = foreign
        table = '"Their ""own".history'
        await connection.execute(PATCHED.format(table=table))
        await connection.execute(
            f"INSERT INTO {table} SELECT (100 - n)::text, 'm', NULL, n::text, 'UPDATE', moment,"
            " moment, NULL, 'ann', 'user' FROM generate_series(1, 20) AS n,"
            " LATERAL (SELECT timestamp '2025-01-01 10:00:00.5' + n * interval '1 s') AS t (moment)"
        )
        async with open_history("memory://") as target:
            await copy_in_small_pages(
                ForeignTable(postgres, table="history", schema=schema), target
            )
            records = await all_of(target)
        assert [record.new_memory for record in records] == [str(n) for n in range(1, 21)]
        assert records[0].updated_at == "2025-01-01T10:00:01.500000"
        assert (records[0].actor_id, records[0].is_deleted) == ("ann", False)

    async def test_tables_that_are_not_histories_are_refused(
        self, foreign: tuple[asyncpg.Connection, str], postgres: str
    ) -> None:
        connection, schema = foreign
        await connection.execute('CREATE TABLE "Their ""own".history (id text, memory_id text)')
        async with open_history("memory://") as target:
            with pytest.raises(MigrationError, match="has no event"):
                await copy_history(ForeignTable(postgres, table="history", schema=schema), target)
            with pytest.raises(StorageMissing, match="memory_history"):
                await copy_history(ForeignTable(postgres, schema=schema), target)
            with pytest.raises(InvalidInput, match="table must"):
                ForeignTable(postgres, table="")
            away = with_query(postgres, host="/nowhere")
            with pytest.raises(StorageError):
                await copy_history(ForeignTable(away), target)


async def test_plain_mem0s_file_is_a_source(tmp_path: Path) -> None:
    plain = SQLiteManager(str(tmp_path / "mem0.db"))
    plain.add_history("m", None, "x", "ADD", created_at="2025-06-01T00:00:00-07:00")
    plain.save_messages([{"role": "user", "content": "hi"}], "scope")
    plain.close()
    async with (
        open_history(tmp_path / "mem0.db", migrate=False) as source,
        open_history("memory://") as target,
    ):
        report = await copy_history(source, target)
        assert (report.records, report.scopes) == (1, 1)
        assert await target.get_history("m") == await source.get_history("m")
        assert [m.content for m in await target.get_last_messages("scope")] == ["hi"]
