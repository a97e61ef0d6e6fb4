"""Taking many memories back at once: `rollback` to an instant, `undo` of what a run did.

Both are made of what every history manager has. Memories are planned some at a time and written at
once, each under the condition that nothing came after the record it was planned from. Where
something did, it is planned again. Records say in their cause which call made them. Interrupted,
the same call goes on: a memory that is as it shall be needs nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from async_history._core.progress import Progress
from async_history._core.query import HistoryQuery, Order, Pairs
from async_history._core.records import HistoryRecord, new_id
from async_history._core.rollback_plan import (
    ROLLBACK,
    UNDO,
    UNDO_OF,
    Doer,
    MemoryPlan,
    RollbackAction,
    Walk,
    plan_memories,
)
from async_history._core.validation import check_flag
from async_history._core.values import check_text
from async_history._core.wording import counted
from async_history.errors import HistoryConflict, InvalidInput, StorageRefused


@dataclass(frozen=True, kw_only=True, slots=True)
class RollbackLimits:
    """How much a rollback does at once.

    Attributes:
        memories: planned and written at once: they share the writer's commits.
        page_size: records of them that one read returns.
        tries: plans of a memory that changes each time before its plan is carried out.
    """

    memories: int = 256
    page_size: int = 1_000
    tries: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackStep:
    """What a rollback or an undo did to one memory, or in a dry run would do."""

    memory_id: str
    """Which memory."""
    action: RollbackAction
    """What happened to it."""
    reason: str | None = None
    """Of a conflict: why the memory stays as it is."""
    record_id: str | None = field(default=None, compare=False)
    """The `id` of the record that was appended; None in a dry run, or if there was nothing to do"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackReport:
    """What a rollback or an undo did, or in a dry run would do."""

    id: str
    """What its records have in their cause, under the key `rollback` or `undo`.

    `undo(cause={"rollback": report.id})` takes a rollback back.
    """
    done: bool
    """False of a dry run: nothing was written."""
    steps: tuple[RollbackStep, ...] = ()
    """One for each memory, those with the latest changes first, or in the order given."""

    @property
    def restored(self) -> int:
        """How many memories got an earlier text or context again."""
        return self._count(RollbackAction.RESTORE)

    @property
    def deleted(self) -> int:
        """How many memories were deleted, since they did not exist then."""
        return self._count(RollbackAction.DELETE)

    @property
    def unchanged(self) -> int:
        """How many memories were as they should be."""
        return self._count(RollbackAction.NOTHING)

    @property
    def conflicts(self) -> tuple[RollbackStep, ...]:
        """The memories that stay as they are though they should not, each with its reason."""
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


@dataclass(frozen=True, slots=True)
class RollbackRequest:
    """What a rollback or an undo is to do.

    Attributes:
        id: the call's own.
        new_walk: makes what a memory's records are shown to, to plan for it.
        cause: what the records get.
    """

    id: str
    new_walk: Callable[[str], Walk]
    actor_id: str | None
    role: str | None
    cause: Mapping[str, str]
    dry_run: bool
    limits: RollbackLimits


def new_rollback(
    new_walk: Callable[[str], Walk],
    doer: Doer | None,
    actor_id: str | None,
    role: str | None,
    *,
    dry_run: bool,
    limits: RollbackLimits,
) -> RollbackRequest:
    """Check who takes back, and name the call. `doer` is whose records an undo takes back.

    Raises:
        InvalidInput: naming the argument that can't be used.
    """
    name = new_id()
    cause = {ROLLBACK: name} if doer is None else {UNDO: name, UNDO_OF: doer.name}
    return RollbackRequest(
        name,
        new_walk,
        None if actor_id is None else check_text("actor_id", actor_id),
        None if role is None else check_text("role", role),
        cause,
        check_flag("dry_run", dry_run),
        limits,
    )


def memories_asked(memory_ids: object, owner: Pairs) -> Sequence[str] | None:
    """Return the memories that were named; None where an owner was.

    Raises:
        InvalidInput: not exactly one of them was given, or the memories can't be used.
    """
    if memory_ids is None:
        if owner:
            return None
        raise InvalidInput("name whose memories: user_id, agent_id, run_id, app_id or memory_ids")
    if owner:
        raise InvalidInput("name memory_ids or an owner, not both")
    if isinstance(memory_ids, str) or not isinstance(memory_ids, Iterable):
        raise InvalidInput(f"memory_ids must be several texts, not one {type(memory_ids).__name__}")
    return tuple(dict.fromkeys(check_text("each of memory_ids", one) for one in memory_ids))


class RollbackHistory(Protocol):
    """What taking back needs of a history manager."""

    def query_history(
        self, *, memory_id: Sequence[str], order: Order, page_size: int
    ) -> HistoryQuery:
        """Ask for the records of memories."""

    async def batch_add_history(
        self, records: Sequence[dict[str, Any]], *, if_latest: HistoryRecord | None
    ) -> list[HistoryRecord]:
        """Append records if nothing came after `if_latest`."""


async def memories_of(queries: Iterable[HistoryQuery]) -> list[str]:
    """Return the memories of records, each once. Their ids alone are kept."""
    found: dict[str, None] = {}
    for query in queries:
        async for page in query.pages():
            found.update((record.memory_id, None) for record in page.records)
    return list(found)


async def take_back(
    history: RollbackHistory,
    asked: RollbackRequest,
    memory_ids: Sequence[str],
    on_progress: Progress | None,
) -> RollbackReport:
    """Plan for memories, some at a time, and carry the plans out unless it is a dry run.

    What was done stays done where it is interrupted. Call it again to go on.
    """
    steps: list[RollbackStep] = []
    at_once = asked.limits.memories
    for start in range(0, len(memory_ids), at_once):
        steps += await _some(history, asked, memory_ids[start : start + at_once])
        if on_progress is not None:
            on_progress(len(steps), len(memory_ids))
    return RollbackReport(id=asked.id, done=not asked.dry_run, steps=tuple(steps))


async def _some(
    history: RollbackHistory, asked: RollbackRequest, memory_ids: Sequence[str]
) -> list[RollbackStep]:
    """Take some memories back; return a step for each, in their order."""
    done: dict[str, RollbackStep] = {}
    left = memory_ids
    for _ in range(asked.limits.tries):
        plans = await plan_memories(history, left, asked.new_walk, asked.limits.page_size)
        if asked.dry_run:
            return [_step(plan) for plan in plans]
        outcomes = await _all_settled(_carry_out(history, asked, plan) for plan in plans)
        done |= {step.memory_id: step for step in outcomes if step is not None}
        left = [memory_id for memory_id in left if memory_id not in done]
        if not left:
            break
    for memory_id in left:
        done[memory_id] = RollbackStep(
            memory_id=memory_id,
            action=RollbackAction.CONFLICT,
            reason=f"others changed it each of {asked.limits.tries} times before it was written",
        )
    return [done[memory_id] for memory_id in memory_ids]


async def _carry_out(
    history: RollbackHistory, asked: RollbackRequest, plan: MemoryPlan
) -> RollbackStep | None:
    """Append the record of a plan; return None where the memory changed since it was planned."""
    fields = plan.record(asked.actor_id, asked.role, asked.cause)
    if fields is None:
        return _step(plan)
    try:
        (record,) = await history.batch_add_history([fields], if_latest=plan.latest)
    except HistoryConflict:
        return None
    except StorageRefused as error:  # by a rule of the database's owner, for this memory
        return _step(plan, action=RollbackAction.CONFLICT, reason=str(error))
    return _step(plan, record_id=record.id)


def _step(plan: MemoryPlan, **more: Any) -> RollbackStep:
    return RollbackStep(
        **{"memory_id": plan.memory_id, "action": plan.action, "reason": plan.reason, **more}
    )


async def _all_settled(
    calls: Iterable[Awaitable[RollbackStep | None]],
) -> list[RollbackStep | None]:
    """Wait for all; then raise the first error, if there is one."""
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
