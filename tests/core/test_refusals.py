"""Every argument of every call refuses what it can't use with `InvalidInput`, whatever that is."""

import inspect
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from async_history import HistoryManager, InvalidInput, open_history
from async_history._core.validation import shown


class Shapeless:
    """A value whose `repr` raises."""

    def __repr__(self) -> str:
        raise RuntimeError("it has none")


async def never_awaited(*_: object) -> None:
    """A function that a call does not await."""


class NotATime(datetime):
    """Like pandas' NaT, which is a datetime."""

    def isoformat(self, sep: str = "T", timespec: str = "auto") -> str:
        return "NaT"

    def utcoffset(self) -> timedelta | None:
        raise ValueError("NaTType does not support utcoffset")


VALUES: Final[list[Any]] = [
    10**5_000,  # has no repr: it has more digits than Python converts
    -(10**5_000),
    [10**5_000],
    Shapeless(),
    {5: Shapeless()},
    NotATime(2026, 1, 1),
    never_awaited,
]
NEEDED: Final[dict[str, Any]] = {
    "connection": None,
    "end": 1,
    "event": "ADD",
    "memory_id": "m",
    "messages": [],
    "new_memory": "x",
    "old_memory": None,
    "older_than": timedelta(days=1),
    "path": "backup.db",
    "reason": "asked",
    "records": [],
    "session_scope": "s",
    "start": 1,
    "to": datetime(2026, 1, 1, tzinfo=UTC),
    "when": datetime(2026, 1, 1, tzinfo=UTC),
}
"""Valid values of arguments without a default."""
NAMED: Final[dict[str, dict[str, Any]]] = {
    "rollback": {"memory_ids": ["m"]},
    "undo": {"run_id": "r"},
}


def calls(history: HistoryManager) -> Iterator[tuple[str, Any, list[str]]]:
    """Yield the calls that have arguments: the name, the method, the arguments' names."""
    for name, method in inspect.getmembers(HistoryManager, inspect.isfunction):
        arguments = list(inspect.signature(method).parameters)[1:]
        if arguments and not name.startswith("_"):
            yield name, getattr(history, name), arguments


async def called(call: Any, **given: Any) -> None:
    returned = call(**given)
    if inspect.isawaitable(returned):
        await returned


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
async def test_every_argument_refuses_what_it_cannot_use(value: Any) -> None:
    async with open_history("memory://") as history:
        await history.add_history("m", None, "x", "ADD")
        count = 0
        for name, call, arguments in calls(history):
            parameters = inspect.signature(call).parameters
            needed = [one for one in arguments if parameters[one].default is inspect._empty]
            for argument in arguments:
                given = {one: NEEDED[one] for one in needed} | NAMED.get(name, {})
                with pytest.raises(InvalidInput):
                    await called(call, **given | {argument: value})
                count += 1
        assert count > 100
        assert len(await history.get_history("m")) == 1
    assert len(shown(value)) <= 80
