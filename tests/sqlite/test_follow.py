"""Following a SQLite file that others write, cut and rebuild: all once, or the place is gone."""

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
from async_history._core.batch import records_of
from async_history._core.new_records import fields_from_mapping
from async_history._core.new_submissions import one_record, records_to_copy
from async_history._core.recent import RecentCommits, RecentLimits
from async_history._core.submissions import AddRecords
from async_history._sqlite.follow import FollowReader
from async_history._sqlite.index import THROUGH_INDEX, named
from async_history._sqlite.opening import open_reading
from async_history._sqlite.read import HistoryReader
from async_history.testing.followers import SOON_S, Reading, add_many, first, up_to_now
from tests.subprocesses.checks import looking
from tests.support.legacy_files import SIX_COLUMNS, TODAY, V0_0_2, Layout, build
from tests.support.patience import LONG_S

pytestmark = pytest.mark.once


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.db"


def shell(path: Path, *statements: str) -> None:
    """What an operator does to the file while we have it open."""
    with looking(path, "rw") as connection:
        for statement in statements:
            connection.execute(statement)


class TestPlainMem0:
    async def test_what_it_writes(self, path: Path) -> None:
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

    async def test_its_open_transaction_comes_when_it_commits(self, path: Path) -> None:
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

    async def test_its_reset(self, path: Path) -> None:
        async with open_history(path) as history:
            with closing(SQLiteManager(str(path))) as mem0:
                early = history.follow(poll_interval_s=SOON_S)  # stands before all
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
async def test_an_old_file_as_it_is(path: Path, layout: Layout) -> None:
    """Nothing of it is changed; rows that others add come, too."""
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
    async def test_in_front_and_behind_it_goes_on(self, path: Path) -> None:
        async with open_history(path) as history:
            await history.batch_add_history(add_many([str(n) for n in range(10)]))
            following = history.follow()
            assert await first(following, 5) == ["0", "1", "2", "3", "4"]
            shell(path, "DELETE FROM history WHERE new_memory IN ('0', '3', '6', '8')")
            again = history.follow(after=following.cursor)
            assert await first(again, 3) == ["5", "7", "9"]

    @pytest.mark.parametrize("memory_id", [None, "m"])
    async def test_its_own_record_is_gone(self, path: Path, memory_id: str | None) -> None:
        async with open_history(path) as history:
            await history.batch_add_history(add_many([str(n) for n in range(10)]))
            following = history.follow(memory_id=memory_id)
            assert len(await first(following, 5)) == 5
            shell(path, "DELETE FROM history WHERE new_memory = '4'")
            for one in (history.follow(after=following.cursor, memory_id=memory_id), following):
                with pytest.raises(CursorGone):
                    await first(one, 1)

    @pytest.mark.parametrize("memory_id", [None, "m"])
    async def test_a_rowid_that_was_issued_again(self, path: Path, memory_id: str | None) -> None:
        """Between two looks the newest row goes, and another takes its place."""
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
    async def test_vacuum(self, path: Path, removed: str) -> None:
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

    async def test_what_may_happen_to_a_file(self, path: Path) -> None:
        """By chance: everything new once and in order, or the place is said to be gone."""
        for seed in range(6):
            await chance(path.with_name(f"{seed}.db"), random.Random(seed))  # noqa: S311 - dice


_DEEDS = ("add", "add", "mem0", "remove", "newest", "vacuum", "reset", "look")


async def chance(path: Path, dice: random.Random) -> None:
    """Follow through removals, resets and VACUUMs; what is new since is what must come."""
    async with open_history(path) as history:
        following: Follower = history.follow()
        unseen: list[str] = []
        for number in range(60):
            match dice.choice(
                ["add", "add", "mem0", "remove", "newest", "vacuum", "reset", "look"]
            ):
                case "add":
                    texts = [f"{number}.{n}" for n in range(dice.randint(1, 5))]
                    await history.batch_add_history(add_many(texts))
                    unseen += texts
                case "mem0":
                    with closing(SQLiteManager(str(path))) as mem0:
                        mem0.add_history("m", None, str(number), "UPDATE")
                        unseen.append(str(number))
                        if dice.random() < 0.1:
                            mem0.reset()
                            SQLiteManager(str(path)).close()  # as its Memory.reset does
                            unseen.clear()
                case "remove":
                    with looking(path, "rw") as connection:
                        ids = connection.execute("SELECT rowid, new_memory FROM history").fetchall()
                        for rowid, text in dice.sample(ids, len(ids) // 3):
                            connection.execute("DELETE FROM history WHERE rowid = ?", (rowid,))
                            unseen = [one for one in unseen if one != text]
                case "newest":
                    with looking(path, "rw") as connection:
                        removed = connection.execute(
                            "DELETE FROM history WHERE rowid > (SELECT max(rowid) - ? FROM history)"
                            " RETURNING new_memory",
                            (dice.randint(1, 3),),
                        ).fetchall()
                        unseen = [one for one in unseen if (one,) not in removed]
                case "vacuum":
                    shell(path, "VACUUM")
                case "reset" if dice.random() < 0.3:
                    await history.reset()
                    unseen.clear()
                case _:
                    following = await looked(history, following, unseen)
                    unseen.clear()
                    if dice.random() < 0.5:
                        following = history.follow(after=following.cursor)
                    else:
                        following = history.follow(after=await history.end_cursor())
        await looked(history, following, unseen)


async def looked(history: HistoryManager, following: Follower, unseen: list[str]) -> Follower:
    """Compare what a follower yields with what it must; return one that can go on.

    One whose place is gone begins again, and reads the old before the new.
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
    """What this manager wrote is not read back, and whatever else happens to it shows."""

    @pytest.fixture
    async def history(self, path: Path) -> AsyncIterator[HistoryManager]:
        async with open_history(path) as history:
            yield history

    async def standing(self, history: HistoryManager, memory_id: str | None = None) -> Any:
        """Return a follower that stands behind a record of a batch that is kept.

        It has asked for what follows the first, so the batches after the second are kept.
        """
        following = history.follow(memory_id=memory_id, poll_interval_s=SOON_S)
        for text in ("first", "second", "third"):
            await history.batch_add_history(add_many([text]))
            assert await first(following, 1) == [text]
        return following

    @pytest.mark.parametrize("memory_id", [None, "m"])
    async def test_is_not_read_back(
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

    async def test_what_came_after_it_without_it_is_not_waited_for(
        self, path: Path, history: HistoryManager
    ) -> None:
        """What others wrote after it, and what was not kept: no commit or poll wakes for it."""
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

    async def test_a_rowid_of_it_was_issued_again(
        self, path: Path, history: HistoryManager
    ) -> None:
        following = await self.standing(history)
        await history.batch_add_history(add_many(list("01")))
        shell(
            path,
            "DELETE FROM history WHERE new_memory = '1'",
            "INSERT INTO history (id, memory_id, new_memory) VALUES ('x', 'm', 'theirs')",
        )
        await history.add_history("m", None, "2", "UPDATE")
        assert await first(following, 3) == ["0", "theirs", "2"]

    async def test_its_own_record_is_gone(self, path: Path, history: HistoryManager) -> None:
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

    async def test_what_was_there_already_is_not_new(self, history: HistoryManager) -> None:
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

    async def test_nothing_before_a_follower_asks(self) -> None:
        kept = RecentCommits()
        for name in "01":
            self.keep(kept, [name], 10)
        assert kept.records_after("0") == []
        for name in "23":
            self.keep(kept, [name], 10)
        assert [record.id for record in kept.records_after("2")] == ["3"]

    async def test_no_more_for_a_follower_that_does_not_ask(self) -> None:
        """It costs the writers, and a follower that pauses is soon too far behind to use it."""
        kept = self.batches(*"0123", records=3)
        assert [record.id for record in kept.records_after("0")] == ["1", "2"]
        self.keep(kept, ["4"], 10)
        self.keep(kept, ["5"], 10)
        assert [record.id for record in kept.records_after("4")] == ["5"]

    @pytest.mark.parametrize("limits", [{"records": 3}, {"size_bytes": 30}])
    async def test_not_too_much(self, limits: dict[str, int]) -> None:
        kept = self.batches("0", "1", "2", **limits)
        assert [record.id for record in kept.records_after("0")] == ["1", "2"]
        self.keep(kept, ["3"], 10)
        assert kept.records_after("0") == []
        assert [record.id for record in kept.records_after("1")] == ["2", "3"]
        self.keep(kept, list("45678"), 50)
        assert kept.records_after("3") == []

    async def test_no_record_is_made_before_a_follower_asks(self) -> None:
        """Objects that live on make the garbage collector run."""

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

    async def test_not_for_long(self) -> None:
        kept = self.batches("0", "1", seconds=0.01)
        async with asyncio.timeout(LONG_S):
            while kept.records_after("0"):  # noqa: ASYNC110 - it is a timer's work
                await asyncio.sleep(0.01)


def test_a_page_is_found_by_keys(path: Path) -> None:
    """No read walks through the history."""

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
