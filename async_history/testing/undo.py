"""Taking back the changes of a run or a cause."""

from typing import Any

from async_history import recording
from async_history.testing.changes import actions, change, everything, state_after
from async_history.testing.fixtures import Cases, OpenStore


class UndoCases(Cases):
    """`undo`: changes and conflicts."""

    async def test_changes_of_a_run_are_undone(self, open_store: OpenStore) -> None:
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
            assert record.cause is not None
            assert record.cause.keys() == {"undo", "undo_of"}
            assert record.cause["undo"] == report.id
            again = await history.undo(run_id="r")
            assert again.unchanged == 7
            assert await everything(history, list(expected)) == after
            await change(history, "changed", "d", 4)  # in the state without the run
            assert actions(await history.undo(run_id="r"))["changed"] == "nothing"
            await change(history, "changed", "e", 5, **run)  # it goes on
            assert actions(await history.undo(run_id="r"))["changed"] == "restore"
            assert state_after(await history.get_history("changed")) == ("d", None)

    async def test_changes_with_a_cause_are_undone(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            asked = {"request_id": "q", "reason": "r"}
            await change(history, "m", "a", 1)
            await change(history, "m", "b", 2, cause={**asked, "more": "x"})
            await change(history, "n", "a", 1, cause={"request_id": "q"})
            with recording(cause=asked):
                report = await history.undo(cause=asked)
            assert actions(report) == {"m": "restore"}
            records = await history.get_history("m")
            made = records[-1].cause or {}
            assert {key: made[key] for key in made if key != "undo_of"} == {
                **asked,
                "undo": report.id,
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

    async def test_erased_texts_are_not_in_the_undo_of_a_run(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            await change(history, "m", "a", 1)
            made = [
                await change(history, "m", "b", 2, cause={"reason": "secret"}),
                await change(history, "m", "c", 3, cause={"run_id": "secret"}),
            ]
            assert (await history.undo(run_id="secret")).restored == 1
            assert (await history.undo(cause={"reason": "secret"})).restored == 1
            ids = [record.id for record in made]
            await history.erase(record_ids=ids, reason="asked", vacuum=False)
            records = await history.get_history("m")
            assert "secret" not in str([record.cause for record in records])
            assert [record.new_memory for record in records] == ["a", None, None, None, "a"]
