"""Memories taken back to an instant, or to what they were before a run."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from async_history import (
    HistoryConflict,
    HistoryManager,
    HistoryRecord,
    InvalidInput,
    RollbackReport,
    recording,
)
from async_history.testing.fixtures import Cases, OpenStore

START = datetime(2026, 1, 1, tzinfo=UTC)
State = tuple[str | None, object] | None
"""A memory's text and context; None of one that is not there."""


def at(hour: float) -> datetime:
    return START + timedelta(hours=hour)


def state_after(records: Sequence[HistoryRecord]) -> State:
    if not records or records[-1].event == "DELETE":
        return None
    return records[-1].new_memory, records[-1].context


def actions(report: RollbackReport) -> dict[str, str]:
    return {step.memory_id: str(step.action) for step in report.steps}


async def change(
    history: HistoryManager, memory_id: str, text: str | None, hour: float, **more: Any
) -> HistoryRecord:
    """Record what mem0 would: an ADD, an UPDATE, or for None a DELETE."""
    records = await history.get_history(memory_id)
    latest = records[-1] if records and records[-1].event != "DELETE" else None
    event = "DELETE" if text is None else "UPDATE" if latest else "ADD"
    return await history.add_history(
        memory_id,
        None if latest is None else latest.new_memory,
        text,
        event,
        created_at=at(hour),
        updated_at=None if event == "ADD" else at(hour),
        **more,
    )


async def everything(
    history: HistoryManager, memory_ids: Sequence[str]
) -> dict[str, list[HistoryRecord]]:
    return {memory_id: await history.get_history(memory_id) for memory_id in memory_ids}


CHANGES = st.lists(
    st.fixed_dictionaries(
        {
            "memory": st.integers(0, 4),
            "text": st.sampled_from([None, "a", "b", "c"]),
            "hour": st.integers(0, 9),
            "tag": st.integers(0, 1),
            "run": st.sampled_from([None, "r1", "r2"]),
        }
    ),
    max_size=16,
)


class RollbackCases(Cases):
    """`rollback` and `undo`: what they do, what they leave, and what may happen meanwhile."""

    async def test_all_of_an_owner_is_as_it_was(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            ann = {"owner": {"user_id": "ann", "app_id": "x"}}
            await change(history, "same", "a", 1, **ann)
            await change(history, "changed", "a", 1, context={"n": 1}, **ann)
            await change(history, "changed", "b", 3, context={"n": 2})
            await change(history, "tagged", "a", 1, context={"n": 1}, **ann)
            await change(history, "tagged", "a", 3, context={"n": 2})
            await change(history, "deleted", "a", 1, context={"n": 1}, **ann)
            await change(history, "deleted", None, 3)
            await change(history, "later", "a", 3, **ann)
            await change(history, "later and gone", "a", 3, **ann)
            await change(history, "later and gone", None, 4)
            await change(history, "bob's", "a", 3, owner={"user_id": "bob"})
            before = await everything(history, ["same", "later and gone", "bob's"])
            seen: list[tuple[int, int]] = []
            report = await history.rollback(
                to=at(2),
                user_id="ann",
                app_id="x",
                actor_id="eve",
                role="admin",
                on_progress=lambda done, of: seen.append((done, of)),
            )
            assert actions(report) == {
                "same": "nothing",
                "changed": "restore",
                "tagged": "restore",
                "deleted": "restore",
                "later": "delete",
                "later and gone": "nothing",
            }
            assert (report.restored, report.deleted, report.unchanged) == (3, 1, 2)
            assert report.conflicts == ()
            assert report.done
            assert seen == [(6, 6)]
            assert await everything(history, list(before)) == before
            texts = {}
            for step in report.steps:
                records = await history.get_history(step.memory_id)
                if step.record_id is None:
                    continue
                assert records[-1].id == step.record_id
                assert records[-1].cause == {"rollback": report.id}
                assert (records[-1].actor_id, records[-1].role) == ("eve", "admin")
                assert records[-1].owner == records[0].owner
                assert records[-1].old_memory == records[-2].new_memory
                texts[step.memory_id] = str(records[-1].event), state_after(records)
            assert texts == {
                "changed": ("UPDATE", ("a", {"n": 1})),
                "tagged": ("UPDATE", ("a", {"n": 1})),
                "deleted": ("ADD", ("a", {"n": 1})),
                "later": ("DELETE", None),
            }
            again = await history.rollback(to=at(2), user_id="ann")
            assert (again.unchanged, len(again.steps)) == (6, 6)
            back = await history.undo(cause={"rollback": report.id})
            assert (back.restored, back.deleted) == (3, 1)
            found = await everything(history, ["changed", "tagged", "deleted", "later"])
            assert [state_after(records) for records in found.values()] == [
                ("b", {"n": 2}),
                ("a", {"n": 2}),
                None,
                ("a", None),
            ]

    async def test_what_is_not_known_stays(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            for name in ("erased", "erased since"):
                await change(history, name, "a", 1, context={"n": 1})
                if name == "erased":
                    await change(history, name, "b", 3)
            await history.erase(memory_ids=["erased", "erased since"], reason="x", vacuum=False)
            await history.add_history("cut", "a", "b", "UPDATE", updated_at=at(3))
            await history.add_history("cut and gone", "a", None, "DELETE", updated_at=at(3))
            names = ["erased", "erased since", "cut", "cut and gone", "nobody"]
            before = await everything(history, names)
            report = await history.rollback(to=at(2), memory_ids=iter(names))
            assert actions(report) == {
                "erased": "conflict",
                "erased since": "nothing",
                "cut": "conflict",
                "cut and gone": "conflict",
                "nobody": "conflict",
            }
            reasons = [step.reason or "" for step in report.conflicts]
            for reason, said in zip(
                reasons, ("erased", "begins", "begins", "no hist"), strict=True
            ):
                assert said in reason
            assert await everything(history, names) == before
            assert (await history.rollback(to=at(2), memory_ids=[])).steps == ()

    async def test_what_a_run_did_is_taken_back(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            run: dict[str, Any] = {"cause": {"run_id": "r"}}
            await change(history, "changed", "a", 1, context={"n": 1})
            await change(history, "changed", "b", 2, **run)
            await change(history, "changed", "c", 3, **run)
            await change(history, "added", "a", 2, **run)
            await change(history, "deleted", "a", 1)
            await change(history, "deleted", None, 2, **run)
            await change(history, "others'", "a", 1)
            await change(history, "others'", "b", 2, **run)
            other = await change(history, "others'", "c", 3)
            await change(history, "mixed", "a", 1, **run)
            await change(history, "mixed", "b", 2)
            await change(history, "mixed", "c", 3, **run)
            await change(history, "back", "a", 1)
            await change(history, "back", "b", 2, **run)
            await change(history, "back", "a", 3)
            await history.add_history("cut", "a", "b", "UPDATE", **run)
            await history.add_history("unknown", None, "b", "UPDATE", **run)
            await change(history, "of the run", "a", 1, owner={"run_id": "r"})
            await change(history, "of the run", "b", 2, cause={"run_id": "other"})
            await change(history, "of the run", "c", 2, cause={"request_id": "q"})
            await change(history, "not of the run", "a", 1, cause={"run_id": "other"})
            planned = await history.undo(run_id="r", dry_run=True)
            report = await history.undo(run_id="r")
            assert planned.steps == report.steps
            assert (planned.done, report.done) == (False, True)
            expected = {
                "changed": ("restore", ("a", {"n": 1})),
                "added": ("delete", None),
                "deleted": ("restore", ("a", None)),
                "others'": ("conflict", ("c", None)),
                "mixed": ("restore", ("b", None)),
                "back": ("nothing", ("a", None)),
                "cut": ("restore", ("a", None)),
                "unknown": ("conflict", ("b", None)),
                "of the run": ("restore", ("b", None)),
            }
            after = await everything(history, list(expected))
            states = {name: state_after(records) for name, records in after.items()}
            did = actions(report)
            assert {name: (did[name], states[name]) for name in did} == expected
            assert {step.memory_id for step in report.conflicts} == {"others'", "unknown"}
            assert any(other.id in (step.reason or "") for step in report.conflicts)
            record = after["changed"][-1]
            assert record.cause == {"undo": report.id, "undo_of": "run:r"}
            again = await history.undo(run_id="r")
            assert again.unchanged == 7
            assert await everything(history, list(expected)) == after
            await change(history, "changed", "d", 4)  # of the state without the run
            assert actions(await history.undo(run_id="r"))["changed"] == "nothing"
            await change(history, "changed", "e", 5, **run)  # it goes on
            assert actions(await history.undo(run_id="r"))["changed"] == "restore"
            assert state_after(await history.get_history("changed")) == ("d", None)

    async def test_what_has_a_cause_is_taken_back(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            asked = {"request_id": "q", "reason": "r"}
            await change(history, "m", "a", 1)
            await change(history, "m", "b", 2, cause={**asked, "more": "x"})
            await change(history, "n", "a", 1, cause={"request_id": "q"})
            with recording(cause=asked):
                report = await history.undo(cause=asked)
            assert actions(report) == {"m": "restore"}
            records = await history.get_history("m")
            assert records[-1].cause == {
                **asked,
                "undo": report.id,
                "undo_of": "reason=r&request_id=q",
            }
            assert (await history.undo(cause=asked)).unchanged == 1
            redone = await history.undo(cause={"undo": report.id})
            assert redone.restored == 1
            assert state_after(await history.get_history("m")) == ("b", None)
            assert (await history.undo(cause=asked)).restored == 1
            long = {str(n): "x" * 1_000 for n in range(3)}
            await change(history, "long", "a", 1, cause=long)
            assert (await history.undo(cause=long)).deleted == 1
            assert (await history.undo(cause=long)).unchanged == 1

    def test_random_histories_are_taken_back(self, open_store: OpenStore) -> None:
        """One by one, each against a model that looks at the list of all records."""
        with asyncio.Runner() as runner:
            history = runner.run(_opened(open_store))
            number = 0

            @settings(
                max_examples=30,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            @given(changes=CHANGES, hour=st.integers(-1, 9), how=st.sampled_from(HOW))
            def example(changes: list[dict[str, Any]], hour: int, how: str) -> None:
                nonlocal number
                number += 1
                runner.run(_example(history, f"{number}.", changes, hour, how))

            try:
                example()
            finally:
                runner.run(history.aclose())

    async def test_two_at_once(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            names = [f"m{n}" for n in range(40)]
            for name in names:
                await change(history, name, "a", 1)
                await change(history, name, "b", 3)
            reports = await asyncio.gather(
                history.rollback(to=at(2), memory_ids=names),
                history.rollback(to=at(2), memory_ids=names[::-1]),
                history.rollback(to=at(0), memory_ids=names[:20]),
            )
            assert [report.conflicts for report in reports] == [()] * 3
            for index, name in enumerate(names):
                records = await history.get_history(name)
                assert len(records) <= (4 if index < 20 else 3) + 1
                assert index < 20 or state_after(records) == ("a", None)
                assert len(records) == 3 or index < 20

    async def test_beside_writers(self, open_store: OpenStore) -> None:
        """Each record is written after exactly the one that it was planned from."""
        async with open_store() as history:
            names = [f"m{n}" for n in range(10)]
            for name in names:
                await change(history, name, "a", 1)
            done = asyncio.Event()

            async def write(name: str) -> None:
                for n in range(200):
                    if done.is_set():
                        return
                    await history.update_history(name, str(n))

            writers = [asyncio.create_task(write(name)) for name in names]
            await asyncio.sleep(0)
            report = await history.rollback(to=at(2), memory_ids=names)
            done.set()
            await asyncio.gather(*writers)
            for step in report.steps:
                records = await history.get_history(step.memory_id)
                made = [n for n, one in enumerate(records) if one.id == step.record_id]
                assert len(made) == (step.action == "restore")
                for place in made:
                    assert records[place].old_memory == records[place - 1].new_memory
                    assert records[place].new_memory == "a"
                assert [one for one in records if one.cause] == [records[n] for n in made]

    async def test_a_memory_that_never_rests_is_reported(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            await change(history, "m", "a", 1)
            await change(history, "n", "a", 1)
            for name in "mn":
                await change(history, name, "b", 3)
            tried = 0
            add = history.batch_add_history

            async def add_after_another(
                records: Any, *, if_latest: Any = None
            ) -> list[HistoryRecord]:
                nonlocal tried
                if if_latest is not None and if_latest.memory_id == "m":
                    tried += 1
                    await history.update_history("m", f"again {tried}")
                    with pytest.raises(HistoryConflict):
                        await add(records, if_latest=if_latest)
                return await add(records, if_latest=if_latest)

            history.batch_add_history = add_after_another  # type: ignore[method-assign]
            report = await history.rollback(to=at(2), memory_ids=["m", "n"])
            assert tried > 1
            assert actions(report) == {"m": "conflict", "n": "restore"}
            assert "others changed it" in (report.conflicts[0].reason or "")
            del history.batch_add_history
            assert (await history.rollback(to=at(2), memory_ids=["m", "n"])).restored == 1

    async def test_cancelled_anywhere_and_called_again(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            names = [f"m{n}" for n in range(30)]
            owner = {"user_id": "ann"}
            await history.batch_add_history(
                [
                    {
                        "memory_id": name,
                        "event": "ADD",
                        "new_memory": text,
                        "created_at": at(hour),
                        "owner": owner,
                    }
                    for text, hour in (("a", 1), ("b", 3))
                    for name in names
                ]
            )
            calls: tuple[Callable[[], Any], ...] = (
                lambda: history.rollback(to=at(2), user_id="ann"),
                lambda: history.rollback(to=at(4), user_id="ann"),
            )
            for steps in range(24):
                wanted = ("a", "b")[steps % 2]
                length = {name: len(rs) for name, rs in (await everything(history, names)).items()}
                call = asyncio.create_task(calls[steps % 2]())
                for _ in range(steps):
                    await asyncio.sleep(0)
                call.cancel()
                await asyncio.wait([call])
                await calls[steps % 2]()
                for name, records in (await everything(history, names)).items():
                    assert records[-1].new_memory == wanted
                    assert len(records) <= length[name] + 1

    async def test_what_can_not_be_taken_back_is_refused(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            await change(history, "m", "a", 1)
            naive = datetime(2026, 1, 1)  # noqa: DTZ001
            refused: tuple[dict[str, Any], ...] = (
                {"to": at(2)},
                {"to": at(2), "memory_ids": ["m"], "user_id": "ann"},
                {"to": at(2), "memory_ids": "m"},
                {"to": at(2), "memory_ids": [7]},
                {"to": at(2), "user_id": ""},
                {"to": naive, "user_id": "ann"},
                {"to": 1, "user_id": "ann"},
                {"to": at(2), "user_id": "ann", "dry_run": "yes"},
                {"to": at(2), "user_id": "ann", "actor_id": 7},
                {"to": at(2), "user_id": "ann", "on_progress": 7},
            )
            for options in refused:
                with pytest.raises(InvalidInput):
                    await history.rollback(**options)
            undone: tuple[dict[str, Any], ...] = (
                {},
                {"cause": {}},
                {"run_id": "r", "cause": {"request_id": "q"}},
                {"run_id": ""},
                {"cause": {"x": 7}},
                {"cause": "x"},
            )
            for options in undone:
                with pytest.raises(InvalidInput):
                    await history.undo(**options)
            assert len(await history.get_history("m")) == 1


async def _opened(open_store: OpenStore) -> HistoryManager:
    return await open_store()


HOW = ("rollback an owner", "rollback memories", "undo a run", "undo a cause")


async def _example(
    history: HistoryManager, prefix: str, changes: list[dict[str, Any]], hour: int, how: str
) -> None:
    """Make a history of five memories of two users and two runs; take it back; compare."""
    names = [f"{prefix}{n}" for n in range(5)]
    for one in changes:
        n = one["memory"]
        if one["text"] is None and state_after(await history.get_history(names[n])) is None:
            continue
        await change(
            history,
            names[n],
            one["text"],
            one["hour"],
            owner={"user_id": f"{prefix}u{n % 2}", "run_id": f"{prefix}r{n % 3}"},
            context=None if one["text"] is None else {"tag": one["tag"]},
            cause=None if one["run"] is None else {"run_id": prefix + one["run"]},
        )
    before = await everything(history, names)
    run = prefix + "r1"
    calls: dict[str, Callable[[bool], Any]] = {
        "rollback an owner": lambda dry: history.rollback(
            to=at(hour), user_id=f"{prefix}u1", dry_run=dry
        ),
        "rollback memories": lambda dry: history.rollback(
            to=at(hour), memory_ids=names, dry_run=dry
        ),
        "undo a run": lambda dry: history.undo(run_id=run, dry_run=dry),
        "undo a cause": lambda dry: history.undo(cause={"run_id": run}, dry_run=dry),
    }
    planned = await calls[how](True)
    assert await everything(history, names) == before
    report = await calls[how](False)
    assert report.steps == planned.steps
    steps = {step.memory_id: step for step in report.steps}
    after = await everything(history, names)
    for n, name in enumerate(names):
        records = before[name]
        kept = len(records)
        if how.startswith("rollback"):
            if how == "rollback memories" or n % 2 == 1:
                kept = max(
                    (i + 1 for i, r in enumerate(records) if _time(r) <= at(hour)), default=0
                )
        else:
            while kept and _is_of(records[kept - 1], run, by_owner=how == "undo a run"):
                kept -= 1
        wanted = state_after(records[:kept])
        assert after[name][: len(records)] == records
        assert state_after(after[name]) == wanted
        assert len(after[name]) - len(records) == (wanted != state_after(records))
        if wanted != state_after(records):
            assert steps[name].action == ("delete" if wanted is None else "restore")
        elif name in steps:
            assert steps[name].action in ("nothing", "conflict")
    assert await calls[how](False) is not None
    assert await everything(history, names) == after


def _time(record: HistoryRecord) -> datetime:
    assert record.occurred_at is not None
    return record.occurred_at


def _is_of(record: HistoryRecord, run: str, *, by_owner: bool) -> bool:
    named = None if record.cause is None else record.cause.get("run_id")
    if named is None and by_owner and record.owner is not None:
        return record.owner.run_id == run
    return named == run
