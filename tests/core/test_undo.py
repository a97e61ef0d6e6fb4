"""Changes that an undo leaves out: those that were undone, and the undos themselves."""

import asyncio
from datetime import UTC, datetime
from itertools import permutations
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from async_history import HistoryManager, InvalidInput, open_history, recording

WHO: dict[str, dict[str, Any]] = {
    "cause": {"cause": {"request_id": "a"}},
    "long": {"cause": {"request_id": "a" * 900}},
    "run": {"run_id": "é&r=a"},
    "odd": {"cause": {"k": "1,x=2&y=%20+", "=": ""}},
}
"""Who changes a memory, as arguments of `undo`."""
STEPS = st.lists(
    st.tuples(st.sampled_from(["do", "undo", "undo and undo that"]), st.sampled_from(list(WHO))),
    max_size=12,
)


def cause_of(who: str) -> dict[str, str]:
    cause: dict[str, str] = WHO[who].get("cause", WHO[who])
    return cause


async def example(history: HistoryManager, memory_id: str, steps: list[tuple[str, str]]) -> None:
    """Compare a memory with a list of the changes that it contains."""
    await history.add_history(memory_id, None, "0", "ADD")
    changes = [("nobody", "0")]
    floors = dict.fromkeys(WHO, 0)  # an undo does not go back beyond what it once restored
    for number, (what, who) in enumerate(steps, 1):
        if what == "do":
            await history.add_history(
                memory_id, changes[-1][1], str(number), "UPDATE", cause=cause_of(who)
            )
            changes.append((who, str(number)))
        else:
            left = list(changes)
            while len(left) > floors[who] and left[-1][0] == who:
                left.pop()
            report = await history.undo(**WHO[who])
            restored = {step.memory_id for step in report.steps if step.action == "restore"}
            assert (memory_id in restored) == (left != changes), (what, who, changes)
            if what == "undo and undo that":
                await history.undo(cause={"undo": report.id})
            elif left != changes:
                changes = left
                floors = {name: min(floor, len(left)) for name, floor in floors.items()}
                floors[who] = len(left)
        latest = (await history.get_history(memory_id))[-1]
        assert latest.new_memory == changes[-1][1], (what, who, changes)


async def test_an_undo_that_goes_back_further_than_another() -> None:
    """What it undid stays undone, although the other undo had kept some of it."""
    async with open_history("memory://") as history:
        for one, other in permutations(WHO, 2):
            steps = [("do", one), ("do", other), ("undo", other), ("do", one), ("undo", one)]
            await example(history, f"{one} {other}", [*steps, ("do", other), ("undo", other)])


@pytest.mark.once
def test_undone_changes_do_not_affect_later_undos() -> None:
    with asyncio.Runner() as runner:
        history = runner.run(open_history("memory://").__aenter__())

        @settings(
            max_examples=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(steps=STEPS)
        def run(steps: list[tuple[str, str]]) -> None:
            runner.run(history.reset())
            runner.run(example(history, "m", steps))

        try:
            run()
        finally:
            runner.run(history.aclose())


async def test_undos_with_different_arguments_are_different() -> None:
    """A run in a memory's owner and a cause that names the run are not the same."""
    async with open_history("memory://") as history:
        await history.add_history("m", None, "a", "ADD", owner={"run_id": "r"})
        await history.add_history("m", "a", "b", "UPDATE", cause={"run_id": "r"})
        assert (await history.undo(cause={"run_id": "r"})).restored == 1
        assert (await history.undo(run_id="r")).deleted == 1


@pytest.mark.parametrize("undo_of", ["", "x", "run:", "blake2b:x", "=", "a=b&%"])
async def test_another_programs_cause_that_looks_like_an_undo_is_a_change(undo_of: str) -> None:
    async with open_history("memory://") as history:
        await history.add_history("m", None, "a", "ADD")
        await history.add_history("m", "a", "b", "UPDATE", cause={"request_id": "q"})
        await history.add_history("m", "b", "c", "UPDATE", cause={"undo_of": undo_of})
        report = await history.undo(cause={"request_id": "q"})
        assert len(report.conflicts) == 1


async def test_a_cause_without_space_for_the_calls_own_is_refused_before_it_is_logged() -> None:
    async with open_history("memory://") as history:
        await history.add_history("m", None, "x", "ADD", cause={"request_id": "a"})
        with recording(cause={f"k{n}": "x" for n in range(32)}):
            with pytest.raises(InvalidInput, match="recording"):
                await history.undo(cause={"request_id": "a"})
            with pytest.raises(InvalidInput, match="recording"):
                await history.rollback(to=datetime.now(UTC), memory_ids=["m"])
        assert await history.operations() == []
