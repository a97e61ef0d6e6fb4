"""Taking memories back to an instant; random histories, also of runs, against a model."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from hypothesis import strategies as st

from async_history import HistoryManager, HistoryRecord, InvalidInput, recording
from async_history.testing.changes import actions, at, change, everything, state_after
from async_history.testing.examples import try_examples
from async_history.testing.fixtures import Cases, OpenStore

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
    """`rollback`: changes, conflicts and refusals."""

    async def test_all_memories_of_an_owner_are_rolled_back(self, open_store: OpenStore) -> None:
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

    async def test_unknown_states_are_not_changed(self, open_store: OpenStore) -> None:
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

    async def test_an_owner_around_it_is_a_conflict_of_others_memories(
        self, open_store: OpenStore
    ) -> None:
        async with open_store() as history:
            for name in ("ann", "bob", "eve"):
                await change(history, name, "a", 1, owner={"user_id": name})
                await change(history, name, "b", 3, cause={"run_id": "r"})
            with recording(owner={"user_id": "ann"}):
                report = await history.rollback(to=at(2), memory_ids=["bob", "ann", "eve"])
                undone = await history.undo(run_id="r")
            assert actions(report) == {"bob": "conflict", "ann": "restore", "eve": "conflict"}
            assert all("owner" in (step.reason or "") for step in report.conflicts)
            assert actions(undone) == {"ann": "nothing", "bob": "conflict", "eve": "conflict"}
            found = {name: await history.get_history(name) for name in ("ann", "bob", "eve")}
            assert [len(records) for records in found.values()] == [3, 2, 2]

    def test_random_histories_are_rolled_back(self, open_store: OpenStore) -> None:
        """One by one, each against a model that looks at the list of all records."""
        try_examples(
            open_store,
            _example,
            30,
            changes=CHANGES,
            hour=st.integers(-1, 9),
            how=st.sampled_from(HOW),
        )

    async def test_unusable_rollbacks_are_refused(self, open_store: OpenStore) -> None:
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
