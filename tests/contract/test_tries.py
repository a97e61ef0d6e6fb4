"""Erasures between the tries of one call: nothing that was erased is written again.

A try may have decided what to write, and may have failed or committed unheard. The next one decides
again, from what is there then.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Final

import pytest

from async_history import (
    Erased,
    HistoryConflict,
    HistoryManager,
    HistoryRecord,
    IdConflict,
    InvalidInput,
    Owner,
    RollbackReport,
)
from async_history._core.writing.commit_function import OutcomeUnknown
from async_history._core.writing.new_submissions import owners_to_give, records_to_copy
from async_history._core.writing.submissions import RestoreMemory
from tests.conftest import OpenStore, new_stores, stores
from tests.support.patience import LONG_S

pytestmark = pytest.mark.once

NewStore = Callable[[], OpenStore]
Call = Callable[[HistoryManager, str], Awaitable[Any]]

TEXT: Final = "said in confidence"
THEN: Final = datetime(2001, 1, 1, tzinfo=UTC)
SOON: Final = THEN + timedelta(hours=1)


@pytest.fixture
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> NewStore:
    return new_stores(request.param, request, tmp_path)


each_store = pytest.mark.parametrize(
    "new_store", stores("file", "postgres", "sqlalchemy", "mariadb"), indirect=True
)


async def fill(history: HistoryManager, memory_id: str) -> None:
    """Record a memory whose first text is the one to erase, and another one that says it still."""
    later = THEN + timedelta(days=1)
    whose: dict[str, Any] = {"actor_id": f"eve {memory_id}", "owner": {"user_id": memory_id}}
    for name in (memory_id, f"{memory_id} still"):
        await history.add_history(name, None, TEXT, "ADD", id=name, created_at=THEN, **whose)
    cause = {"request_id": memory_id}
    await history.add_history(memory_id, TEXT, "b", "UPDATE", updated_at=later, cause=cause)


async def add_after_reading(history: HistoryManager, name: str) -> HistoryRecord:
    latest = (await history.get_history(f"{name} still"))[-1]
    return await history.add_history(f"{name} still", TEXT, "b", "UPDATE", if_latest=latest)


CALLS: Final[Mapping[str, Call]] = {
    "restore to a version": lambda history, name: history.restore(name, to=1),
    "restore to an instant": lambda history, name: history.restore(name, to=SOON),
    "update": lambda history, name: history.update_history(f"{name} still", "b"),
    "add": add_after_reading,
    "rollback": lambda history, name: history.rollback(to=SOON, memory_ids=[name]),
    "rollback to nothing": lambda history, name: history.rollback(
        to=THEN - timedelta(days=1), memory_ids=[f"{name} still"]
    ),
    "undo": lambda history, name: history.undo(cause={"request_id": name}),
}
"""Calls that repeat the text of a memory that `fill` recorded."""
NAMED: Final[Mapping[str, Callable[[str], Mapping[str, Any]]]] = {
    "by id": lambda name: {"record_ids": [name, f"{name} still"]},
    "by memory": lambda name: {"memory_ids": [name, f"{name} still"]},
    "by owner": lambda name: {"user_id": name},
    "by actor": lambda name: {"actor_id": f"eve {name}"},
}


async def erase(history: HistoryManager, how: str, name: str) -> None:
    await history.erase(**NAMED[how](name), reason="asked", vacuum=False)


def about(name: str, call: Call) -> Callable[[HistoryManager], Awaitable[Any]]:
    return lambda history: call(history, name)


async def tried_twice(
    history: HistoryManager,
    call: Callable[[HistoryManager], Awaitable[Any]],
    between: Callable[[], Awaitable[object]],
    first: HistoryManager,
) -> object:
    """Make a call whose first try is not heard of; return its result or error.

    Args:
        between: awaited between the two tries.
        first: commits the first try: this manager, or one of another store with the same records,
            so that the first try has decided and nothing of it is here.
    """
    writer: Any = history.store.writer
    first_writer: Any = first.store.writer
    commit, first_commit = writer._commit, first_writer._commit
    is_tried, is_over = asyncio.Event(), asyncio.Event()

    async def commit_unheard(batch: Any, this: Any) -> Any:
        if this.is_repeated:
            return await commit(batch, this)
        await first_commit(batch, this)
        is_tried.set()
        await is_over.wait()
        raise OutcomeUnknown("not heard of")

    writer._commit = commit_unheard
    async with asyncio.timeout(LONG_S):
        task = asyncio.ensure_future(call(history))
        await is_tried.wait()
        writer._commit = commit
        await between()
        is_over.set()
        outcomes: list[object] = await asyncio.gather(task, return_exceptions=True)
    return outcomes[0]


async def require_gone(history: HistoryManager) -> None:
    """Check that the text is in no record, and that the memories' records are sound."""
    assert [one async for one in history.query_history(text=TEXT)] == []
    assert (await history.check()).problems == ()


@each_store
async def test_an_erasure_between_two_tries(new_store: NewStore) -> None:
    open_store, open_other_store = new_store(), new_store()
    async with open_store() as history, open_store() as eraser, open_other_store() as elsewhere:
        for is_committed, how in product((True, False), NAMED):
            for what, call in CALLS.items():
                name = f"{what}, {how}, {is_committed}"
                for one in (history, elsewhere):
                    await fill(one, name)
                outcome = await tried_twice(
                    history,
                    about(name, call),
                    partial(erase, eraser, how, name),
                    history if is_committed else elsewhere,
                )
                if isinstance(outcome, RollbackReport):
                    assert len(outcome.steps) == 1
                elif is_committed or not isinstance(
                    outcome, Erased | HistoryConflict | InvalidInput
                ):
                    assert isinstance(outcome, HistoryRecord)
            await require_gone(history)
            for one in (history, elsewhere):
                await one.reset()


@each_store
async def test_a_pruning_between_two_tries(new_store: NewStore) -> None:
    """The text of a removed record is not restored."""
    open_store, open_other_store = new_store(), new_store()
    async with open_store() as history, open_store() as pruner, open_other_store() as elsewhere:
        for name in ("restore to a version", "restore to an instant", "rollback"):
            for one in (history, elsewhere):
                await fill(one, name)
            await tried_twice(
                history,
                about(name, CALLS[name]),
                partial(pruner.prune, older_than=SOON),
                elsewhere,
            )
            assert TEXT not in [one.new_memory for one in await history.get_history(name)]


@each_store
async def test_a_restore_whose_record_was_pruned_between_two_tries(new_store: NewStore) -> None:
    """It is written again, with what is then the text, and is once in the log."""
    open_store = new_store()
    async with open_store() as history, open_store() as other:
        for text in "ab":
            await history.update_history("m", text)

        async def prune() -> None:
            for text in "cd":
                await other.update_history("m", text)
            await other.prune(older_than=datetime.now(UTC) + timedelta(hours=1), keep_last=2)

        restored = await tried_twice(
            history, lambda one: one.restore("m", to=1), prune, first=history
        )
        records = await history.get_history("m")
        assert [one.new_memory for one in records] == ["c", "d", "c"]
        assert restored == records[-1]
        logged = [one.id for one in await history.operations() if one.kind == "restore"]
        assert logged == [records[-1].id]


@each_store
async def test_messages_that_are_erased_between_two_tries(new_store: NewStore) -> None:
    open_store, open_other_store = new_store(), new_store()
    async with open_store() as history, open_store() as eraser, open_other_store() as elsewhere:
        for is_committed, is_owned in product((True, False), (True, False)):
            owner = f"ann {is_committed}"
            scope = f"user_id={owner}" if is_owned else f"a scope {is_committed}"
            asked: dict[str, Any] = {"user_id": owner} if is_owned else {"session_scopes": [scope]}
            save = partial(save_message, scope=scope, content=TEXT)
            outcome = await tried_twice(
                history,
                save,
                partial(eraser.erase, **asked, reason="asked", vacuum=False),
                history if is_committed else elsewhere,
            )
            assert isinstance(outcome, Erased)
            assert await history.get_last_messages(scope) == []
            await save_message(history, scope, "later")
            assert [one.content for one in await history.get_last_messages(scope)] == ["later"]


async def save_message(history: HistoryManager, scope: str, content: str) -> None:
    await history.save_messages([{"role": "user", "content": content}], scope)


@each_store
async def test_an_owner_that_is_erased_between_two_tries(new_store: NewStore) -> None:
    open_store, open_other_store = new_store(), new_store()
    async with open_store() as history, open_store() as eraser, open_other_store() as elsewhere:
        for name, first in (("committed", history), ("lost", elsewhere)):
            for one in (history, elsewhere):
                await one.add_history(name, None, TEXT, "ADD")
            gift = owners_to_give({name: Owner(user_id=name)})
            await tried_twice(
                history,
                lambda one, gift=gift: one.store.writer.submit(gift),  # type: ignore[misc]
                partial(eraser.erase, user_id=name, reason="asked", vacuum=False),
                first,
            )
            assert gift.given == frozenset()
            assert await history.count_history(user_id=name) == 0


@each_store
async def test_records_that_are_copied(new_store: NewStore) -> None:
    """An erased record is not written again: the copy is refused, or finds the erased one."""
    open_store = new_store()
    async with open_store() as history, open_store() as eraser:
        for how in NAMED:
            actor, owner = f"eve {how}", Owner(user_id=how)
            time = THEN.isoformat()
            record = HistoryRecord(how, how, None, TEXT, "ADD", time, actor_id=actor, owner=owner)
            copied = records_to_copy([record], 100)
            outcome = await tried_twice(
                history,
                lambda one, copied=copied: one.store.writer.submit(copied),  # type: ignore[misc]
                partial(erase, eraser, how, how),
                history,
            )
            assert isinstance(outcome, IdConflict | Erased)
            await require_gone(history)
        assert await history.count_history() == len(NAMED)


@each_store
async def test_a_restore_of_a_memory_that_must_be_read_whole(new_store: NewStore) -> None:
    """It reads the memory between two transactions. An erasure may come in between."""
    open_store = new_store()
    async with open_store() as history, open_store() as eraser:
        writer: Any = history.store.writer
        submit = writer.submit
        for how in (None, *NAMED):
            name, actor = str(how), f"eve {how}"
            owner = Owner(user_id=name)
            undated = HistoryRecord(name, name, None, TEXT, "ADD", actor_id=actor, owner=owner)
            await submit(records_to_copy([undated], 100))
            await history.update_history(name, "b")
            if how is None:
                assert (await history.restore(name, to=SOON)).new_memory == TEXT
                await erase(eraser, "by id", name)
                continue
            restored = 0

            async def submit_after_an_erasure(submission: Any, how: str = how) -> None:
                nonlocal restored
                restored += isinstance(submission, RestoreMemory)
                if restored == 2:
                    await erase(eraser, how, how)
                await submit(submission)

            writer.submit = submit_after_an_erasure
            with pytest.raises((Erased, InvalidInput)):
                await history.restore(name, to=SOON)
            writer.submit = submit
            assert restored >= 2
            await require_gone(history)


@each_store
@pytest.mark.parametrize("name", ["rollback", "rollback to nothing", "undo"])
async def test_an_erasure_after_the_plan(
    new_store: NewStore, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store = new_store()
    async with open_store() as history, open_store() as eraser:
        for how in NAMED:
            await fill(history, how)
            add = history.batch_add_history
            planned = 0

            async def add_after_an_erasure(
                *records: Any, how: str = how, add: Any = add, **more: Any
            ) -> Any:
                nonlocal planned
                planned += 1
                if planned == 1:
                    await erase(eraser, how, how)
                return await add(*records, **more)

            with monkeypatch.context() as patched:
                patched.setattr(history, "batch_add_history", add_after_an_erasure)
                report = await CALLS[name](history, how)
            assert planned >= 1
            assert len(report.steps) == 1
            await require_gone(history)
