"""Pruning a file: records without a time, owners, and the sizes of the steps."""

import random
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest

from async_history import HistoryManager, open_history
from async_history._core.removing.prune import prune_in_steps
from async_history._core.removing.prune_request import PruneLimits, new_prune_request
from async_history._sqlite.index.levels import LEVELS
from async_history.sqlite import SQLiteHistoryManager
from tests.contract.dated_changes import CUTOFF, at, change
from tests.subprocesses.checks import check_index, check_levels, looking
from tests.support.limits import limited
from tests.support.vm_steps import Steps

pytestmark = pytest.mark.once

INSERT = "INSERT INTO history (id, memory_id, event, updated_at) VALUES (?, ?, ?, ?)"
READ = "SELECT id, memory_id, event, updated_at FROM history ORDER BY rowid"
CHANGES = (
    "SELECT 1",
    "UPDATE history SET updated_at = NULL WHERE rowid % 31 = 5",
    "DELETE FROM history WHERE rowid % 5 = 2",
    "UPDATE history SET memory_id = 'm1' WHERE rowid % 50 = 3",
    "REPLACE INTO history (id, memory_id, event, updated_at)"
    " SELECT id, memory_id, event, updated_at FROM history WHERE rowid % 7 = 3",
)
Row = tuple[str, str, str, str | None]


def opened(path: Path, **limits: Any) -> HistoryManager:
    return limited(open_history(path), prune=PruneLimits(**limits))


def some_rows(chance: random.Random, count: int, prefix: str) -> list[Row]:
    def time() -> str | None:
        days = chance.choice([300, 200, 100, 100, 10, None])
        return None if days is None else at(days).isoformat(timespec="microseconds")

    memories = [f"m{n}" for n in range(count // 6 + 1)]
    events = ("UPDATE", "UPDATE", "DELETE")
    return [
        (f"{prefix}-{n}", chance.choice(memories), chance.choice(events), time())
        for n in range(count)
    ]


def are_old(records: Sequence[Row]) -> list[bool | None]:
    return [None if time is None else time < CUTOFF.isoformat() for *_, time in records]


def ids_to_prune(rows: Sequence[Row], keep_last: int) -> tuple[set[str], int]:
    """Return the ids that a pruning removes, and how many memories go as a whole."""
    gone: set[str] = set()
    ended = 0
    for _, group in groupby(sorted(rows, key=itemgetter(1)), key=itemgetter(1)):
        records = list(group)
        own = are_old(records)
        known: list[bool | None] = []
        for old in own:
            known.append(old if old is not None or not known else known[-1])
        if all(known) and (keep_last == 0 or records[-1][2] == "DELETE"):
            gone |= {record[0] for record in records}
            ended += 1
            continue
        kept = max(keep_last, 1)
        gone |= {
            record[0]
            for index, record in enumerate(records[:-kept])
            if own[index] and own[index + 1] is not None
        }
    return gone, ended


def write(path: Path, rows: Sequence[Row], sql: str = "SELECT 1") -> list[Row]:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(sql)
        connection.executemany(INSERT, rows)
        return connection.execute(READ).fetchall()


@pytest.mark.parametrize("seed", range(10))
async def test_records_without_a_time_are_pruned_as_a_list_would_be(
    seed: int, tmp_path: Path
) -> None:
    """In blocks with entries for them, in the rows after these, and after changes by others."""
    chance = random.Random(seed)  # noqa: S311 - a test's random choices
    path = tmp_path / "h.db"
    async with open_history(path):
        pass
    write(path, some_rows(chance, 1_300, "first"))
    async with open_history(path) as history:
        await history.add_history("ours", None, "x", "ADD")
    after = some_rows(chance, chance.choice((0, 60)), "last")
    rows = write(path, after, CHANGES[seed % len(CHANGES)])
    keep_last, records = seed % 3, chance.choice((40, 5_000))
    gone, ended = ids_to_prune([row for row in rows if row[1] != "ours"], keep_last)
    async with opened(path, records=records, most_records=records) as history:
        for dry_run in (True, False):
            report = await history.prune(older_than=CUTOFF, keep_last=keep_last, dry_run=dry_run)
            assert (report.records, report.memories_gone) == (len(gone), ended)
    assert gone
    assert write(path, []) == [row for row in rows if row[0] not in gone]
    with looking(path) as connection:
        check_index(connection)
        check_levels(connection)


async def test_a_record_that_is_replaced_between_steps_leaves_its_time_to_none(
    tmp_path: Path,
) -> None:
    """The record before the next one without a time then dates it, and stays."""
    path = tmp_path / "h.db"
    old = at(200).isoformat(timespec="microseconds")
    async with open_history(path):
        pass
    others = [(f"{n}", f"{n % 9}", "UPDATE", old) for n in range(600)]
    dated = [(f"d{n}", "m", "UPDATE", time) for n, time in enumerate((old, old, None, old))]
    write(path, others + dated + [(f"n{n}", "n", "UPDATE", old) for n in range(600)])
    limits = PruneLimits(records=500, most_records=500)
    asked = new_prune_request(CUTOFF, 1, dry_run=False, limits=limits)
    async with SQLiteHistoryManager(path) as history:
        reached = (await history.store.prune_step(asked, None)).reached
        write(
            path, [], "REPLACE" + INSERT[6:].replace("?, ?, ?, ?", f"'d1', 'm', 'UPDATE', '{old}'")
        )
        while reached is not None:
            reached = (await history.store.prune_step(asked, reached)).reached
        left = await history.get_history("m")
        assert [(one.id, one.occurred_at) for one in left] == [
            (name, at(200)) for name in ("d0", "d2", "d1")
        ]


async def test_what_is_added_meanwhile_costs_a_pruning_little(tmp_path: Path) -> None:
    """Any later record may replace one that dated another, so a step looks at them, if few."""
    taken = []
    old = at(200).isoformat(timespec="microseconds")
    limits = PruneLimits(records=100, most_records=100)
    asked = new_prune_request(CUTOFF, 1, dry_run=False, limits=limits)
    for added in (0, 5_000):
        path = tmp_path / f"{added}.db"
        async with open_history(path):
            pass
        write(path, [(f"{n}", "m", "UPDATE", None if n == 9 else old) for n in range(600)])
        async with SQLiteHistoryManager(path) as history:
            reached = (await history.store.prune_step(asked, None)).reached
            write(path, [(f"new{n}", f"{n}", "ADD", None) for n in range(added)])
            await history.add_history("ours", None, "x", "ADD")
            async with Steps(history) as steps:
                assert (await history.store.prune_step(asked, reached)).records == 100
            taken.append(steps.taken)
    without, after = taken
    assert after < 2 * without


async def test_pruned_memories_leave_blocks_whose_times_are_known(tmp_path: Path) -> None:
    """Also memories of which a record dated the others."""
    path = tmp_path / "h.db"
    old = at(200).isoformat(timespec="microseconds")
    async with open_history(path):
        pass
    rows = [(f"{n}", f"m{n // 2}", "DELETE", None if n % 2 else old) for n in range(700)]
    write(path, [*rows, ("new", "new", "ADD", None)])
    async with opened(path, records=100, most_records=100) as history:
        report = await history.prune(older_than=CUTOFF)
        assert (report.records, report.memories_gone) == (700, 350)
    with looking(path) as connection:
        (known, unknown) = connection.execute(
            "SELECT count(*), total(earliest = '') FROM async_history_spans WHERE block >= 0"
        ).fetchone()
    assert (known > 0, unknown) == (True, 0)


async def test_no_entry_of_a_pruned_record_is_left(tmp_path: Path) -> None:
    """Not even of a row that another program changed, whose entry may be in two levels."""
    path = tmp_path / "h.db"
    async with open_history(path) as history:
        old = [change(f"m{n % 100}", "DELETE", 200) for n in range(900)]
        await history.batch_add_history([one | {"owner": {"user_id": "ann"}} for one in old])
        with closing(sqlite3.connect(path)) as other:
            other.execute("UPDATE history SET memory_id = memory_id")
            other.commit()
        await history.add_history("new", None, "x", "ADD")
        report = await history.prune(older_than=CUTOFF, keep_last=0)
        assert report.records == 900
    levels = " UNION ALL ".join(f"SELECT memory, position FROM {level}" for level in LEVELS)
    with looking(path) as connection:
        left = connection.execute(f"SELECT position FROM ({levels}) WHERE memory >= 0").fetchall()
        assert left == connection.execute("SELECT rowid FROM history").fetchall()
    assert len(left) == 1


@pytest.mark.parametrize("time", [None, at(200).isoformat(timespec="microseconds")])
async def test_larger_steps_of_owned_memories_cost_no_more(
    time: str | None, tmp_path: Path
) -> None:
    """Nothing is done for each pair of removed records, also if each memory's last has no time."""
    taken = []
    for records in (100, 1_000):
        path = tmp_path / f"{records}.db"
        limits = PruneLimits(records=records, most_records=records)
        asked = new_prune_request(CUTOFF, 1, dry_run=False, limits=limits)
        async with SQLiteHistoryManager(path) as history:
            owned = [change(f"m{n}", "DELETE", 200) for n in range(1_000)]
            await history.batch_add_history([one | {"owner": {"user_id": "ann"}} for one in owned])
            write(path, [(f"{n}", f"m{n}", "DELETE", time) for n in range(1_000)])
            async with Steps(history) as steps:
                report = await prune_in_steps(history.store.prune_step, asked, None)
            assert (report.records, report.memories_gone) == (2_000, 1_000)
            taken.append(steps.taken)
        with looking(path) as connection:
            assert connection.execute("SELECT count(*) FROM async_history_owners").fetchone() == (
                0,
            )
    small, large = taken
    assert large < 1.5 * small


async def test_what_others_removed_of_an_owned_memory_costs_a_pruning_little(
    tmp_path: Path,
) -> None:
    """What they remove leaves entries; each part of a step looks for a record of the memory."""
    taken = []
    for removed in (0, 4_000):
        path = tmp_path / f"{removed}.db"
        async with open_history(path) as history:
            owned = [change("m", "UPDATE", 200) for _ in range(removed + 501)]
            await history.batch_add_history([one | {"owner": {"user_id": "ann"}} for one in owned])
            write(path, [], f"DELETE FROM history WHERE rowid <= {removed}")
            async with Steps(history) as steps:
                assert (await history.prune(older_than=CUTOFF)).records == 500
            taken.append(steps.taken)
    without, after = taken
    assert after < 1.5 * without


@pytest.mark.parametrize(("step_s", "batches"), [(1e-9, 20), (60.0, 4)])
async def test_steps_are_fitted_to_the_time_that_they_take(
    step_s: float, batches: int, tmp_path: Path
) -> None:
    async with opened(tmp_path / "h.db", records=10, most_records=100, step_s=step_s) as history:
        await history.batch_add_history([change("m", "UPDATE", 200) for _ in range(200)])
        report = await history.prune(older_than=CUTOFF)
        assert (report.records, report.batches) == (199, batches)
