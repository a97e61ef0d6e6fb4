"""Following a SQLite file that others write and rebuild: each record once, or CursorGone."""

import asyncio
import gc
import random
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mem0.memory.storage import SQLiteManager

from async_history import CursorGone, Follower, HistoryManager, HistoryRecord, open_history
from async_history._core.records.new_records import fields_from_mapping
from async_history._core.writing.additions import records_of
from async_history._core.writing.new_submissions import one_record, records_to_copy
from async_history._core.writing.submissions import AddRecords
from async_history._sqlite.index import THROUGH_INDEX, named
from async_history._sqlite.opening import open_reading
from async_history._sqlite.reading.follow import FollowReader
from async_history._sqlite.reading.read import HistoryReader
from async_history._sqlite.reading.recent import RecentCommits, RecentLimits
from async_history.testing.followers import SOON_S, Reading, add_many, first, up_to_now
from tests.subprocesses.checks import looking
from tests.support.legacy_files import SIX_COLUMNS, TODAY, V0_0_2, Layout, build
from tests.support.patience import LONG_S

pytestmark = pytest.mark.once


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.db"


def shell(path: Path, *statements: str) -> None:
    """Change the file as an operator does while it is open."""
    with looking(path, "rw") as connection:
        for statement in statements:
            connection.execute(statement)


class TestPlainMem0:
    async def test_rows_of_plain_mem0_are_yielded(self, path: Path) -> None:
        async with open_history(path) as history:
            with closing(SQLiteManager(str(path))) as mem0:
                async with (
                    Reading(history.follow(poll_interval_s=SOON_S)) as all_,
                    Reading(history.follow(memory_id="m", poll_interval_s=SOON_S)) as one,
                ):
                    for number in range(60):
                        if number % 3:
                            mem0.add_history("m", None, str(number), "UPDATE")
                        else:
                            await history.add_history("m", None, str(number), "UPDATE")
                    mem0.add_history("n", None, "other", "ADD")
                    mem0.add_history("m", None, None, "DELETE", is_deleted=1)
                    texts = [str(n) for n in range(60)]
                    assert await all_.until(62) == [*texts, "other", None]
                    assert await one.until(61) == [*texts, None]
                    assert one.records[-1].occurred_at == one.records[-2].occurred_at

    async def test_an_open_transaction_of_plain_mem0_is_yielded_when_it_commits(
        self, path: Path
    ) -> None:
        insert = "INSERT INTO history (id, memory_id, event, new_memory) VALUES (?, 'm', 'ADD', ?)"
        async with open_history(path) as history:
            await history.add_history("m", None, "0", "ADD")
            with looking(path, "rw") as other:
                async with Reading(history.follow(poll_interval_s=SOON_S)) as reading:
                    await reading.until(1)
                    for end in ("ROLLBACK", "COMMIT"):
                        other.execute("BEGIN IMMEDIATE")
                        other.execute(insert, (f"id {end}", end))
                        adding = asyncio.create_task(history.add_history("m", None, "us", "ADD"))
                        other.execute(end)
                        await adding
                    assert await reading.until(4) == ["0", "us", "COMMIT", "us"]

    async def test_a_reset_by_plain_mem0(self, path: Path) -> None:
        async with open_history(path) as history:
            with closing(SQLiteManager(str(path))) as mem0:
                early = history.follow(poll_interval_s=SOON_S)  # is before all records
                async with Reading(history.follow(poll_interval_s=SOON_S)) as reading:
                    await history.batch_add_history(add_many(["0", "1"]))
                    await reading.until(2)
                    mem0.reset()
                    with closing(SQLiteManager(str(path))) as again:  # as its Memory.reset does
                        again.add_history("m", None, "2", "ADD")
                        again.add_history("m", None, "3", "UPDATE")
                    with pytest.raises(CursorGone, match="a reset, a removal"):
                        await reading.until(3)
                    assert reading.texts == ["0", "1"]
                assert await first(early, 2) == ["2", "3"]
                await history.add_history("m", None, "4", "UPDATE")
                assert await first(early, 1) == ["4"]


@pytest.mark.parametrize("layout", [V0_0_2, SIX_COLUMNS, TODAY], ids=lambda one: one.label)
async def test_an_old_file_is_followed_unchanged(path: Path, layout: Layout) -> None:
    """The file is not changed. Rows that others add are yielded too."""
    build(path, "", layout)
    async with open_history(path, migrate=False) as history:
        stored = [record async for record in history.query_history()]
        assert stored
        following = history.follow(poll_interval_s=SOON_S)
        texts = [record.new_memory for record in stored]
        assert await first(following, len(stored)) == texts
        async with Reading(following) as reading:
            shell(path, "INSERT INTO history (id, memory_id, event) VALUES ('new', 'm', 'ADD')")
            await reading.until(1)
        assert reading.records[0].id == "new"
        one = history.follow(memory_id="m", poll_interval_s=SOON_S)
        assert await first(one, 1) == [None]


class TestRemovals:
    async def test_removals_before_and_after_the_cursor(self, path: Path) -> None:
        async with open_history(path) as history:
            await history.batch_add_history(add_many([str(n) for n in range(10)]))
            following = history.follow()
            assert await first(following, 5) == ["0", "1", "2", "3", "4"]
            shell(path, "DELETE FROM history WHERE new_memory IN ('0', '3', '6', '8')")
            again = history.follow(after=following.cursor)
            assert await first(again, 3) == ["5", "7", "9"]

    @pytest.mark.parametrize("memory_id", [None, "m"])
    async def test_a_removal_of_the_cursors_record(self, path: Path, memory_id: str | None) -> None:
        async with open_history(path) as history:
            await history.batch_add_history(add_many([str(n) for n in range(10)]))
            following = history.follow(memory_id=memory_id)
            assert len(await first(following, 5)) == 5
            shell(path, "DELETE FROM history WHERE new_memory = '4'")
            for one in (history.follow(after=following.cursor, memory_id=memory_id), following):
                with pytest.raises(CursorGone):
                    await first(one, 1)

    @pytest.mark.parametrize("memory_id", [None, "m"])
    async def test_a_rowid_that_is_used_again(self, path: Path, memory_id: str | None) -> None:
        """Between two reads the newest row is removed, and another gets its rowid."""
        async with open_history(path) as history:
            await history.batch_add_history(add_many(["0", "1", "2"]))
            following = history.follow(memory_id=memory_id)
            assert len(await first(following, 3)) == 3
            shell(
                path,
                "DELETE FROM history WHERE new_memory = '2'",
                "INSERT INTO history (id, memory_id, event) VALUES ('new', 'm', 'ADD')",
                "INSERT INTO history (id, memory_id, event) VALUES ('newer', 'm', 'ADD')",
            )
            with pytest.raises(CursorGone):
                await first(following, 1)

    @pytest.mark.parametrize("removed", ["< '3'", "= '6'", "= '-'"])
    async def test_a_vacuum(self, path: Path, removed: str) -> None:
        async with open_history(path) as history:
            await history.batch_add_history(add_many([str(n) for n in range(8)]))
            following = history.follow()
            await first(following, 5)
            await history.add_history("m", None, "8", "UPDATE")
            shell(path, f"DELETE FROM history WHERE new_memory {removed}", "VACUUM")
            await history.add_history("m", None, "9", "UPDATE")
            left = [text for text in "56789" if removed[-2] != text]
            try:
                assert await first(following, len(left)) == left
            except CursorGone:
                assert removed != "= '-'"

    async def test_random_changes_of_a_file(self, path: Path) -> None:
        """Every new record once and in order, or CursorGone."""
        for seed in range(6):
            await chance(path.with_name(f"{seed}.db"), random.Random(seed))  # noqa: S311 - random choices


_DEEDS = ("add", "add", "mem0", "remove", "newest", "vacuum", "reset", "look")


async def chance(path: Path, rng: random.Random) -> None:
    """Follow through removals, resets and VACUUMs; exactly the new records must be yielded."""
    async with open_history(path) as history:
        following: Follower = history.follow()
        unseen: list[str] = []
        for number in range(60):
            match rng.choice(["add", "add", "mem0", "remove", "newest", "vacuum", "reset", "look"]):
                case "add":
                    texts = [f"{number}.{n}" for n in range(rng.randint(1, 5))]
                    await history.batch_add_history(add_many(texts))
                    unseen += texts
                case "mem0":
                    with closing(SQLiteManager(str(path))) as mem0:
                        mem0.add_history("m", None, str(number), "UPDATE")
                        unseen.append(str(number))
                        if rng.random() < 0.1:
                            mem0.reset()
                            SQLiteManager(str(path)).close()  # as its Memory.reset does
                            unseen.clear()
                case "remove":
                    with looking(path, "rw") as connection:
                        ids = connection.execute("SELECT rowid, new_memory FROM history").fetchall()
                        for rowid, text in rng.sample(ids, len(ids) // 3):
                            connection.execute("DELETE FROM history WHERE rowid = ?", (rowid,))
                            unseen = [one for one in unseen if one != text]
                case "newest":
                    with looking(path, "rw") as connection:
                        removed = connection.execute(
                            "DELETE FROM history WHERE rowid > (SELECT max(rowid) - ? FROM history)"
                            " RETURNING new_memory",
                            (rng.randint(1, 3),),
                        ).fetchall()
                        unseen = [one for one in unseen if (one,) not in removed]
                case "vacuum":
                    shell(path, "VACUUM")
                case "reset" if rng.random() < 0.3:
                    await history.reset()
                    unseen.clear()
                case _:
                    following = await looked(history, following, unseen)
                    unseen.clear()
                    if rng.random() < 0.5:
                        following = history.follow(after=following.cursor)
                    else:
                        following = history.follow(after=await history.end_cursor())
        await looked(history, following, unseen)


async def looked(history: HistoryManager, following: Follower, unseen: list[str]) -> Follower:
    """Compare a follower's records with the expected ones; return a follower that can continue.

    A follower with CursorGone begins again, and reads the old records before the new.
    """
    try:
        found = await up_to_now(history, following)
        assert [record.new_memory for record in found] == unseen
    except CursorGone:
        following = history.follow()
        found = await up_to_now(history, following)
        assert [record.new_memory for record in found][len(found) - len(unseen) :] == unseen
    return following


class TestJustCommitted:
    """Records of this manager's commits are not read again, and any change to them is noticed."""

    @pytest.fixture
    async def history(self, path: Path) -> AsyncIterator[HistoryManager]:
        async with open_history(path) as history:
            yield history

    async def standing(self, history: HistoryManager, memory_id: str | None = None) -> Any:
        """Return a follower whose cursor is at a record of a kept batch.

        It has asked for the records after the first, so the batches after the second are kept.
        """
        following = history.follow(memory_id=memory_id, poll_interval_s=SOON_S)
        for text in ("first", "second", "third"):
            await history.batch_add_history(add_many([text]))
            assert await first(following, 1) == [text]
        return following

    @pytest.mark.parametrize("memory_id", [None, "m"])
    async def test_a_committed_batch_is_not_read_again(
        self, history: HistoryManager, monkeypatch: pytest.MonkeyPatch, memory_id: str | None
    ) -> None:
        following = await self.standing(history, memory_id)
        most = 0
        fetch = history.store.pool.fetch  # type: ignore[attr-defined]

        async def noted(*question: Any) -> Any:
            nonlocal most
            rows = await fetch(*question)
            most = max(most, len(rows))
            return rows

        monkeypatch.setattr(history.store.pool, "fetch", noted)  # type: ignore[attr-defined]
        for number in range(5):
            await history.batch_add_history(add_many([f"{number}.{n}" for n in range(4)]))
            await history.add_history("other", None, "other", "ADD")
        others = [] if memory_id else ["other"]
        texts = [t for n in range(5) for t in (*(f"{n}.{m}" for m in range(4)), *others)]
        assert await first(following, len(texts)) == texts
        assert most == 1
        again = history.follow(after=following.cursor, memory_id=memory_id)
        await history.add_history("m", None, "last", "UPDATE")
        assert await first(following, 1) == await first(again, 1) == ["last"]

    async def test_every_cursor_within_it(self, history: HistoryManager) -> None:
        following = await self.standing(history)
        texts = [str(n) for n in range(6)]
        for part in (texts[:1], texts[1:4], texts[4:]):
            await history.batch_add_history(add_many(part))
        for number in range(6):
            assert await first(following, 1) == [str(number)]
            again = history.follow(after=following.cursor)
            assert [r.new_memory for r in await up_to_now(history, again)][: 5 - number] == texts[
                number + 1 :
            ]

    async def test_others_wrote_between(self, path: Path, history: HistoryManager) -> None:
        following = await self.standing(history)
        await history.add_history("m", None, "0", "UPDATE")
        shell(path, "INSERT INTO history (id, memory_id, new_memory) VALUES ('x', 'm', 'theirs')")
        await history.add_history("m", None, "1", "UPDATE")
        assert await first(following, 3) == ["0", "theirs", "1"]

    async def test_rows_after_it_are_yielded_without_a_wait(
        self, path: Path, history: HistoryManager
    ) -> None:
        """Rows of others after it, and batches that were not kept, wake no follower."""
        for others in (True, False):
            following = await self.standing(history)
            if not others:
                await history.batch_add_history(add_many(["kept"] * (RecentLimits().records - 1)))
            cursor = await history.end_cursor()
            await history.add_history("m", None, "0", "UPDATE")
            if others:
                shell(
                    path, "INSERT INTO history (id, memory_id, new_memory) VALUES ('x', 'm', '1')"
                )
            else:
                await history.add_history("m", None, "1", "UPDATE")
            del following
            gc.collect()
            again = history.follow(after=cursor, poll_interval_s=1e6)
            assert await first(again, 2) == ["0", "1"]
            del again

    async def test_others_wrote_an_id_that_is_no_text(
        self, path: Path, history: HistoryManager
    ) -> None:
        following = await self.standing(history)
        await history.add_history("m", None, "0", "UPDATE")
        shell(path, "INSERT INTO history (id, memory_id, new_memory) VALUES (x'00', 'm', 'theirs')")
        await history.add_history("m", None, "1", "UPDATE")
        assert await first(following, 3) == ["0", "theirs", "1"]

    async def test_a_row_of_it_was_removed(self, path: Path, history: HistoryManager) -> None:
        following = await self.standing(history)
        await history.batch_add_history(add_many(list("012")))
        shell(path, "DELETE FROM history WHERE new_memory = '1'")
        assert await first(following, 2) == ["0", "2"]

    async def test_a_rowid_of_it_was_used_again(self, path: Path, history: HistoryManager) -> None:
        following = await self.standing(history)
        await history.batch_add_history(add_many(list("01")))
        shell(
            path,
            "DELETE FROM history WHERE new_memory = '1'",
            "INSERT INTO history (id, memory_id, new_memory) VALUES ('x', 'm', 'theirs')",
        )
        await history.add_history("m", None, "2", "UPDATE")
        assert await first(following, 3) == ["0", "theirs", "2"]

    async def test_the_cursors_record_was_removed(
        self, path: Path, history: HistoryManager
    ) -> None:
        following = await self.standing(history)
        await history.add_history("m", None, "0", "UPDATE")
        shell(path, "DELETE FROM history WHERE new_memory = 'third'")
        with pytest.raises(CursorGone):
            await first(following, 1)

    async def test_it_was_erased(self, history: HistoryManager) -> None:
        following = await self.standing(history)
        await history.add_history("m", None, "secret", "UPDATE")
        await history.erase(memory_ids=["m"], reason="asked to", vacuum=False)
        assert await first(following, 1) == [None]

    async def test_a_trigger_of_the_owner_changed_it(
        self, path: Path, history: HistoryManager
    ) -> None:
        shell(
            path,
            "CREATE TRIGGER redact AFTER INSERT ON History BEGIN"
            " UPDATE history SET new_memory = '-' WHERE rowid = new.rowid; END",
        )
        following = history.follow()
        await history.add_history("m", None, "secret", "ADD")
        assert await first(following, 1) == ["-"]
        await history.add_history("m", None, "secret", "UPDATE")
        assert await first(following, 1) == ["-"]

    async def test_copied_times_are_as_stored(self, history: HistoryManager) -> None:
        following = await self.standing(history)
        odd = HistoryRecord("odd", "m", None, "copied", "ADD", created_at="2025.0")
        await history.store.writer.submit(records_to_copy([odd], 0))
        async for record in following:
            assert [record] == (await history.get_history("m"))[-1:]
            break

    async def test_repeated_records_are_not_new(self, history: HistoryManager) -> None:
        following = await self.standing(history)
        await history.add_history("m", None, "0", "UPDATE", id="0")
        await history.batch_add_history(
            [
                {"id": "0", "memory_id": "m", "new_memory": "0", "event": "UPDATE"},
                {"memory_id": "m", "new_memory": "1", "event": "UPDATE"},
            ]
        )
        assert await first(following, 2) == ["0", "1"]
        assert [r.new_memory for r in await up_to_now(history, following)] == []


class TestKeeping:
    @staticmethod
    def keep(kept: RecentCommits, ids: list[str], size_bytes: int) -> None:
        records = [HistoryRecord(name, "m", None, None, "ADD") for name in ids]
        kept.keep([AddRecords(records, {}, None, len(records), size_bytes)])

    def batches(self, *ids: str, **limits: Any) -> RecentCommits:
        kept = RecentCommits(RecentLimits(**limits))
        kept.records_after("what a follower asks for")
        for name in ids:
            self.keep(kept, [name], 10)
        return kept

    async def test_nothing_is_kept_before_a_follower_asks(self) -> None:
        kept = RecentCommits()
        for name in "01":
            self.keep(kept, [name], 10)
        assert kept.records_after("0") == []
        for name in "23":
            self.keep(kept, [name], 10)
        assert [record.id for record in kept.records_after("2")] == ["3"]

    async def test_nothing_is_kept_for_a_follower_that_does_not_ask(self) -> None:
        """Keeping costs the writers, and a follower that pauses is soon too far behind."""
        kept = self.batches(*"0123", records=3)
        assert [record.id for record in kept.records_after("0")] == ["1", "2"]
        self.keep(kept, ["4"], 10)
        self.keep(kept, ["5"], 10)
        assert [record.id for record in kept.records_after("4")] == ["5"]

    @pytest.mark.parametrize("limits", [{"records": 3}, {"size_bytes": 30}])
    async def test_a_bounded_amount_is_kept(self, limits: dict[str, int]) -> None:
        kept = self.batches("0", "1", "2", **limits)
        assert [record.id for record in kept.records_after("0")] == ["1", "2"]
        self.keep(kept, ["3"], 10)
        assert kept.records_after("0") == []
        assert [record.id for record in kept.records_after("1")] == ["2", "3"]
        self.keep(kept, list("45678"), 50)
        assert kept.records_after("3") == []

    async def test_no_record_is_made_before_a_follower_asks(self) -> None:
        """Objects that stay alive make the garbage collector run."""

        def made() -> int:
            return sum(isinstance(one, HistoryRecord) for one in gc.get_objects())

        before = made()
        kept = self.batches("0")
        given = [{"memory_id": f"m{n}", "event": "ADD"} for n in range(10)]
        additions = [one_record(fields_from_mapping(one), None, None) for one in given]
        kept.keep(additions)
        assert made() == before
        found = kept.records_after("0")
        assert made() == before + 10
        assert [record.memory_id for record in found] == [one["memory_id"] for one in given]
        assert found == records_of(additions)

    async def test_batches_are_kept_for_a_short_time(self) -> None:
        kept = self.batches("0", "1", seconds=0.01)
        async with asyncio.timeout(LONG_S):
            while kept.records_after("0"):  # noqa: ASYNC110 - a timer does it
                await asyncio.sleep(0.01)


def test_a_page_is_found_by_keys(path: Path) -> None:
    """No read scans the history."""

    async def fill() -> None:
        async with open_history(path) as history:
            await history.batch_add_history(add_many([str(n) for n in range(1_000)]))

    asyncio.run(fill())
    with closing(open_reading(path)) as connection:
        reader = HistoryReader(fetch=None, lookup=THROUGH_INDEX)  # type: ignore[arg-type]
        follower = FollowReader(None, reader, None)  # type: ignore[arg-type]
        for memory_id in (None, "m"):
            plan = connection.execute(
                f"EXPLAIN QUERY PLAN {follower.page_sql(memory_id)}",
                {"position": 5, "after": 5, "limit": 500, **named(("m",))},
            ).fetchall()
            steps = "\n".join(step[3] for step in plan)
            assert "INTEGER PRIMARY KEY (rowid>?)" in steps, steps
            assert "SCAN history" not in steps, steps
