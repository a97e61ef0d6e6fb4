"""Pruning: compared with a naive list, during writes, on files of other programs."""

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

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
    MigrationError,
    open_history,
)
from async_history._core.removing.prune_request import PruneLimits
from async_history._sqlite.index.levels import LEVELS, memory_key
from async_history.sqlite import SQLiteHistoryManager
from async_history.testing.followers import first
from async_history.testing.model import pruned
from tests.conftest import OpenStore, examples
from tests.contract.dated_changes import CUTOFF, NOW, at, change, everything
from tests.subprocesses.checks import check_index, check_levels, check_sound, looking
from tests.support.limits import limited

pytestmark = [pytest.mark.once, pytest.mark.statements]

SMALL_STEPS = PruneLimits(records=3, most_records=3, passed_over=2)


@pytest.fixture
def open_small_steps(open_keeping_store: OpenStore) -> OpenStore:
    """As `open_keeping_store`, with steps so small that a memory takes several."""
    return lambda **options: limited(open_keeping_store(**options), prune=SMALL_STEPS)


class TestContract:
    async def test_old_records_go_and_the_last_state_stays(
        self, open_keeping_store: OpenStore
    ) -> None:
        async with open_keeping_store() as history:
            await history.batch_add_history(
                [
                    change("tea", "ADD", 200, "green"),
                    change("tea", "UPDATE", 150, "black"),
                    change("mate", "ADD", 120, "mate"),
                    change("tea", "UPDATE", 100, "white"),
                    change("milk", "ADD", 300),
                    change("milk", "DELETE", 91),
                    change("new", "ADD", 80),
                    change("new", "UPDATE", 70),
                ]
            )
            report = await history.prune(older_than=CUTOFF)
            left = [(r.memory_id, r.new_memory) for r in await everything(history)]
            assert left == [("mate", "mate"), ("tea", "white"), ("new", "x"), ("new", "x")]
            assert (report.done, report.records, report.memories_gone) == (True, 4, 1)
            assert (report.batches, report.before) == (1, CUTOFF)
            assert [r.new_memory for r in await history.get_history("tea")] == ["white"]
            assert await history.get_history("milk") == []
            again = await history.prune(older_than=CUTOFF)
            assert (again.records, again.memories_gone, again.batches) == (0, 0, 0)

    async def test_a_memory_never_returns_to_an_earlier_state(
        self, open_keeping_store: OpenStore
    ) -> None:
        """Clocks step back: the latest record may have the oldest time."""
        async with open_keeping_store() as history:
            await history.batch_add_history(
                [
                    change("deleted", "ADD", 200),
                    change("deleted", "UPDATE", 10),
                    change("deleted", "DELETE", 300),
                    change("lives", "ADD", 10),
                    change("lives", "UPDATE", 300),
                ]
            )
            for keep_last in (1, 0):
                await history.prune(older_than=CUTOFF, keep_last=keep_last)
                events = [r.event for r in await history.get_history("deleted")]
                assert events == [Event.UPDATE, Event.DELETE]
                events = [r.event for r in await history.get_history("lives")]
                assert events == [Event.ADD, Event.UPDATE]

    async def test_keep_last_records_stay(self, open_keeping_store: OpenStore) -> None:
        async with open_keeping_store() as history:
            await history.batch_add_history(
                [change("m", "ADD", 200), *(change("m", "UPDATE", d) for d in (190, 180, 170))]
            )
            for keep_last, left in ((2**53, 4), (5, 4), (4, 4), (3, 3), (1, 1), (0, 0)):
                await history.prune(older_than=CUTOFF, keep_last=keep_last)
                assert len(await history.get_history("m")) == left

    async def test_a_timedelta_counts_back_from_now(self, open_keeping_store: OpenStore) -> None:
        async with open_keeping_store() as history:
            day_old = datetime.now(UTC) - timedelta(days=1)
            await history.add_history("m", None, "x", "ADD", created_at=day_old)
            await history.add_history("m", "x", "y", "UPDATE")
            assert not (await history.prune(older_than=timedelta(days=2))).records
            report = await history.prune(older_than=timedelta(hours=23))
            assert report.records == 1
            assert abs(datetime.now(UTC) - timedelta(hours=23) - report.before) < timedelta(hours=1)

    async def test_bad_arguments_are_refused(self, open_store: OpenStore) -> None:
        bad: tuple[tuple[dict[str, Any], str], ...] = (
            ({"older_than": datetime(2026, 1, 1)}, "older_than must be a datetime with a time zo"),  # noqa: DTZ001
            ({"older_than": "90d"}, "older_than must be"),
            ({"older_than": timedelta(days=-1)}, "older_than must not lie in the future"),
            ({"older_than": timedelta.max}, "older_than reaches beyond year 1"),
            ({"older_than": NOW, "keep_last": -1}, "keep_last must be"),
            ({"older_than": NOW, "keep_last": True}, "keep_last must be"),
            ({"older_than": NOW, "keep_last": 1.5}, "keep_last must be"),
        )
        async with open_store() as history:
            for arguments, words in bad:
                with pytest.raises(InvalidInput, match=words):
                    await history.prune(**arguments)
        with pytest.raises(HistoryClosed):
            await history.prune(older_than=NOW)

    async def test_an_empty_store_is_pruned(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            for dry_run in (True, False):
                report = await history.prune(older_than=NOW, keep_last=0, dry_run=dry_run)
                assert (report.records, report.memories_gone, report.batches) == (0, 0, 0)

    async def test_ids_of_pruned_records_can_be_used_again(
        self, open_keeping_store: OpenStore
    ) -> None:
        async with open_keeping_store() as history:
            await history.add_history("m", None, "x", "ADD", id="one", created_at=at(100))
            await history.prune(older_than=CUTOFF, keep_last=0)
            await history.add_history("m", None, "other", "ADD", id="one")
            assert [r.new_memory for r in await history.get_history("m")] == ["other"]

    async def test_pruning_keeps_messages(self, open_keeping_store: OpenStore) -> None:
        async with open_keeping_store() as history:
            await history.save_messages([{"role": "user", "content": "x"}], "s")
            await history.prune(older_than=NOW + timedelta(days=9_000), keep_last=0)
            assert len(await history.get_last_messages("s")) == 1

    async def test_a_cursor_continues_or_raises_cursor_gone(
        self, open_keeping_store: OpenStore
    ) -> None:
        async with open_keeping_store() as history:
            await history.batch_add_history(
                [change(f"m{n % 3}", "UPDATE", 200 - 20 * n, str(n)) for n in range(9)]
            )
            pages = [page async for page in history.query_history(page_size=1).pages()]
            await history.prune(older_than=CUTOFF)
            left = await everything(history)
            ids = {record.id for record in left}
            for place, page in enumerate(pages[:9]):
                query = history.query_history(after=page.cursor)
                if page.records[0].id in ids:
                    found = [record.new_memory async for record in query]
                    assert found == [r.new_memory for r in left if int(r.new_memory or 0) > place]


async def test_a_cursor_whose_record_is_pruned_raises_cursor_gone(
    open_keeping_store: OpenStore,
) -> None:
    async with open_keeping_store() as history:
        await history.batch_add_history(
            [change("m", "ADD", 200), change("m", "UPDATE", 100), change("m", "UPDATE", 50)]
        )
        page = await anext(history.query_history(page_size=1).pages())
        await history.prune(older_than=CUTOFF)
        with pytest.raises(CursorGone):
            _ = [record async for record in history.query_history(after=page.cursor)]


async def test_a_follower_continues_or_raises_cursor_gone(
    open_keeping_store: OpenStore,
) -> None:
    async with open_keeping_store() as history:
        await history.batch_add_history([change("m", "UPDATE", 200, f"{n}") for n in range(5)])
        behind_one = history.follow()
        assert await first(behind_one, 1) == ["0"]
        end = await history.end_cursor()
        await history.prune(older_than=CUTOFF)
        await history.erase(session_scopes=["s"], reason="a VACUUM")
        await history.add_history("m", "4", "5", "UPDATE")
        assert await first(history.follow(after=end), 1) == ["5"]
        again = first(history.follow(after=behind_one.cursor), 2)
        if isinstance(history, SQLiteHistoryManager):  # a file's cursor names a record
            with pytest.raises(CursorGone):
                await again
        else:
            assert await again == ["4", "5"]


MODEL_CHANGES = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.sampled_from(["ADD", "UPDATE", "UPDATE", "DELETE"]),
        st.sampled_from([300, 120, 90.001, 90, 89.999, 10]),
    ),
    max_size=25,
)


class TestNaiveList:
    """Many histories, each pruned in steps of three records."""

    def check(self, open_store: OpenStore, count: int) -> None:
        runner = asyncio.Runner()

        @settings(
            max_examples=count,
            deadline=None,
            suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        )
        @given(changes=MODEL_CHANGES, keep_last=st.integers(0, 3))
        def example(changes: list[tuple[str, str, float]], keep_last: int) -> None:
            runner.run(pruned_as_the_list(changes, keep_last))

        async def pruned_as_the_list(changes: Sequence[tuple[Any, ...]], keep_last: int) -> None:
            await history.reset()
            records = await history.batch_add_history([change(*one) for one in changes])
            expected = pruned(records, CUTOFF, keep_last)
            gone = {r.memory_id for r in records} - {r.memory_id for r in expected}
            for dry_run in (True, False):
                report = await history.prune(
                    older_than=CUTOFF, keep_last=keep_last, dry_run=dry_run
                )
                assert report.done is not dry_run
                assert report.records == len(records) - len(expected)
                assert report.memories_gone == len(gone)
                assert await everything(history) == (records if dry_run else expected)
            for memory_id in "abc":
                of_memory = [r for r in expected if r.memory_id == memory_id]
                assert await history.get_history(memory_id) == of_memory
            again = await history.prune(older_than=CUTOFF, keep_last=keep_last)
            assert again.records == 0

        async def opened() -> HistoryManager:
            return await open_store()

        with runner:
            history = runner.run(opened())
            try:
                example()
            finally:
                runner.run(history.aclose())

    def test_it_prunes_what_a_naive_list_would(
        self, open_small_steps: OpenStore, request: pytest.FixtureRequest
    ) -> None:
        store = request.node.callspec.params["new_keeping_store"]
        self.check(open_small_steps, examples(store, 60))


class TestDuringWrites:
    async def test_no_new_record_is_lost(self, open_small_steps: OpenStore) -> None:
        """Writers add records to memories that are pruned repeatedly, some backdated."""
        added: list[HistoryRecord] = []
        async with open_small_steps() as history:

            async def write(task: int) -> None:
                for number in range(40):
                    memory_id = f"m{(task + number) % 7}"
                    days = 200 if number % 2 else 1
                    record = await history.batch_add_history(
                        [change(memory_id, "UPDATE", days, f"{task}.{number}")]
                    )
                    added.extend(record)

            async def prune() -> None:
                while not writing.done():
                    await history.prune(older_than=CUTOFF)

            writing = asyncio.ensure_future(asyncio.gather(*map(write, range(8))))
            new_prune_request = asyncio.create_task(prune())
            await writing
            await new_prune_request
            left = await everything(history)
            by_id = {record.id: record for record in added}
            assert all(by_id[record.id] == record for record in left)
            latest = {f"m{n}": (await history.get_history(f"m{n}"))[-1] for n in range(7)}
            new = [r.id for r in added if r.occurred_at == at(1)]
            assert set(new) <= {record.id for record in left}
            await history.prune(older_than=CUTOFF)
            assert await everything(history) == pruned(left, CUTOFF, 1)
            for memory_id, record in latest.items():
                assert (await history.get_history(memory_id))[-1] == record

    async def test_two_managers_prune_at_the_same_time(
        self, open_small_steps: OpenStore, request: pytest.FixtureRequest
    ) -> None:
        if request.node.callspec.params["new_keeping_store"] == "memory":
            pytest.skip("no other manager can open it")
        async with open_small_steps() as one, open_small_steps() as other:
            records = await one.batch_add_history(
                [change(f"m{n % 5}", "UPDATE", 200 - n) for n in range(60)]
            )
            reports = await asyncio.gather(
                one.prune(older_than=CUTOFF), other.prune(older_than=CUTOFF)
            )
            expected = pruned(records, CUTOFF, 1)
            assert await everything(one) == await everything(other) == expected
            assert sum(report.records for report in reports) == len(records) - len(expected)

    async def test_writers_wait_for_one_step_at_most(self, open_small_steps: OpenStore) -> None:
        async with open_small_steps() as history:
            await history.batch_add_history([change("m", "UPDATE", 200) for _ in range(90)])
            order: list[object] = []

            async def write() -> None:
                await history.add_history("w", None, "x", "ADD")
                order.append("written")

            def on_progress(done: int, total: int) -> None:
                order.append((done, total))
                if len(order) == 1:
                    writing.append(asyncio.ensure_future(write()))

            writing: list[asyncio.Future[None]] = []
            await history.prune(older_than=CUTOFF, on_progress=on_progress)
            await writing[0]
            assert 0 < order.index("written") < 5
            steps = [each for each in order if isinstance(each, tuple)]
            assert steps == sorted(steps)
            assert all(0 < done <= total for done, total in steps)

    async def test_records_added_meanwhile_are_left_for_the_next_call(
        self, open_small_steps: OpenStore
    ) -> None:
        async with open_small_steps() as history:
            await history.batch_add_history([change("m", "UPDATE", 200) for _ in range(12)])
            adding: list[asyncio.Future[Any]] = []

            def on_progress(_: int, __: int) -> None:
                added = [change("backdated", "UPDATE", 200) for _ in range(9)]
                adding.append(asyncio.ensure_future(history.batch_add_history(added)))

            await history.prune(older_than=CUTOFF, on_progress=on_progress)
            await asyncio.gather(*adding)
            assert len(adding) in (3, 4)  # a step may know that it is the last one
            assert len(await history.get_history("backdated")) == 9 * len(adding)
            assert len(await history.get_history("m")) == 1

    async def test_a_cancelled_prune_can_be_repeated(self, open_small_steps: OpenStore) -> None:
        async with open_small_steps() as history:
            records = await history.batch_add_history(
                [change(f"m{n % 4}", "UPDATE", 200 - n) for n in range(40)]
            )
            steps = 0

            def on_progress(_: int, __: int) -> None:
                nonlocal steps
                steps += 1
                if steps == 2:
                    new_prune_request.cancel()

            new_prune_request = asyncio.ensure_future(
                history.prune(older_than=CUTOFF, on_progress=on_progress)
            )
            with pytest.raises(asyncio.CancelledError):
                await new_prune_request
            left = await everything(history)
            assert 0 < len(left) < len(records)
            await history.prune(older_than=CUTOFF)
            assert await everything(history) == pruned(records, CUTOFF, 1)


def rows(path: Path) -> list[tuple[Any, ...]]:
    with looking(path) as connection:
        return connection.execute("SELECT id FROM history ORDER BY rowid").fetchall()


def entries(path: Path) -> set[tuple[int, int]]:
    with looking(path) as connection:
        levels = " UNION ALL ".join(
            f"SELECT memory, position FROM {level} WHERE memory >= 0" for level in LEVELS
        )
        return set(connection.execute(levels))


class TestFiles:
    async def test_the_index_has_exactly_the_records_that_are_left(self, tmp_path: Path) -> None:
        """In all levels; in the middle, at the end, and with rowids that are used again."""
        path = tmp_path / "h.db"
        async with open_history(path) as history:
            for part in range(4):
                await history.batch_add_history(
                    [
                        {**change(f"m{n % 97}", "UPDATE", 200 if n % 3 else 1), "actor_id": "a"}
                        for n in range(part, 3_000 + part)
                    ]
                )
            await history.batch_add_history([change("last", "ADD", 200, "z") for _ in range(50)])
            before = await everything(history)
            await history.prune(older_than=CUTOFF)
            assert await everything(history) == pruned(before, CUTOFF, 1)
            for _ in range(2):
                await history.prune(older_than=NOW, keep_last=0)
                await history.batch_add_history([change("reissued", "ADD", 100)] * 30)
                with looking(path) as connection:
                    check_index(connection)
                    check_levels(connection)
                    indexed = connection.execute("SELECT memory_id, rowid FROM history").fetchall()
                    of_actors = connection.execute(
                        "SELECT count(*) FROM async_history_actors AS entry WHERE NOT EXISTS ("
                        " SELECT 1 FROM history WHERE history.rowid = position"
                        " AND history.actor_id = entry.actor_id) AND actor_id <> ''"
                    ).fetchone()
                assert of_actors == (0,)
                assert entries(path) == {(memory_key(m), position) for m, position in indexed}
                assert len(await history.get_history("reissued")) == 30
        with looking(path) as connection:
            check_sound(connection)

    async def test_rows_of_other_programs_are_pruned_too(self, tmp_path: Path) -> None:
        path = tmp_path / "h.db"
        async with open_history(path) as history:
            await history.add_history("m", None, "ours", "ADD", created_at=at(300))
            with looking(path, "rw") as connection:
                connection.executemany(
                    "INSERT INTO history (id, memory_id, new_memory, event, created_at, updated_at)"
                    " VALUES (?, ?, 'x', ?, ?, ?)",
                    [
                        ("1", "m", "UPDATE", None, "2025-01-01T00:00:00-07:00"),
                        ("2", "m", "UPDATE", None, "2026-11-01"),
                        ("3", "gone", "ADD", "2025-06-01T00:00:00-07:00", None),
                        ("4", "gone", "DELETE", None, None),  # dated by the record before it
                        ("5", "dates", "ADD", "2025-06-01", None),
                        ("6", "dates", "UPDATE", None, None),
                        ("7", "dates", "UPDATE", None, None),
                        ("8", "undated", "UPDATE", None, None),
                        ("9", "undated", "DELETE", None, None),
                        ("10", None, "DELETE", None, "2025-01-01"),
                        ("11", b"\xff", "DELETE", None, "2025-01-01"),
                        ("12", "later", "ADD", "no time", None),
                        ("13", "later", "UPDATE", None, "2025-01-01"),
                        ("14", "later", "UPDATE", None, "2025-01-02"),
                    ],
                )
            dry = await history.prune(older_than=CUTOFF, dry_run=True)
            report = await history.prune(older_than=CUTOFF)
            assert dry.records == report.records == 5
            assert dry.memories_gone == report.memories_gone == 1
            assert [record_id for (record_id,) in rows(path)] == [
                *("2", "5", "6", "7", "8", "9", "10", "11", "12", "14")
            ]
            dated = await history.get_history("dates")
            assert all(r.occurred_at == datetime(2025, 6, 1, tzinfo=UTC) for r in dated)
            await history.prune(older_than=CUTOFF, keep_last=0)
            assert [record_id for (record_id,) in rows(path)] == [
                *("2", "8", "9", "10", "11", "12", "14")
            ]

    async def test_pruning_after_a_reset_by_another_program(self, tmp_path: Path) -> None:
        path = tmp_path / "h.db"
        async with open_history(path) as history:
            await history.batch_add_history([change("m", "UPDATE", 200)] * 3)
            with looking(path, "rw") as connection:
                connection.executescript("DROP TABLE history; DROP TABLE messages")
            assert (await history.prune(older_than=CUTOFF)).records == 0
            await history.batch_add_history([change("m", "UPDATE", 200)] * 3)
            assert (await history.prune(older_than=CUTOFF)).records == 2
            assert len(await history.get_history("m")) == 1

    async def test_a_file_that_is_opened_without_migration_refuses(self, tmp_path: Path) -> None:
        path = tmp_path / "h.db"
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(
                "CREATE TABLE history (id TEXT PRIMARY KEY, memory_id TEXT, old_memory TEXT,"
                " new_memory TEXT, event TEXT, created_at DATETIME, updated_at DATETIME,"
                " is_deleted INTEGER, actor_id TEXT, role TEXT)"
            )
            connection.commit()
        async with open_history(path, migrate=False) as history:
            with pytest.raises(MigrationError):
                await history.prune(older_than=CUTOFF)
            assert await history.erasures() == []
