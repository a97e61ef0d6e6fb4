# mypy: disable-error-code=import-untyped
"""mem0's `AsyncMemory`, recording its history without blocking the loop."""

import functools
import inspect
import os
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Self, TypeVar, Unpack, cast

from mem0.configs.base import MemoryConfig
from mem0.memory import main as mem0_main

from async_history._core.manager import HistoryManager
from async_history._core.options import HistoryOptions
from async_history._core.records import HistoryRecord
from async_history._core.timeline import Moment, check_moment
from async_history._core.validation import check_flag
from async_history._opening import without_secrets
from async_history.errors import InvalidInput
from async_history.mem0._loop_states import LoopState, LoopStates, Where
from async_history.mem0._memory import OURS, is_made_by_mem0, without_history
from async_history.mem0._operation import Recorder, current, read_history, read_last_messages
from async_history.mem0._restore import check_metadata, restore_memory

T = TypeVar("T")


def _operation(name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Make one of mem0's public operations wait for the acks of what it records."""
    inherited = getattr(mem0_main.AsyncMemory, name)

    @functools.wraps(inherited)
    async def operation(self: "AsyncMemory", *arguments: Any, **options: Any) -> Any:
        return await self._run(functools.partial(inherited, self, *arguments, **options), name)

    return operation


def _within(name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Make one of mem0's internal functions an operation where it is called outside of one."""
    inherited = getattr(mem0_main.AsyncMemory, name)

    @functools.wraps(inherited)
    async def within(self: "AsyncMemory", *arguments: Any, **options: Any) -> Any:
        return await self._within(name, functools.partial(inherited, self, *arguments, **options))

    return within


class AsyncMemory(mem0_main.AsyncMemory):  # type: ignore[misc]  # mem0 has no type information
    """mem0's `AsyncMemory` with its history in a manager of this library.

    Args:
        config: mem0's own.
        history: a URL (see `open_history`), or an open manager, which is shared and never closed
            here. Without it mem0's `history_db_path` counts, where a URL is welcome too. "" and
            "null://" switch the history off.
        turns_between_processes: whether operations on one memory take turns with those of other
            processes too. Without it nothing is asked of a server for that, and no file is made.
        options: what `open_history` takes besides the URL.

    The store opens on first use, for each loop that uses it; a history in memory is one for all.
    Operations on one memory take turns, so that each record's `old_memory` is the `new_memory` of
    the one before. What is assigned to `db` is used instead, as mem0 uses it.
    """

    add = _operation("add")
    update = _operation("update")
    delete_all = _operation("delete_all")

    _create_procedural_memory = _within("_create_procedural_memory")

    _assigned: Any = None
    """What somebody assigned to `db`; nothing in one that was made without its constructor."""
    _is_set_up_by_mem0 = False
    """Whether what is assigned to `db` now is assigned by mem0 itself."""

    def __init__(
        self,
        config: MemoryConfig | None = None,
        *,
        history: str | os.PathLike[str] | HistoryManager | None = None,
        turns_between_processes: bool = True,
        **options: Unpack[HistoryOptions],
    ) -> None:
        config = config or MemoryConfig()
        where = config.history_db_path if history is None else history
        self._record_into(where, options, between_processes=turns_between_processes)
        self._is_set_up_by_mem0 = True
        super().__init__(without_history(config))
        self._is_set_up_by_mem0 = False
        self.config = config

    @classmethod
    def from_config(
        cls,
        config_dict: dict[str, Any],
        *,
        history: str | os.PathLike[str] | HistoryManager | None = None,
        turns_between_processes: bool = True,
        **options: Unpack[HistoryOptions],
    ) -> Self:
        """Make one from mem0's configuration as a mapping; to be awaited where mem0's is (1.0.0
        to 1.0.9)."""
        check_flag("turns_between_processes", turns_between_processes)
        if history is not None:
            LoopStates(history, options)  # checks them before anything is opened
        made = super().from_config(config_dict)

        def recording(memory: Self) -> Self:
            if history is not None or options or not turns_between_processes:
                where = memory.config.history_db_path if history is None else history
                memory._record_into(where, options, between_processes=turns_between_processes)
            return memory

        if inspect.isawaitable(made):
            return cast(Self, _awaited(made, recording))
        return recording(cast(Self, made))

    def _record_into(
        self, where: Where, options: HistoryOptions, *, between_processes: bool = True
    ) -> None:
        self._states = LoopStates(where, options, between_processes=between_processes)
        self._recorder = Recorder(_named(where), self._states.store_name, self._states.begin)
        self._assigned = OURS
        # A memory that is dropped without closing takes its threads and connections with it. When
        # the program ends they end by themselves.
        weakref.finalize(self, self._states.let_go).atexit = False

    @property
    def db(self) -> Any:
        """What mem0 takes for its history."""
        return self._recorder if self._assigned is OURS else self._assigned

    @db.setter
    def db(self, value: Any) -> None:
        """Use what is assigned instead; a manager as `history=` does.

        What mem0 makes instead of ours is closed: a database in memory that nobody needs.
        """
        if self._is_set_up_by_mem0 and is_made_by_mem0(value):
            value.close()
        elif value is self.__dict__.get("_recorder", OURS):
            self._assigned = OURS
        elif isinstance(value, HistoryManager):
            replaced = self.__dict__.get("_states")
            self._record_into(value, {})
            if replaced is not None:
                replaced.close()
        else:
            self._assigned = value

    # Operations

    async def delete(self, memory_id: str) -> Any:
        """Delete a memory."""
        inherited = super().delete

        async def in_turn() -> Any:
            operation = self._recorder.require_operation()
            async with operation.turn_of(memory_id):
                return await inherited(memory_id)

        if self._assigned is not OURS:
            return await inherited(memory_id)
        return await self._run(in_turn, "delete")

    async def history(self, memory_id: str) -> list[dict[str, Any]]:
        """Return a memory's changes, oldest first: all that were acked before this call."""
        if self._assigned is not OURS:
            return await super().history(memory_id)  # type: ignore[no-any-return]
        operation = await self._state().new_operation("history", self, self._recorder)
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
        if self._assigned is not OURS:
            raise InvalidInput(
                f"restore needs a history of this library; a {type(self._assigned).__name__} was "
                "assigned to db"
            )
        state = self._state()

        async def in_turn() -> HistoryRecord:
            operation = self._recorder.require_operation()
            async with operation.turn_of(memory_id):
                await state.acked()
                return await restore_memory(
                    self,
                    operation.manager,
                    memory_id,
                    to,
                    given,
                    actor_id,
                    role,
                    begin_change=operation.begin_change,
                )

        return (await self._run(in_turn, "restore")).as_dict()

    async def reset(self) -> None:
        """Empty the vector store and the history, as mem0 does; the manager stays open."""
        await self._run(self._reset, "reset")

    async def _reset(self) -> None:
        if self._assigned is OURS:
            async with self._state().resetting:
                await self._reset_all()
            if not self._recorder.require_operation().has_reset:
                self._recorder.reset()  # up to 2.0.6 mem0 drops its table by itself
        else:
            await self._reset_all()
            self._assigned = OURS  # mem0 replaces what it has closed by a history of its own

    async def _reset_all(self) -> None:
        of_user, self.config = self.config, without_history(self.config)
        self._is_set_up_by_mem0 = True
        self._recorder.is_resetting = True
        try:
            await super().reset()
        finally:
            self._recorder.is_resetting = False
            self.config = of_user
            self._is_set_up_by_mem0 = False

    async def _run(self, call: Callable[[], Coroutine[Any, Any, T]], name: str = "call") -> T:
        """Run one of mem0's operations to its last ack.

        Also within another operation, whose hooks may begin it and not wait for it.
        """
        if self._assigned is not OURS:
            return await call()
        state = self._state()
        return await state.run(await state.new_operation(name, self, self._recorder), call)

    async def _within(self, name: str, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Call a function of mem0's within the operation that runs, or as one of its own."""
        operation = self._recorder.operation if self._assigned is OURS else None
        if self._assigned is OURS and (operation is None or operation.has_ended):
            return await self._run(call, name)
        return await call()

    async def _changing(
        self, name: str, memory_id: str | None, call: Callable[[], Coroutine[Any, Any, T]]
    ) -> T:
        """Change one memory, in its turn, as a part of the operation that runs."""

        async def change() -> T:
            operation = self._recorder.require_operation()
            with operation.part():
                if memory_id is None:
                    return await call()
                async with operation.turn_of(memory_id):
                    operation.require_going_on()
                    return await call()

        return await (call() if self._assigned is not OURS else self._within(name, change))

    async def _add_to_vector_store(
        self,
        messages: Sequence[Any],
        metadata: dict[str, Any],
        effective_filters: dict[str, Any],
        infer: bool,
        **options: Any,
    ) -> Any:
        inherited = super()._add_to_vector_store

        async def add() -> Any:
            operation = self._recorder.operation if self._assigned is OURS else None
            if operation is not None:
                operation.messages, operation.metadata = messages, metadata
                scope_of = getattr(mem0_main, "_build_session_scope", None)  # 1.0 has no buffer
                if infer and scope_of is not None:
                    await read_last_messages(operation, scope_of(effective_filters))
            return await inherited(messages, metadata, effective_filters, infer, **options)

        return await self._within("add", add)

    async def _create_memory(self, *arguments: Any, **options: Any) -> Any:
        inherited = functools.partial(super()._create_memory, *arguments, **options)
        return await self._changing("add", None, inherited)

    async def _update_memory(self, memory_id: str, *arguments: Any, **options: Any) -> Any:
        inherited = functools.partial(super()._update_memory, memory_id, *arguments, **options)
        return await self._changing("update", memory_id, inherited)

    async def _delete_memory(
        self, memory_id: str, existing_memory: object = None, **options: Any
    ) -> Any:
        operation = self._recorder.operation if self._assigned is OURS else None
        has_turn = operation is not None and operation.turns.is_held_here(memory_id)
        # What was read before this memory's turn came may have changed: mem0 reads it again.
        if existing_memory is not None and (has_turn or self._assigned is not OURS):
            options["existing_memory"] = existing_memory
        inherited = functools.partial(super()._delete_memory, memory_id, **options)
        return await self._changing("delete", memory_id, inherited)

    # Life

    def _state(self) -> LoopState:
        """Return what belongs to the running loop."""
        return self._states.here()

    async def aclose(self) -> None:
        """Cancel the operations that have changed nothing, wait for the others, and close."""
        self._close_assigned()
        if "_states" in vars(self):
            self._recorder.end()
            await self._states.aclose()

    def close(self) -> None:
        """Close from anywhere: on a loop it begins closing and returns at once, from another
        thread it returns when closing is done."""
        self._close_assigned()
        if "_states" in vars(self):
            self._recorder.end()
            self._states.close()

    def _close_assigned(self) -> None:
        """Close what was assigned to `db`, as mem0 does."""
        if self._assigned is not OURS:
            assigned, self._assigned = self._assigned, None
            if assigned is not None:
                assigned.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> bool:
        await self.aclose()
        return False


async def _awaited(value: Awaitable[T], then: Callable[[T], T]) -> T:
    return then(await value)


def _named(where: object) -> str:
    return (
        type(where).__name__ if isinstance(where, HistoryManager) else without_secrets(str(where))
    )
