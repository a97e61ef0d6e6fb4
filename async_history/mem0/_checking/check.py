"""The check of mem0's vector store against the history, and repairs of one from the other.

All memories are compared while other operations run. A memory with a difference is compared again
in its turn: the difference may have been a running operation.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, get_args

from async_history._core.concurrency.threads import run_to_completion
from async_history._core.reading.filters import check_scopes
from async_history._core.records.new_records import new_id
from async_history._core.validation import check_choice, check_flag
from async_history.mem0._checking.comparison import (
    Comparison,
    faults_for,
    histories_of,
    look_into_history,
)
from async_history.mem0._checking.differences import MemoryCheck, Repair
from async_history.mem0._checking.learning import parts
from async_history.mem0._checking.repair import CheckRequest, SuspectMemory
from async_history.mem0._operation_log import Ask
from async_history.mem0._steps import LoopSteps, ThreadSteps
from async_history.mem0._threads.workers import in_thread
from async_history.mem0._undoing.rollback import InTurn
from async_history.mem0._vectors.local_stores import in_store_thread
from async_history.mem0._vectors.vector_listing import list_memories

_AT_ONCE: Final = 16
"""Most memories that are checked closely at the same time."""
_PAUSE_S: Final = 0.1
_PAUSES: Final = 50
"""How often the history of a new memory is read before it counts as missing."""


def check_request(
    *,
    user_id: str | None = None,
    agent_id: str | None = None,
    run_id: str | None = None,
    app_id: str | None = None,
    repair: Repair | None = None,
    dry_run: bool = True,
) -> CheckRequest:
    """Check the arguments of a check.

    Raises:
        InvalidInput: naming the argument that can't be used.
    """
    owner = check_scopes(user_id=user_id, agent_id=agent_id, run_id=run_id, app_id=app_id)
    if repair is not None:
        check_choice("repair", repair, get_args(Repair))
    check_flag("dry_run", dry_run)
    return CheckRequest(new_id(), dict(owner), repair, dry_run)


async def check_memory(
    memory: Any,
    asked: CheckRequest,
    ask: Ask,
    in_turn: InTurn,
    no_reset: AbstractAsyncContextManager[Any],
) -> MemoryCheck:
    """Check an `AsyncMemory`. Holding `no_reset` prevents resets."""
    known = await ask(look_into_history(asked))
    listing = await in_store_thread(memory, list_memories, memory, asked.owner)
    comparison = Comparison(memory, asked, known, listing)
    for some in parts(comparison.memory_ids):
        histories = await ask(histories_of(some))
        comparison.check_chains(histories)
        await in_thread(comparison.compare, some, histories)
    for _ in range(_PAUSES):
        if not (recent := comparison.recent()):
            break
        comparison.take_recorded(await ask(histories_of(recent)))
        await asyncio.sleep(_PAUSE_S)

    async def look(one: SuspectMemory) -> None:
        with one.errors():
            await in_turn(one.memory_id, lambda running: one.run(LoopSteps(running)))

    for group in comparison.groups(_AT_ONCE):
        async with no_reset:
            await asyncio.gather(*map(look, group))
        comparison.take(group)
    return comparison.report(await ask(faults_for(asked)))


def check_memory_blocking(
    steps: ThreadSteps, asked: CheckRequest, in_turn: Callable[[str, Callable[[], None]], None]
) -> MemoryCheck:
    """Check a `Memory`."""
    memory, ask = steps.memory, steps.history.ask
    known = ask(look_into_history(asked))
    comparison = Comparison(memory, asked, known, list_memories(memory, asked.owner))
    for some in parts(comparison.memory_ids):
        histories = ask(histories_of(some))
        comparison.check_chains(histories)
        comparison.compare(some, histories)
    for _ in range(_PAUSES):
        if not (recent := comparison.recent()):
            break
        comparison.take_recorded(ask(histories_of(recent)))
        time.sleep(_PAUSE_S)
    for group in comparison.groups(_AT_ONCE):
        for one in group:
            with one.errors():
                in_turn(one.memory_id, lambda one=one: run_to_completion(one.run(steps)))  # type: ignore[misc]
        comparison.take(group)
    return comparison.report(ask(faults_for(asked)))
