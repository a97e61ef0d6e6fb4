"""mem0's `AsyncMemory`, recording its history without blocking the loop.

Lives here: mem0's operations, whose manager it is, when it opens and closes. Not here: what
becomes of an operation's records (_operations), mem0's values (_mem0_values).
"""

import asyncio
import functools
import inspect
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, Self, TypeVar, cast

from mem0.configs.base import MemoryConfig
from mem0.memory import main as mem0_main
from mem0.memory.storage import SQLiteManager

from async_history.errors import HistoryClosed, HistoryError
from async_history.manager import HistoryManager
from async_history.mem0._memory import without_history
from async_history.mem0._operations import (
    Doorway,
    Operation,
    Recorder,
    Turns,
    current,
    is_running,
    read_history,
    read_last_messages,
)
from async_history.mem0._restoring import bring_back, check_metadata
from async_history.opening import from_any_folder, open_history, without_secrets
from async_history.records import HistoryRecord
from async_history.timeline import Moment, check_moment

T = TypeVar("T")
_log = logging.getLogger("async_history")

_CLOSE_TIMEOUT_S: Final = 10.0
"""How long closing waits for operations that run, such as one whose LLM is still thinking."""


class HistoryNotWritten(HistoryError):
    """mem0 did its work, and the history of it could not be written.

    `result` is what mem0 returned; `records` what its history should have got.
    """

    def __init__(self, message: str, result: object, records: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(message)
        self.result = result
        self.records = records


class _Home:
    """What belongs to one event loop: the manager, the turns, the operations that run."""

    def __init__(self, manager: HistoryManager, *, is_own: bool) -> None:
        self.loop = asyncio.get_running_loop()
        self.doorway = Doorway()
        self.turns = Turns()
        self.resetting = asyncio.Lock()
        self.running: dict[asyncio.Task[Any], Operation] = {}
        self.manager = manager
        self._is_own = is_own
        self._opening = self.loop.create_task(_opened(manager)) if is_own else None

    async def opened(self) -> HistoryManager:
        """Return the manager, open."""
        if self._opening is not None:
            await asyncio.shield(self._opening)
        return self.manager

    async def new_operation(self, recorder: Recorder) -> Operation:
        """Return an operation of a memory's that is going to run here."""
        return Operation(recorder, await self.opened(), self.doorway, self.turns)

    @property
    def has_failed(self) -> bool:
        """Tell whether opening the manager failed: the next call makes another."""
        opening = self._opening
        return (
            opening is not None
            and opening.done()
            and (opening.cancelled() or opening.exception() is not None)
        )

    async def acked(self) -> None:
        """Wait until all that was handed in is durable, or has failed."""
        acks = [ack for operation in self.running.values() for ack in operation.acks]
        if acks:
            await asyncio.wait(acks)

    async def aclose(self) -> None:
        """Wait for the operations that run, and close the manager if it is our own."""
        deadline = self.loop.time() + _CLOSE_TIMEOUT_S
        while self.running and self.loop.time() < deadline:
            await asyncio.wait(self.running, timeout=deadline - self.loop.time())
        if self._is_own and not self.has_failed:
            await (await self.opened()).aclose()


async def _opened(manager: HistoryManager) -> HistoryManager:
    return await manager


def _operation(name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Make one of mem0's public operations wait for the acks of what it records."""
    inherited = getattr(mem0_main.AsyncMemory, name)

    @functools.wraps(inherited)
    async def operation(self: "AsyncMemory", *arguments: Any, **options: Any) -> Any:
        return await self._run(functools.partial(inherited, self, *arguments, **options))

    return operation


class AsyncMemory(mem0_main.AsyncMemory):  # type: ignore[misc]  # mem0 has no type information
    """mem0's `AsyncMemory` with its history in a manager of this library.

    Args:
        config: mem0's own.
        history: a URL (see `open_history`), or an open manager, which is shared and never closed
            here. Without it mem0's `history_db_path` counts, where a URL is welcome too. "" and
            "null://" switch the history off.

    The manager opens on first use, on the loop that runs then. Operations on one memory take
    turns, so that each record's `old_memory` is the `new_memory` of the one before.
    """

    add = _operation("add")
    update = _operation("update")
    delete_all = _operation("delete_all")

    def __init__(
        self,
        config: MemoryConfig | None = None,
        *,
        history: str | os.PathLike[str] | HistoryManager | None = None,
    ) -> None:
        config = config or MemoryConfig()
        self._record_into(config.history_db_path if history is None else history)
        self._home: _Home | None = None
        self._closing: asyncio.Task[None] | None = None
        self._is_closed = False
        super().__init__(without_history(config))
        self.config = config

    @classmethod
    def from_config(
        cls,
        config_dict: dict[str, Any],
        *,
        history: str | os.PathLike[str] | HistoryManager | None = None,
    ) -> Self:
        """Make one from mem0's configuration as a mapping; to be awaited where mem0's is (1.0.0
        to 1.0.9)."""
        made = super().from_config(config_dict)
        if inspect.isawaitable(made):
            return cast(Self, _awaited(made, lambda memory: memory._recording_into(history)))
        return cast(Self, made._recording_into(history))

    def _recording_into(self, where: str | os.PathLike[str] | HistoryManager | None) -> Self:
        if where is not None:
            self._record_into(where)
        return self

    def _record_into(self, where: str | os.PathLike[str] | HistoryManager) -> None:
        # It is opened later, on whichever loop runs then: from the same folder.
        self._history = (
            where if isinstance(where, HistoryManager) else from_any_folder(where or "null://")
        )
        self._recorder = Recorder(_named(where))

    @property
    def db(self) -> Recorder:
        """What mem0 takes for its history."""
        return self._recorder

    @db.setter
    def db(self, made_by_mem0: object) -> None:
        """Close what mem0 made instead of ours: a database in memory that nobody needs."""
        if isinstance(made_by_mem0, SQLiteManager):
            made_by_mem0.close()

    # Operations

    async def delete(self, memory_id: str) -> Any:
        """Delete a memory."""
        inherited = super().delete

        async def in_turn() -> Any:
            operation = self._recorder.require_operation()
            async with operation.turns.of(memory_id):
                operation.has_turn_of = memory_id
                try:
                    return await inherited(memory_id)
                finally:
                    operation.has_turn_of = None

        return await self._run(in_turn)

    async def history(self, memory_id: str) -> list[dict[str, Any]]:
        """Return a memory's changes, oldest first: all that were acked before this call."""
        home = self._home_here()
        operation = await home.new_operation(self._recorder)
        await read_history(operation, memory_id)
        before = current.set(operation)
        try:
            found: list[dict[str, Any]] = await super().history(memory_id)
        finally:
            current.reset(before)
        return found

    async def restore(
        self,
        memory_id: str,
        *,
        to: Moment,
        metadata: Mapping[str, Any] | None = None,
        actor_id: str | None = None,
        role: str | None = None,
    ) -> dict[str, Any]:
        """Bring back what a memory said at a moment; return the change, as `history` lists it.

        The history gets one record (see `HistoryManager.restore`), then the vector store follows:
        text, embedding and hash. Of a memory that it holds, everything else stays. One that was
        deleted is inserted anew under its id, with what its history knows: when it was made, its
        actor and its role. Not whose it was: without its `user_id`, `agent_id` or `run_id` in
        `metadata`, no search or list that asks for them finds it.

        Args:
            to: an aware datetime, or a version number: 1 is the ADD.
            metadata: what else the vector store shall hold of it. Whose a memory is can't be
                changed while it is there.
            actor_id, role: who restores.

        Raises:
            InvalidInput: the memory is unknown, was not there then, or its text is not known.
            HistoryConflict: the memory changed meanwhile, and nothing else did.
        """
        check_moment("to", to)
        given = check_metadata(metadata)
        home = self._home_here()

        async def in_turn() -> HistoryRecord:
            async with home.turns.of(memory_id):
                await home.acked()
                return await bring_back(self, home.manager, memory_id, to, given, actor_id, role)

        return (await self._run(in_turn)).as_dict()

    async def reset(self) -> None:
        """Empty the vector store and the history, as mem0 does; the manager stays open."""
        await self._run(self._reset)

    async def _reset(self) -> None:
        async with self._home_here().resetting:
            of_user, self.config = self.config, without_history(self.config)
            try:
                await super().reset()
            finally:
                self.config = of_user
        if not self._recorder.require_operation().has_reset:
            self._recorder.reset()  # up to 2.0.6 mem0 drops its table through a connection itself

    async def _run(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run one of mem0's operations to its end and its last ack, though it is cancelled here."""
        if self._recorder.operation is not None:  # mem0 calls another operation of its own
            return await call()
        home = self._home_here()
        operation = await home.new_operation(self._recorder)
        # Not the task itself, which would be cancelled too, nor a shield around it, which takes
        # another turn of the loop to tell how it ended.
        outcome: asyncio.Future[T] = home.loop.create_future()
        task = home.loop.create_task(_recorded(operation, call, outcome))
        home.running[task] = operation
        task.add_done_callback(home.running.pop)
        try:
            return await outcome
        finally:
            del outcome  # an error's traceback holds this frame, and the outcome the error

    async def _add_to_vector_store(
        self,
        messages: Sequence[Any],
        metadata: dict[str, Any],
        effective_filters: dict[str, Any],
        infer: bool,
        **options: Any,
    ) -> Any:
        operation = self._recorder.operation
        if operation is not None:
            operation.messages, operation.metadata = messages, metadata
            scope_of = getattr(mem0_main, "_build_session_scope", None)  # 1.0 has no buffer
            if infer and scope_of is not None:
                await read_last_messages(operation, scope_of(effective_filters))
        return await super()._add_to_vector_store(
            messages, metadata, effective_filters, infer, **options
        )

    async def _update_memory(self, memory_id: str, *arguments: Any, **options: Any) -> Any:
        async with self._recorder.require_operation().turns.of(memory_id):
            return await super()._update_memory(memory_id, *arguments, **options)

    async def _delete_memory(
        self, memory_id: str, existing_memory: object = None, **options: Any
    ) -> Any:
        operation = self._recorder.require_operation()
        if operation.has_turn_of == memory_id:
            if existing_memory is not None:
                options["existing_memory"] = existing_memory
            return await super()._delete_memory(memory_id, **options)
        # What was read before this memory's turn came may have changed: mem0 reads it again.
        async with operation.turns.of(memory_id):
            return await super()._delete_memory(memory_id, **options)

    # Life

    def _home_here(self) -> _Home:
        """Return what belongs to the running loop, made anew where the last loop has gone."""
        if self._is_closed:
            raise HistoryClosed("this AsyncMemory is closed; make another")
        home = self._home
        if home is None or home.loop is not asyncio.get_running_loop() or home.has_failed:
            if isinstance(self._history, HistoryManager):
                home = _Home(self._history, is_own=False)
            else:
                home = _Home(open_history(self._history), is_own=True)
            self._home = home
        return home

    async def aclose(self) -> None:
        """Wait for the operations that run, then close the manager, if it is our own."""
        self._is_closed = True
        if self._home is not None and self._home.loop is asyncio.get_running_loop():
            await self._home.aclose()
        else:
            self.close()

    def close(self) -> None:
        """Close from anywhere: on the loop it begins closing and returns at once, from another
        thread it returns when closing is done."""
        self._is_closed = True
        home, self._home = self._home, None
        if home is None:
            return
        if not home.loop.is_running():
            home.manager.close()
        elif is_running(home.loop):
            self._closing = home.loop.create_task(home.aclose())  # kept, or it could vanish
        else:
            asyncio.run_coroutine_threadsafe(home.aclose(), home.loop).result()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> bool:
        await self.aclose()
        return False


async def _recorded(
    operation: Operation, call: Callable[[], Coroutine[Any, Any, T]], outcome: "asyncio.Future[T]"
) -> None:
    """Run an operation's body, wait for its acks, and tell how it went."""
    current.set(operation)
    try:
        result = await _acked(operation, call)
    except asyncio.CancelledError:
        outcome.cancel()
        raise
    except Exception as error:  # told to the caller, or to the log
        if outcome.done():
            _log.error("an operation whose caller was cancelled failed: %s", error)
        else:
            outcome.set_exception(error)
    else:
        if not outcome.done():
            outcome.set_result(result)


async def _acked(operation: Operation, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
    try:
        result = await call()
    except BaseException:
        for failure in await operation.failures():
            _log.error("the history of a failed operation was not written: %s", failure)
        raise
    failures = await operation.failures()
    if failures:
        raise HistoryNotWritten(
            f"mem0 did its work, and its history was not written: {failures[0]}",
            result,
            operation.records,
        ) from failures[0]
    return result


async def _awaited(value: Awaitable[T], then: Callable[[T], T]) -> T:
    return then(await value)


def _named(where: object) -> str:
    return (
        type(where).__name__ if isinstance(where, HistoryManager) else without_secrets(str(where))
    )
