"""Erasing: which texts go, what stays, and what is left in a file's bytes."""

import asyncio
import hashlib
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
from mem0.memory.storage import SQLiteManager

from async_history import (
    HistoryClosed,
    HistoryManager,
    HistoryRecord,
    IdConflict,
    InvalidInput,
    open_history,
)
from async_history._core.removing.erase_request import EraseLimits
from async_history.postgres import PostgresHistoryManager
from async_history.sqlite import SQLiteHistoryManager
from tests.conftest import OpenStore
from tests.subprocesses.checks import check_index, check_levels, check_sound, looking
from tests.support.limits import limited

pytestmark = pytest.mark.once


def change(
    memory_id: str, event: str, old: str | None, new: str | None, actor: str | None = None
) -> dict[str, Any]:
    return {
        "memory_id": memory_id,
        "event": event,
        "old_memory": old,
        "new_memory": new,
        "actor_id": actor,
        "role": "user",
    }


def texts(records: list[HistoryRecord]) -> list[tuple[str | None, str | None, str | None]]:
    return [(r.old_memory, r.new_memory, r.actor_id) for r in records]


def fact(record: HistoryRecord) -> tuple[Any, ...]:
    """Return a record as an erasure leaves it."""
    return (
        *(record.id, record.memory_id, record.event, record.created_at, record.updated_at),
        *(record.is_deleted, record.role, record.occurred_at),
    )


class TestContract:
    @pytest.fixture
    def open_keeping_store(self, open_keeping_store: OpenStore) -> OpenStore:
        """Managers with steps so small that a memory takes several."""
        return lambda **options: limited(
            open_keeping_store(**options), erase=EraseLimits(records=2)
        )

    async def test_a_memorys_texts_go_and_the_other_columns_stay(
        self, open_keeping_store: OpenStore
    ) -> None:
        async with open_keeping_store() as history:
            before = await history.batch_add_history(
                [
                    change("m", "ADD", None, "one", "ann"),
                    change("other", "ADD", None, "one", "ann"),
                    change("m", "UPDATE", "one", "two", "bob"),
                    change("m", "UPDATE", "two", "three"),
                    change("n", "ADD", None, "four"),
                    change("m", "DELETE", "three", None),
                ]
            )
            report = await history.erase(memory_ids=["m", "n", "unknown", "m"], reason="asked")
            assert (report.done, report.records, report.messages) == (True, 5, 0)
            assert not any("not vacuumed" in sentence for sentence in report.remains)
            after = [record async for record in history.query_history()]
            assert list(map(fact, after)) == list(map(fact, before))
            assert texts(await history.get_history("m")) == [
                *((None, None, "ann"), (None, None, "bob"), (None, None, None)),
                (None, None, None),
            ]
            assert texts(await history.get_history("other")) == [(None, "one", "ann")]
            again = await history.erase(memory_ids=["m"], reason="asked twice")
            assert again.records == 0
            await history.add_history("m", None, "five", "ADD")
            assert (await history.get_history("m"))[-1].new_memory == "five"

    async def test_an_actors_texts_go_wherever_they_occur(
        self, open_keeping_store: OpenStore
    ) -> None:
        async with open_keeping_store() as history:
            before = await history.batch_add_history(
                [
                    change("m", "ADD", None, "bob's", "bob"),
                    change("m", "UPDATE", "bob's", "ann's", "ann"),
                    change("m", "UPDATE", "ann's", "ann's second", "ann"),
                    change("elsewhere", "ADD", None, "ann's", "bob"),
                    change("m", "UPDATE", "ann's second", "bob's second", "bob"),
                    change("m", "UPDATE", "bob's second", "ann's", "bob"),  # restored
                    change("m", "UPDATE", "ann's", "anne's", None),
                    change("m", "DELETE", "anne's", None, "ann"),
                    change("empty", "UPDATE", None, None, "ann"),
                ]
            )
            dry = await history.erase(actor_id="ann", reason="asked", dry_run=True)
            assert [r async for r in history.query_history()] == before
            assert await history.erasures() == []
            report = await history.erase(actor_id="ann", reason="asked")
            assert report.records == dry.records == 7
            assert texts(await history.get_history("m")) == [
                (None, "bob's", "bob"),
                (None, None, None),
                (None, None, None),
                (None, "bob's second", "bob"),
                ("bob's second", None, "bob"),
                (None, "anne's", None),
                (None, None, None),
            ]
            assert texts(await history.get_history("elsewhere")) == [(None, "ann's", "bob")]
            assert texts(await history.get_history("empty")) == [(None, None, None)]
            after = [record async for record in history.query_history()]
            assert list(map(fact, after)) == list(map(fact, before))
            assert [r async for r in history.query_history(actor_id="ann")] == []
            assert (await history.erase(actor_id="ann", reason="again")).records == 0

    async def test_a_repeated_step_is_counted_once(
        self, open_keeping_store: OpenStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As after a commit whose acknowledgement was lost."""
        async with open_keeping_store() as history:
            await history.batch_add_history(
                [change("m", "UPDATE", str(n), str(n + 1), "ann") for n in range(5)]
                + [change(f"n{n}", "ADD", None, "x", "bob") for n in range(3)]
            )
            await history.save_messages([{"content": str(n)} for n in range(3)], "s")
            writer: Any = history.store.writer
            run_alone = writer.run_alone

            def run_twice(operation: Any) -> Any:
                async def twice() -> Any:
                    await operation()
                    return await operation()

                return run_alone(twice)

            monkeypatch.setattr(writer, "run_alone", run_twice)
            reports = [
                await history.erase(**asked, reason="asked", vacuum=False)
                for asked in (
                    {"memory_ids": ["n0", "n1"], "session_scopes": ["s"]},
                    {"actor_id": "ann"},
                    {"actor_id": "bob"},
                )
            ]
            counts = [(2, 3), (5, 0), (3, 0)]
            assert [(report.records, report.messages) for report in reports] == counts
            assert [(one.records, one.messages) for one in await history.erasures()] == counts

    async def test_the_record_of_an_erasure_does_not_name_the_person(
        self, open_keeping_store: OpenStore
    ) -> None:
        async with open_keeping_store() as history:
            await history.add_history("m", None, "secret", "ADD", actor_id="ann")
            await history.save_messages([{"role": "user", "content": "secret"}] * 3, "user_id=ann")
            start = datetime.now(UTC) - timedelta(seconds=5)
            first = await history.erase(memory_ids=["m", "n"], reason="a letter")
            second = await history.erase(
                actor_id="ann", session_scopes=["user_id=ann"], reason="ünï, asked"
            )
            assert (second.records, second.messages) == (1, 3)
            one, two = await history.erasures()
            assert (one.id, two.id) == (first.erasure_id, second.erasure_id)
            assert (one.reason, one.memory_ids, one.actor_sha256) == ("a letter", ("m", "n"), None)
            assert (one.records, one.messages) == (1, 0)
            assert (two.reason, two.memory_ids) == ("ünï, asked", ())
            assert two.actor_sha256 == hashlib.sha256(b"ann").hexdigest()
            assert (two.records, two.messages) == (1, 3)
            for each in (one, two):
                assert each.finished_at is not None
                assert start < each.begun_at <= each.finished_at < start + timedelta(minutes=5)
                assert "'ann'" not in repr(each)
            await history.reset()
            assert len(await history.erasures()) == 2

    async def test_messages_are_erased_by_scope(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            for scope in ("s1", "s2", "s3"):
                await history.save_messages([{"role": "user", "content": scope}] * 2, scope)
            scopes = ["s1", "s3", "unknown"]
            dry = await history.erase(session_scopes=scopes, reason="asked", dry_run=True)
            assert (dry.done, dry.messages, dry.erasure_id) == (False, 4, None)
            assert len(await history.get_last_messages("s1")) == 2
            report = await history.erase(session_scopes=scopes, reason="asked")
            assert (report.done, report.messages, report.records) == (True, 4, 0)
            left = {scope: await history.get_last_messages(scope) for scope in ("s1", "s2", "s3")}
            assert {scope: len(kept) for scope, kept in left.items()} == {"s1": 0, "s2": 2, "s3": 0}
            await history.save_messages([{"role": "user", "content": "new"}], "s1")
            assert [m.content for m in await history.get_last_messages("s1")] == ["new"]

    async def test_a_repeated_call_does_not_bring_an_erased_text_back(
        self, open_keeping_store: OpenStore
    ) -> None:
        async with open_keeping_store() as history:
            await history.add_history("m", None, "secret", "ADD", id="one")
            await history.erase(memory_ids=["m"], reason="asked")
            with pytest.raises(IdConflict):
                await history.add_history("m", None, "secret", "ADD", id="one")
            assert texts(await history.get_history("m")) == [(None, None, None)]

    async def test_bad_arguments_are_refused(self, open_store: OpenStore) -> None:
        bad: tuple[tuple[dict[str, Any], str], ...] = (
            ({}, "name what to erase"),
            ({"memory_ids": []}, "name what to erase"),
            ({"memory_ids": "m"}, "memory_ids must be several"),
            ({"memory_ids": [""]}, "memory_id must not be empty"),
            ({"memory_ids": [7]}, "memory_id must be text"),
            ({"actor_id": ""}, "actor_id must not be empty"),
            ({"session_scopes": "s"}, "session_scopes must be several"),
            ({"session_scopes": ["a\0"]}, "session_scope holds a NUL"),
            ({"memory_ids": ["m"], "actor_id": "a"}, "one after the other"),
            ({"memory_ids": ["m"], "reason": ""}, "reason must not be empty"),
            ({"memory_ids": ["m"], "reason": None}, "reason must be text"),
        )
        async with open_store() as history:
            await history.save_messages([{"role": "user", "content": "x"}], "s")
            for arguments, words in bad:
                with pytest.raises(InvalidInput, match=words):
                    await history.erase(**{"reason": "asked", **arguments})
            assert len(await history.get_last_messages("s")) == 1
            assert await history.erasures() == []
        for call in (history.erase(memory_ids=["m"], reason="x"), history.erasures()):
            with pytest.raises(HistoryClosed):
                await call

    async def test_many_memories_are_erased_in_few_steps(
        self, open_keeping_store: OpenStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not in one transaction each, even if one of them has very many records."""
        ids = [f"m{n}" for n in range(200)]
        async with limited(open_keeping_store(), erase=EraseLimits(records=50)) as history:
            await history.batch_add_history([change(m, "ADD", None, "x", "ann") for m in ids])
            await history.batch_add_history(
                [change("m77", "UPDATE", "x", str(n), "ann") for n in range(300)]
            )
            for m in ids[:40]:
                await history.save_messages([{"role": "user", "content": "x"}], m)
            steps = history.store.eraser
            step, taken = type(steps).in_transaction, 0

            async def counted(self: Any, *arguments: Any) -> Any:
                nonlocal taken
                taken += 1
                return await step(self, *arguments)

            monkeypatch.setattr(type(steps), "in_transaction", counted)
            for dry_run in (True, False):
                taken = 0
                report = await history.erase(
                    memory_ids=ids, session_scopes=ids, reason="x", dry_run=dry_run
                )
                assert (report.records, report.messages) == (500, 40)
                assert taken < 40
            found = history.query_history(memory_id=ids)
            assert {(r.old_memory, r.new_memory) async for r in found} == {(None, None)}

    async def test_erasing_during_writes(self, open_keeping_store: OpenStore) -> None:
        async with open_keeping_store() as history:
            for n in range(20):
                await history.add_history(f"m{n % 4}", None, "secret", "ADD", actor_id="ann")

            async def write(task: int) -> None:
                for number in range(20):
                    await history.add_history(
                        f"m{number % 4}", None, f"{task}", "UPDATE", actor_id="bob"
                    )

            writing = asyncio.gather(*map(write, range(6)))
            await history.erase(actor_id="ann", reason="asked")
            await writing
            records = [record async for record in history.query_history()]
            assert len(records) == 140
            assert sum(record.new_memory is None for record in records) == 20
            assert not [r for r in records if r.new_memory == "secret" or r.actor_id == "ann"]


# A file's bytes


def found_in(folder: Path, *needles: str) -> list[str]:
    """Return the files of a folder whose bytes contain one of the texts."""
    return [
        file.name
        for file in sorted(folder.iterdir())
        if any(needle.encode() in file.read_bytes() for needle in needles)
    ]


ANNS_TEXT = "what ann told"


def no_overwriting(path: Path) -> sqlite3.Connection:
    """Open a connection as plain mem0 does if SQLite is built without SECURE_DELETE."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA secure_delete = OFF")
    return connection


def updated_before(path: Path) -> None:
    """Overwrite the text in place by a shorter one, so that its end stays in the page."""
    with closing(no_overwriting(path)) as connection, connection:
        connection.execute("UPDATE history SET new_memory = 'x' WHERE memory_id = 'ann'")
        connection.execute("UPDATE history SET new_memory = 'y' WHERE memory_id = 'big'")


def removed_before(path: Path) -> None:
    """Delete the rows: their pages are in the file's list of free pages."""
    with closing(no_overwriting(path)) as connection, connection:
        connection.execute("DELETE FROM history WHERE memory_id IN ('ann', 'big')")
        connection.execute("DELETE FROM messages")


def reset_by_mem0(path: Path) -> None:
    with closing(no_overwriting(path)) as connection, connection:
        connection.execute("DROP TABLE history")
        connection.execute("DROP TABLE messages")


def indexed_by_the_owner(path: Path) -> None:
    with closing(no_overwriting(path)) as connection, connection:
        connection.execute("CREATE INDEX owners ON history (new_memory)")


def nothing(path: Path) -> None: ...


async def fill(history: HistoryManager) -> None:
    """Texts to find among others: many, short, and on overflow pages."""
    chance = random.Random(5)  # noqa: S311 - a test's random choices
    for part in range(6):
        await history.batch_add_history(
            [
                change(
                    "ann" if n % 5 == 0 else f"m{chance.randrange(60)}",
                    "UPDATE",
                    None,
                    f"{ANNS_TEXT} {part} {n}" if n % 5 == 0 else "t" * chance.randrange(400),
                )
                for n in range(300)
            ]
        )
        await history.add_history("big", None, f"{ANNS_TEXT} {'b' * 30_000} {ANNS_TEXT}", "UPDATE")
        await history.save_messages(
            [{"role": "user", "content": f"{ANNS_TEXT} {n}"} for n in range(9)], "ann"
        )


class TestBytes:
    @pytest.mark.parametrize(
        "earlier", [nothing, updated_before, removed_before, reset_by_mem0, indexed_by_the_owner]
    )
    async def test_no_text_is_left_in_file_or_log(
        self, earlier: Callable[[Path], None], tmp_path: Path
    ) -> None:
        path = tmp_path / "h.db"
        async with open_history(path) as history:
            await fill(history)
            earlier(path)
            assert found_in(tmp_path, ANNS_TEXT)
            report = await history.erase(
                memory_ids=["ann", "big"], session_scopes=["ann"], reason="asked"
            )
            assert (report.remains, report.copies) == ((), ())
            assert found_in(tmp_path, ANNS_TEXT) == []
            await history.add_history("m1", None, "goes on", "UPDATE")
            assert (await history.get_history("m1"))[-1].new_memory == "goes on"
            with looking(path) as connection:
                assert connection.execute(
                    "SELECT schema_version = (SELECT schema_version FROM pragma_schema_version)"
                    " FROM async_history_state"
                ).fetchone() == (1,), "the index is valid for the file as it is"
                check_index(connection)
                check_levels(connection)
        assert found_in(tmp_path, ANNS_TEXT) == []
        with looking(path) as connection:
            check_sound(connection)

    async def test_an_actors_name_is_in_no_file(self, tmp_path: Path) -> None:
        """Nor in the index that finds an actor's records."""
        path = tmp_path / "h.db"
        async with open_history(path) as history:
            await history.batch_add_history(
                [change("m", "UPDATE", None, f"{n}", f"Zoë {n % 2}") for n in range(9_000)]
            )
            report = await history.erase(actor_id="Zoë 1", reason="asked")
            assert report.records == 4_500
            assert found_in(tmp_path, "Zoë 1") == []
            assert len([r async for r in history.query_history(actor_id="Zoë 0")]) == 4_500

    async def test_the_next_erasure_removes_pruned_texts_too(self, tmp_path: Path) -> None:
        path = tmp_path / "h.db"
        async with open_history(path) as history:
            assert isinstance(history, SQLiteHistoryManager)
            await fill(history)
            await history.store.run_exclusively(
                lambda connection: connection.execute_fetchall("PRAGMA secure_delete = OFF")
            )
            await history.prune(older_than=timedelta(), keep_last=0)
            assert found_in(tmp_path, ANNS_TEXT), "pruning is not erasing"
            await history.erase(memory_ids=["ann"], session_scopes=["ann"], reason="asked")
            assert found_in(tmp_path, ANNS_TEXT) == []

    async def test_without_vacuum_the_report_says_what_may_be_left(self, tmp_path: Path) -> None:
        path = tmp_path / "h.db"
        async with open_history(path) as history:
            await fill(history)
            report = await history.erase(
                memory_ids=["ann", "big"], session_scopes=["ann"], reason="asked", vacuum=False
            )
            assert len(report.remains) == 1
            assert "run VACUUM" in report.remains[0]
            live = [r.new_memory or "" async for r in history.query_history()]
            assert not [text for text in live if ANNS_TEXT in text]

    async def test_an_erased_text_is_overwritten_in_place(self, tmp_path: Path) -> None:
        """If SQLite is built without SECURE_DELETE, and nothing rewrites the file."""
        async with open_history(tmp_path / "h.db") as history:
            assert isinstance(history, SQLiteHistoryManager)
            await history.store.run_exclusively(
                lambda connection: connection.execute_fetchall("PRAGMA secure_delete = OFF")
            )
            await history.batch_add_history(
                [
                    change("ann", "UPDATE", None, f"{ANNS_TEXT} {'x' * 50 * (n % 300)}")
                    for n in range(700)
                ]
            )
            await history.erase(memory_ids=["ann"], reason="asked", vacuum=False)
            # While the table grew, SQLite moved a few rows and left copies in their old pages.
            assert (tmp_path / "h.db").read_bytes().count(ANNS_TEXT.encode()) < 10
            ((kept,),) = await history.store.run_exclusively(
                lambda connection: connection.execute_fetchall("PRAGMA secure_delete")
            )
            assert kept == 0, "as it was"

    async def test_the_report_names_a_reader_that_keeps_the_log(self, tmp_path: Path) -> None:
        path = tmp_path / "h.db"
        async with open_history(path, lock_timeout_s=0.6) as history:
            await fill(history)
            with looking(path) as reader:
                reader.execute("BEGIN")
                reader.execute("SELECT count(*) FROM history").fetchone()
                report = await history.erase(memory_ids=["ann", "big"], reason="asked")
                assert "others kept reading it" in " ".join(report.remains)
                reader.execute("COMMIT")
            report = await history.erase(
                memory_ids=["ann"], session_scopes=["ann"], reason="asked again"
            )
            assert report.remains == ()
            assert found_in(tmp_path, ANNS_TEXT) == []

    async def test_the_report_says_that_vacuum_has_no_space(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=4_096))
        async with open_history(tmp_path / "h.db") as history:
            await fill(history)
            report = await history.erase(memory_ids=["ann"], reason="asked")
            assert "bytes of free space" in report.remains[0]
            assert "erase again" in report.remains[0]
            (kept,) = await history.erasures()
            assert kept.finished_at is not None

    async def test_the_report_names_copies_from_an_adoption(self, tmp_path: Path) -> None:
        path = tmp_path / "h.db"
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(
                "CREATE TABLE history (id TEXT PRIMARY KEY, memory_id TEXT, prev_value TEXT,"
                " new_value TEXT, event TEXT, timestamp DATETIME, is_deleted INTEGER)"
            )
            connection.execute(
                "INSERT INTO history VALUES ('1', 'ann', NULL, ?, 'ADD', '2024-01-01', 0)",
                (ANNS_TEXT,),
            )
        (tmp_path / "unrelated.db.before-adoption-1.bak").touch()
        async with open_history(path) as history:
            (copy,) = tmp_path.glob("h.db.before-adoption-*.bak")
            dry = await history.erase(memory_ids=["ann"], reason="asked", dry_run=True)
            report = await history.erase(memory_ids=["ann"], reason="asked")
            assert dry.copies == report.copies == (str(copy.resolve()),)
            assert str(copy) in " ".join(report.remains)
            assert found_in(tmp_path, ANNS_TEXT) == [copy.name]

    async def test_plain_mem0_can_still_use_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "h.db"
        async with open_history(path) as history:
            await history.add_history("ann", None, ANNS_TEXT, "ADD")
            mem0 = SQLiteManager(str(path))
            await history.erase(memory_ids=["ann"], reason="asked")
            mem0.add_history("ann", None, "mem0's", "UPDATE", created_at="2100-01-01T00:00:00")
            assert [r["new_memory"] for r in mem0.get_history("ann")] == [None, "mem0's"]
            mem0.close()
            assert [r.new_memory for r in await history.get_history("ann")] == [None, "mem0's"]


# A server


async def test_the_report_says_that_a_role_may_not_vacuum(
    new_schema: Callable[[], str], postgres: str
) -> None:
    url = new_schema()
    schema = parse_qs(urlsplit(url).query)["schema"][0]
    role = f"{schema}_agent"
    owner = await asyncpg.connect(postgres)
    try:
        async with open_history(url) as history:
            await history.add_history("m", None, ANNS_TEXT, "ADD")
            report = await history.erase(memory_ids=["m"], reason="asked")
            assert not any("not vacuumed" in sentence for sentence in report.remains)
            assert any("backups" in sentence for sentence in report.remains)
        await owner.execute(f"CREATE ROLE {role} LOGIN")
        await owner.execute(f"GRANT USAGE ON SCHEMA {schema} TO {role}")
        await owner.execute(
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}"
        )
        pool = asyncpg.create_pool(
            postgres, min_size=2, max_size=3, init=lambda c: c.execute(f"SET ROLE {role}")
        )
        async with (
            pool,
            PostgresHistoryManager(pool=pool, schema=schema, migrate=False) as history,
        ):
            report = await history.erase(memory_ids=["m"], reason="asked")
            assert any("not vacuumed" in sentence for sentence in report.remains)
    finally:
        await owner.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
        await owner.close()
