"""`rollback` and `undo` of mem0's memories: the vector store follows the history.

The memories are planned in parts, and the embeddings of a part are computed together. Then each
memory is taken back by a separate operation, in its turn: it is planned again from its records, its
payload is read, the history is written, and the vector store follows. So a call can be interrupted
between two memories, and a failing memory does not stop the others. The vector store is compared
with the history even if the history needs no change, so a call that was interrupted between the two
can continue.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from async_history._core.concurrency.threads import run_to_completion
from async_history._core.operations.operation_log import Tally, logged
from async_history._core.reading.restoration import Restoration
from async_history._core.records.recording import operation
from async_history._core.records.records import HistoryRecord, is_alive
from async_history._core.records.rows import fields_of
from async_history._core.undoing.rollback import (
    RollbackParts,
    RollbackReport,
    RollbackStep,
    all_settled,
    memories_to_take_back,
    plan_part,
    step_of,
)
from async_history._core.undoing.rollback_plan import MemoryPlan, RollbackAction, plan_of
from async_history._core.undoing.rollback_request import RollbackRequest
from async_history.errors import (
    Erased,
    HistoryConflict,
    HistoryError,
    OwnerConflict,
    StorageRefused,
)
from async_history.mem0._errors import RollbackIncomplete
from async_history.mem0._late_changes import kept
from async_history.mem0._operation import Operation
from async_history.mem0._operation_log import Ask, AskedLog
from async_history.mem0._steps import LoopSteps, Steps
from async_history.mem0._threads.workers import in_thread
from async_history.mem0._undoing.restore import change_vectors, note_history_ahead
from async_history.mem0._vectors.embeddings import Embeddings
from async_history.mem0._vectors.unrecorded import details_in, unrecorded_text
from async_history.mem0._vectors.vector_changes import (
    Fields,
    VectorDeletion,
    VectorRestore,
    payload_held,
)

T = TypeVar("T")

_AT_ONCE: Final = 16
"""Memories that an `AsyncMemory` takes back concurrently: some wait for the vector store, in
threads, while others wait for a commit.
"""
_REMEDY: Final = "call it again to update it, which adds no second record"


class InTurn(Protocol):
    """Runs an operation on a memory, in its turn, when all earlier records are readable."""

    async def __call__(self, memory_id: str, body: Callable[[Operation], Awaitable[T]], /) -> T: ...


async def take_back(
    memory: Any, asked: RollbackRequest, ask: Ask, in_turn: InTurn
) -> RollbackReport:
    """Take memories of an `AsyncMemory` back, several at the same time."""
    at_once = asyncio.Semaphore(_AT_ONCE)

    async def take_one(one: _MemoryTakenBack, taken: _TakenBack) -> None:
        async with at_once:
            with one.errors(taken):
                await in_turn(one.memory_id, lambda running: one.run(LoopSteps(running)))

    async def take_part(part: Sequence[_MemoryTakenBack], taken: _TakenBack) -> None:
        await all_settled(take_one(one, taken) for one in part)

    return await _take_back(memory, asked, ask, in_thread, take_part)


def take_back_blocking(
    steps: Steps, asked: RollbackRequest, in_turn: Callable[[str, Callable[[], None]], None]
) -> RollbackReport:
    """Take memories of a `Memory` back, one after the other."""

    async def take_part(part: Sequence[_MemoryTakenBack], taken: _TakenBack) -> None:
        for one in part:
            with one.errors(taken):
                in_turn(one.memory_id, lambda one=one: run_to_completion(one.run(steps)))  # type: ignore[misc]

    return run_to_completion(_take_back(steps.memory, asked, steps.ask, steps.call, take_part))


async def _take_back(
    memory: Any,
    asked: RollbackRequest,
    ask: Ask,
    compute: Callable[..., Awaitable[Any]],
    take_part: "Callable[[Sequence[_MemoryTakenBack], _TakenBack], Awaitable[None]]",
) -> RollbackReport:
    """Plan part by part, and take each part back.

    Args:
        compute: calls a function that blocks.
        take_part: takes the memories of a part back, each in its turn.
    """
    log = nullcontext(Tally()) if asked.dry_run else logged(AskedLog(ask), asked.operation())
    async with log as tally:
        with operation():
            taken = _TakenBack(asked, await ask(partial(memories_to_take_back, asked=asked)))
        while part := taken.next_part():
            with operation():
                plans = await ask(partial(plan_part, asked=asked, memory_ids=part))
            embeddings = Embeddings(memory.embedding_model)
            await compute(embeddings.prepare, _texts_wanted(asked, plans))
            all_of_part = [_MemoryTakenBack(memory, asked, embeddings, name) for name in part]
            try:
                await take_part(all_of_part, taken)
            finally:
                tally.records += sum(one.records_written for one in all_of_part)
            taken.take([one.step() for one in all_of_part])
        return taken.report()


def _texts_wanted(asked: RollbackRequest, plans: Iterable[MemoryPlan]) -> list[str]:
    """Return the texts whose embeddings will be needed."""
    if asked.dry_run:
        return []
    wanted = (plan.wanted for plan in plans if plan.action is RollbackAction.RESTORE)
    return [one.new_memory for one in wanted if one is not None and one.new_memory is not None]


class _TakenBack:
    """The steps of one call, and the memories for which the vector store failed."""

    def __init__(self, asked: RollbackRequest, memory_ids: Sequence[str]) -> None:
        self._parts = RollbackParts(asked, memory_ids)
        self._failed: dict[str, Exception] = {}
        self._failed_before = 0
        self._answers = True

    def note_failure(self, memory_id: str, error: Exception) -> None:
        """Note the error of the vector store or the model for a memory."""
        self._failed[memory_id] = error

    def next_part(self) -> Sequence[str]:
        """Return the memories to plan now; empty at the end."""
        return self._parts.next_part() if self._answers else ()

    def take(self, steps: Sequence[RollbackStep | None]) -> None:
        """Add the steps; stop if the vector store failed for all memories of a part."""
        self._parts.take(steps)
        self._answers = len(self._failed) == self._failed_before or any(
            step is None or step.action is not RollbackAction.CONFLICT for step in steps
        )
        self._failed_before = len(self._failed)

    def report(self) -> RollbackReport:
        """Return the report.

        Raises:
            RollbackIncomplete: the vector store failed for some memories.
        """
        report = self._parts.report()
        if self._failed:
            raise RollbackIncomplete(report, self._failed) from next(iter(self._failed.values()))
        return report


class _MemoryTakenBack:
    """One memory, from its records to the vector store.

    Args:
        memory: the `AsyncMemory` or `Memory`.
        asked: the rollback.
        embeddings: of the texts that are probably needed.
        memory_id: its id.
    """

    def __init__(
        self, memory: Any, asked: RollbackRequest, embeddings: Embeddings, memory_id: str
    ) -> None:
        self._memory, self._asked, self._embeddings = memory, asked, embeddings
        self.memory_id = memory_id
        self._plan = MemoryPlan(memory_id=memory_id, action=RollbackAction.NOTHING)
        self._change: VectorRestore | VectorDeletion | None = None
        self._found: HistoryRecord | None = None
        self._written: HistoryRecord | None = None
        self._reason: str | None = None
        self._is_to_be_repeated = False
        self.records_written = 0

    # In the memory's turn

    async def run(self, steps: Steps) -> None:
        """Take the memory back."""
        history = await steps.ask(lambda manager: manager.get_history(self.memory_id))
        await steps.call(self._prepare, history)
        if self._change is None or self._asked.dry_run:
            return
        steps.begin_change()
        if records := self._records():
            with self._plan.repeating():
                *_, self._written = await steps.ask(
                    lambda manager: manager.batch_add_history(records, if_latest=history[-1])
                )
            self.records_written = len(records)
        record = self._written or history[-1]
        async with kept(steps, record):
            with note_history_ahead(_REMEDY):
                await change_vectors(steps, self._change, record)

    def _prepare(self, history: Sequence[HistoryRecord]) -> None:
        """Plan, and do all steps that can fail before a change. It blocks."""
        self._plan = plan = self._planned(history)
        if plan.action is RollbackAction.CONFLICT:
            return
        held = payload_held(self._memory, self.memory_id)
        found = unrecorded_text(history, held)
        if found is not None:
            self._plan = plan = self._planned_with(plan, history, found)
        if plan.action is RollbackAction.CONFLICT:
            return
        change = self._change_of(plan, held, history)
        if plan.action is RollbackAction.NOTHING and (
            change is None or not change.is_needed or found is not None
        ):
            return
        if isinstance(change, VectorRestore) and not self._asked.dry_run:
            change = change.with_embedding(self._embeddings.of)
        self._change, self._found = change, found

    def _planned(self, history: Sequence[HistoryRecord]) -> MemoryPlan:
        return plan_of(self._asked.new_walk(self.memory_id), history)

    def _planned_with(
        self, plan: MemoryPlan, history: Sequence[HistoryRecord], found: HistoryRecord
    ) -> MemoryPlan:
        """Plan as if the unknown text had been recorded. An undo keeps changes of others."""
        as_if_recorded = self._planned([*history, found])
        if as_if_recorded.action is not RollbackAction.CONFLICT:
            return as_if_recorded
        if plan.action is RollbackAction.NOTHING:
            return plan
        reason = "the vector store has another text of it, which others wrote without a record"
        return replace(as_if_recorded, reason=reason)

    def _change_of(
        self, plan: MemoryPlan, held: Fields | None, history: Sequence[HistoryRecord]
    ) -> VectorRestore | VectorDeletion | None:
        """Return the change of the vector store; None if the text is not known."""
        latest = plan.latest or history[-1]
        wanted = plan.wanted if plan.action is RollbackAction.RESTORE else latest
        if wanted is None:
            return None
        if plan.action is RollbackAction.DELETE or not is_alive(wanted):
            return VectorDeletion(self.memory_id, held)
        if wanted.new_memory is None:
            return None
        return VectorRestore.of(Restoration(latest, wanted), history, held, {})

    # The history

    def _records(self) -> list[dict[str, Any]]:
        """Return the fields of the records to append, if any."""
        asked, plan, change = self._asked, self._plan, self._change
        if plan.action is RollbackAction.NOTHING:
            return []
        before = [] if self._found is None else [fields_of(self._found)]
        if isinstance(change, VectorRestore):
            restored = change.plan.record(asked.actor_id, asked.role)
            return [*before, {**restored, "cause": asked.cause}]
        deleted = plan.record(asked.actor_id, asked.role, asked.cause) or {}
        known, held = deleted.get("old_memory"), None if change is None else change.held
        if known is not None and held is not None:  # not after an erasure, which removed them too
            deleted |= details_in(self.memory_id, held, plan.latest)
        return [*before, deleted]

    # Outcome

    @contextmanager
    def errors(self, taken: _TakenBack) -> Iterator[None]:
        """Catch errors that affect only this memory."""
        try:
            yield
        except HistoryConflict:
            self._is_to_be_repeated = True
        except (Erased, OwnerConflict, StorageRefused) as error:
            self._reason = str(error)
        except HistoryError:
            raise
        except Exception as error:  # of the vector store or the model: raised at the end
            taken.note_failure(self.memory_id, error)
            self._reason = (
                f"it was not changed: {error!r}"
                if self._written is None
                else f"its history was written, and the vector store did not follow: {error!r}"
            )

    def step(self) -> RollbackStep | None:
        """Return the step; None if the memory must be planned again."""
        if self._is_to_be_repeated:
            return None
        written = None if self._written is None else self._written.id
        if self._reason is not None:
            return step_of(
                self._plan,
                action=RollbackAction.CONFLICT,
                reason=self._reason,
                record_id=written,
            )
        action = self._plan.action
        if action is RollbackAction.NOTHING and self._change is not None:
            follows = self._change.text is None
            action = RollbackAction.DELETE if follows else RollbackAction.RESTORE
        return step_of(self._plan, action=action, record_id=written)
