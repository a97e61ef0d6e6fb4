"""Rollback and undo requests, and limits."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from async_history._core.operations.operations import StoreOperation, hashed, new_operation
from async_history._core.operations.progress import Progress
from async_history._core.reading.filters import Pairs, check_scopes
from async_history._core.reading.timeline import check_instant
from async_history._core.records.new_records import new_id
from async_history._core.records.recording import new_cause, with_surroundings
from async_history._core.records.values import check_text, in_utc
from async_history._core.undoing.rollback_plan import Walk, WalkToInstant
from async_history._core.undoing.undo_plan import ROLLBACK, UNDO, UNDO_OF, WalkBefore, check_target
from async_history._core.validation import check_flag, check_function
from async_history.errors import InvalidInput


@dataclass(frozen=True, kw_only=True, slots=True)
class RollbackLimits:
    """Limits of a rollback.

    Attributes:
        memories: most memories planned and written at once; they share the writer's commits.
        page_size: most records of them that one read returns.
        tries: most plans for a memory that changes each time before its plan is carried out.
    """

    memories: int = 256
    page_size: int = 1_000
    tries: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackRequest:
    """A checked rollback or undo request.

    Attributes:
        id: the call's own.
        kind: "rollback" or "undo".
        arguments: the call's arguments, for the store's log of operations.
        new_walk: makes the walk that plans for a memory.
        memory_ids: the memories, if they were named.
        questions: otherwise the filters of queries that together find a record of each memory.
        cause: the cause of the appended records.
        on_progress: called with the number of memories done and the total.

    Raises:
        InvalidInput: the cause has too many keys with those that `recording` gives around it.
    """

    id: str
    kind: str
    arguments: Mapping[str, Any]
    new_walk: Callable[[str], Walk]
    memory_ids: Sequence[str] | None
    questions: Sequence[Mapping[str, Any]]
    actor_id: str | None
    role: str | None
    cause: Mapping[str, str]
    dry_run: bool
    on_progress: Progress | None
    limits: RollbackLimits = field(default_factory=RollbackLimits)

    def __post_init__(self) -> None:
        with_surroundings(None, new_cause(self.cause))  # before the operation is logged

    def operation(self) -> StoreOperation:
        """Return the operation for the store's log."""
        return new_operation(
            self.kind, self.arguments, actor_id=self.actor_id, operation_id=self.id
        )


def rollback_request(
    *,
    to: datetime,
    user_id: str | None = None,
    agent_id: str | None = None,
    run_id: str | None = None,
    app_id: str | None = None,
    memory_ids: Iterable[str] | None = None,
    dry_run: bool = False,
    actor_id: str | None = None,
    role: str | None = None,
    on_progress: Progress | None = None,
) -> RollbackRequest:
    """Check the arguments of `HistoryManager.rollback`.

    Raises:
        InvalidInput: naming the argument that can't be used.
    """
    check_instant("to", to)
    owner = check_scopes(user_id=user_id, agent_id=agent_id, run_id=run_id, app_id=app_id)
    name = new_id()
    named = _memories_named(memory_ids, owner)
    return RollbackRequest(
        id=name,
        kind=ROLLBACK,
        arguments={
            "to": in_utc(to).isoformat(),
            **_hashed(owner),
            **({} if named is None else {"memories": len(named)}),
        },
        new_walk=partial(WalkToInstant, to=to),
        memory_ids=named,
        questions=(dict(owner),),
        cause={ROLLBACK: name},
        **_checked(actor_id, role, on_progress, dry_run=dry_run),
    )


def undo_request(
    *,
    run_id: str | None = None,
    cause: Mapping[str, str] | None = None,
    dry_run: bool = False,
    actor_id: str | None = None,
    role: str | None = None,
    on_progress: Progress | None = None,
) -> RollbackRequest:
    """Check the arguments of `HistoryManager.undo`.

    Raises:
        InvalidInput: naming the argument that can't be used.
    """
    target, questions = check_target(run_id, cause)
    name = new_id()
    return RollbackRequest(
        id=name,
        kind=UNDO,
        arguments={**hashed("run_id", run_id), "cause": _hashed(tuple((cause or {}).items()))},
        new_walk=partial(WalkBefore, target=target),
        memory_ids=None,
        questions=questions,
        cause={UNDO: name, UNDO_OF: target.name},
        **_checked(actor_id, role, on_progress, dry_run=dry_run),
    )


def _hashed(named: Pairs) -> dict[str, str]:
    """Return names of owners, or texts of a cause, by key, hashed for the log."""
    digests: dict[str, str] = {}
    for key, value in named:
        digests |= hashed(key, value)
    return digests


def _checked(
    actor_id: str | None, role: str | None, on_progress: Progress | None, *, dry_run: bool
) -> dict[str, Any]:
    """Check the arguments that both have, by name."""
    return {
        "actor_id": None if actor_id is None else check_text("actor_id", actor_id),
        "role": None if role is None else check_text("role", role),
        "dry_run": check_flag("dry_run", dry_run),
        "on_progress": check_function("on_progress", on_progress),
    }


def _memories_named(memory_ids: object, owner: Pairs) -> Sequence[str] | None:
    """Return the named memories; None if an owner was given.

    Raises:
        InvalidInput: not exactly one of them was given, or the memories are not valid.
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
