"""A program that rolls an owner's memories back, and checks of its file wherever it ended.

Each memory is added and changed, and one in three is deleted. All changes after the ADD are rolled
back. One memory was added later, and is deleted.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from async_history import HistoryManager, HistoryRecord
from async_history._core.undoing.rollback_request import RollbackLimits
from async_history.testing.changes import at, state_after
from tests.subprocesses.checks import check_index, check_levels, check_sound, looking
from tests.subprocesses.opened import opened
from tests.support.limits import limited

_ANN: Final[dict[str, Any]] = {"user_id": "ann"}
_NAMES: Final = tuple(f"m{number}" for number in range(12))
_LATER: Final = "later"


def _opened(path: Path) -> HistoryManager:
    return limited(opened(path), rollback=RollbackLimits(memories=3))


def _records() -> list[dict[str, Any]]:
    """The records before the rollback."""
    added = [
        {"memory_id": name, "event": "ADD", "new_memory": "a", "created_at": at(1), "context": {}}
        for name in _NAMES
    ]
    changed = [
        {"memory_id": name, "event": "UPDATE", "new_memory": "b", "updated_at": at(3)}
        for name in _NAMES
    ]
    deleted = [
        {"memory_id": name, "event": "DELETE", "old_memory": "b", "updated_at": at(4)}
        for name in _NAMES[::3]
    ]
    later = {"memory_id": _LATER, "event": "ADD", "new_memory": "c", "created_at": at(3)}
    return [{**one, "owner": _ANN} for one in (*added, *changed, *deleted, later)]


_BEFORE: Final = {
    name: len([one for one in _records() if one["memory_id"] == name]) for name in (*_NAMES, _LATER)
}


async def take_back(path: Path, report: Callable[[str], None], *, arm: Callable[[], None]) -> None:
    """Fill a file; then roll back and close, being killed at some call."""
    async with _opened(path) as history:
        await history.batch_add_history(_records())
        arm()
        report("taking back")
        await history.rollback(to=at(2), **_ANN)
        report("closing")
    report("closed")


async def take_back_again(path: Path) -> None:
    """Read all of a file as a kill left it, and call the rollback again."""
    async with _opened(path) as history:
        left = await _memories(history)
        for name, records in left.items():
            assert len(records) - _BEFORE[name] in (0, 1), "all or none"
            assert len(records) == _BEFORE[name] or _is_back(name, records)
        report = await history.rollback(to=at(2), **_ANN)
        for name, records in (await _memories(history)).items():
            assert records[: len(left[name])] == left[name]
            assert len(records) == _BEFORE[name] + 1, "rolled back once"
            assert _is_back(name, records)
        done = [name for name, records in left.items() if len(records) > _BEFORE[name]]
        assert {step.memory_id for step in report.steps if step.action == "nothing"} == {*done}
        assert (await history.check()).problems == ()


async def _memories(history: HistoryManager) -> dict[str, list[HistoryRecord]]:
    return {name: await history.get_history(name) for name in _BEFORE}


def _is_back(name: str, records: Sequence[HistoryRecord]) -> bool:
    assert records[-1].cause is not None
    assert records[-1].cause.keys() == {"rollback"}
    return state_after(records) == (None if name == _LATER else ("a", {}))


def check_taken_back(path: Path) -> None:
    """Check that the file is sound."""
    with looking(path, "rw") as connection:
        check_sound(connection)
        check_index(connection)
        check_levels(connection)
