"""Taking many memories back at once: `rollback` to an instant, `undo` of a run's changes.

Both use only methods of every history manager. Memories are planned in groups. Each is written only
if no record came after the one it was planned from; otherwise it is planned again. Records have the
call's id in their cause. After an interruption the same call continues: a memory in the wanted
state needs nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from async_history._core.reading.query import HistoryQuery, memories_of
from async_history._core.records.records import HistoryRecord
from async_history._core.undoing.rollback_plan import MemoryPlan, RollbackAction, plan_memories
from async_history._core.undoing.rollback_request import RollbackRequest
from async_history._core.wording import counted
from async_history.errors import Erased, HistoryConflict, OwnerConflict, StorageRefused

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackStep:
    """The step of a rollback or an undo for one memory, or of a dry run."""

    memory_id: str
    """The memory's id."""
    action: RollbackAction
    """The action."""
    reason: str | None = None
    """For a conflict: why the memory is not changed."""
    record_id: str | None = field(default=None, compare=False)
    """The `id` of the appended record; None in a dry run, or if there was nothing to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackReport:
    """The report of a rollback or an undo, or of a dry run."""

    id: str
    """The id in the cause of its records, under the key `rollback` or `undo`.

    `undo(cause={"rollback": report.id})` undoes a rollback.
    """
    done: bool
    """False for a dry run: nothing was written."""
    steps: tuple[RollbackStep, ...] = ()
    """One step per memory, in the order given, or the latest changes first."""

    @property
    def restored(self) -> int:
        """The number of memories that got an earlier text or context back."""
        return self._count(RollbackAction.RESTORE)

    @property
    def deleted(self) -> int:
        """The number of memories deleted because they did not exist then."""
        return self._count(RollbackAction.DELETE)

    @property
    def unchanged(self) -> int:
        """The number of memories already in the wanted state."""
        return self._count(RollbackAction.NOTHING)

    @property
    def conflicts(self) -> tuple[RollbackStep, ...]:
        """The memories that could not be taken back, each with its reason."""
        return tuple(step for step in self.steps if step.action is RollbackAction.CONFLICT)

    def outcome(self) -> str:
        """Return the outcome as one sentence for people."""
        would = "" if self.done else "would have "
        return (
            f"{would}restored {counted(self.restored, 'memory', 'memories')}, deleted "
            f"{self.deleted:,}, left {self.unchanged:,} as they are; {len(self.conflicts):,} in "
            "conflict"
        )

    def _count(self, action: RollbackAction) -> int:
        return sum(step.action is action for step in self.steps)


class RollbackHistory(Protocol):
    """The methods of a history manager that taking back needs."""

    @property
    def query_history(self) -> Callable[..., HistoryQuery]:
        """Query records."""

    async def batch_add_history(
        self, records: Sequence[dict[str, Any]], *, if_latest: HistoryRecord | None
    ) -> list[HistoryRecord]:
        """Append records if nothing came after `if_latest`."""


async def memories_to_take_back(history: RollbackHistory, asked: RollbackRequest) -> Sequence[str]:
    """Return the memories to take back."""
    if asked.memory_ids is not None:
        return asked.memory_ids
    return await memories_of(
        history.query_history(**one, order="newest") for one in asked.questions
    )


async def plan_part(
    history: RollbackHistory, asked: RollbackRequest, memory_ids: Sequence[str]
) -> list[MemoryPlan]:
    """Plan for some memories, in their order."""
    return await plan_memories(history, memory_ids, asked.new_walk, asked.limits.page_size)


class RollbackParts:
    """The memories of a rollback in parts: what to plan next, and what was done.

    Args:
        asked: the rollback.
        memory_ids: the memories to take back.
    """

    def __init__(self, asked: RollbackRequest, memory_ids: Sequence[str]) -> None:
        self._asked = asked
        self._memory_ids = memory_ids
        self._part: Sequence[str] = ()
        self._left: Sequence[str] = ()
        self._done: dict[str, RollbackStep] = {}
        self._tries = 0
        self._steps: list[RollbackStep] = []

    def next_part(self) -> Sequence[str]:
        """Return the memories to plan now: those that have changed since, or else the next ones.

        It is empty when all are done.
        """
        if not self._left:
            start = len(self._steps)
            self._part = self._left = self._memory_ids[start : start + self._asked.limits.memories]
            self._done, self._tries = {}, 0
        return self._left

    def take(self, steps: Iterable[RollbackStep | None]) -> None:
        """Add the steps of the part's memories; None for a memory to plan again."""
        self._done |= {step.memory_id: step for step in steps if step is not None}
        self._left = [memory_id for memory_id in self._left if memory_id not in self._done]
        self._tries += 1
        if self._left and self._tries < self._asked.limits.tries:
            return
        for memory_id in self._left:
            self._done[memory_id] = RollbackStep(
                memory_id=memory_id,
                action=RollbackAction.CONFLICT,
                reason=f"others changed it each of {self._tries} times before it was written",
            )
        self._left = ()
        self._steps += [self._done[memory_id] for memory_id in self._part]
        if self._asked.on_progress is not None:
            self._asked.on_progress(len(self._steps), len(self._memory_ids))

    def report(self) -> RollbackReport:
        """Return the steps so far."""
        return RollbackReport(
            id=self._asked.id, done=not self._asked.dry_run, steps=tuple(self._steps)
        )


async def take_back(history: RollbackHistory, asked: RollbackRequest) -> RollbackReport:
    """Plan for memories, part by part, and carry out the plans unless it is a dry run.

    An interruption does not undo completed steps. Call it again to continue.
    """
    parts = RollbackParts(asked, await memories_to_take_back(history, asked))
    while part := parts.next_part():
        plans = await plan_part(history, asked, part)
        if asked.dry_run:
            parts.take([step_of(plan) for plan in plans])
        else:
            parts.take(await all_settled(_carry_out(history, asked, plan) for plan in plans))
    return parts.report()


async def _carry_out(
    history: RollbackHistory, asked: RollbackRequest, plan: MemoryPlan
) -> RollbackStep | None:
    """Append the record of a plan; return None if the memory has changed since."""
    fields = plan.record(asked.actor_id, asked.role, asked.cause)
    if fields is None:
        return step_of(plan)
    try:
        with plan.repeating():
            (record,) = await history.batch_add_history([fields], if_latest=plan.latest)
    except HistoryConflict:
        return None
    except (Erased, OwnerConflict, StorageRefused) as error:  # of this memory only
        return step_of(plan, action=RollbackAction.CONFLICT, reason=str(error))
    return step_of(plan, record_id=record.id)


def step_of(plan: MemoryPlan, **more: Any) -> RollbackStep:
    """Return the step of a plan, with the values of `more` instead where given."""
    return RollbackStep(
        **{"memory_id": plan.memory_id, "action": plan.action, "reason": plan.reason, **more}
    )


def records_written(report: RollbackReport) -> int:
    """Return the number of appended records."""
    return sum(step.record_id is not None for step in report.steps)


async def all_settled(calls: Iterable[Awaitable[T]]) -> list[T]:
    """Wait for all; then raise the first error, if any."""
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
