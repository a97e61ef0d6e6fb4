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
from async_history._core.recording import begin_operation
from async_history._core.records import HistoryRecord
from async_history._core.requests import takes
from async_history._core.rollback import RollbackReport
from async_history._core.rollback_request import RollbackRequest, rollback_request, undo_request
from async_history._core.timeline import Moment, check_moment
from async_history._core.validation import check_flag
from async_history._opening import without_secrets
from async_history.errors import InvalidInput
from async_history.mem0._check import check_memory, check_request
from async_history.mem0._differences import MemoryCheck
from async_history.mem0._forget import forget
from async_history.mem0._forget_request import ForgetReport, ForgetRequest, new_forget_request
from async_history.mem0._learning import LearnedOwners, learn, unowned
from async_history.mem0._loop_state import LoopState
from async_history.mem0._loop_states import LoopStates, Where
from async_history.mem0._memory import DELETED, OWN_RECORDER, is_made_by_mem0, without_history
from async_history.mem0._memory_host import ask
from async_history.mem0._operation import Operation, current
from async_history.mem0._payloads import WatchedStore, unwatched
from async_history.mem0._recorder import Recorder, read_history, read_last_messages
from async_history.mem0._repair import CheckRequest
from async_history.mem0._restore import check_metadata, restore_memory
from async_history.mem0._rollback import take_back
from async_history.mem0._workers import DEFAULT_THREADS, Workers, using

T = TypeVar("T")


def _operation(name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Wrap a public operation of mem0 to wait for the acks of its records."""
    inherited = getattr(mem0_main.AsyncMemory, name)

    @functools.wraps(inherited)
    async def operation(self: "AsyncMemory", *arguments: Any, **options: Any) -> Any:
        return await self._run(functools.partial(inherited, self, *arguments, **options), name)

    return operation


def _reading(name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Wrap a public operation of mem0 that changes nothing to use the workers."""
    inherited = getattr(mem0_main.AsyncMemory, name)

    @functools.wraps(inherited)
    async def reading(self: "AsyncMemory", *arguments: Any, **options: Any) -> Any:
        with using(self._workers):
            return await inherited(self, *arguments, **options)

    return reading


def _within(name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Wrap an internal function of mem0 to be an operation, where it is called outside of one."""
    inherited = getattr(mem0_main.AsyncMemory, name)

    @functools.wraps(inherited)
    async def within(self: "AsyncMemory", *arguments: Any, **options: Any) -> Any:
        return await self._within(name, functools.partial(inherited, self, *arguments, **options))

    return within


class AsyncMemory(mem0_main.AsyncMemory):  # type: ignore[misc]  # mem0 has no type information
    """mem0's `AsyncMemory` with its history in a manager of this library.

    Args:
        config: mem0's own.
        history: a URL (see `open_history`), or an open manager, which is shared and not closed.
            Default: mem0's `history_db_path`, which may also be a URL. "" and "null://" disable
            the history.
        turns_between_processes: whether operations on one memory are serialized with those of
            other processes too, by locks of the server or of a file `<history>-turns`.
        threads: the most threads for calls of embedder, model, reranker and vector store. There
            are as many as wait at a time, and idle ones end. One that has coroutine functions
            (`aembed`, `agenerate_response`, `asearch`, …) is awaited instead.
        options: the other options of `open_history`.

    The store is opened on first use, once for each event loop. All loops share one history in
    memory. Operations on one memory are serialized, so that each record's `old_memory` is the
    `new_memory` of the record before. An object assigned to `db` replaces the store, as in mem0.
    """

    add = _operation("add")
    update = _operation("update")
    delete_all = _operation("delete_all")
    get = _reading("get")
    get_all = _reading("get_all")
    search = _reading("search")

    _create_procedural_memory = _within("_create_procedural_memory")

    _assigned: Any = None
    """The object assigned to `db`; None in an instance that was created without its constructor."""
    _is_set_up_by_mem0 = False
    """Whether mem0 itself is assigning to `db` now."""
    _workers: Workers | None = None
    """None in an instance that was created without its constructor."""

    def __init__(
        self,
        config: MemoryConfig | None = None,
        *,
        history: str | os.PathLike[str] | HistoryManager | None = None,
        turns_between_processes: bool = True,
        threads: int = DEFAULT_THREADS,
        **options: Unpack[HistoryOptions],
    ) -> None:
        self._call_in(Workers(threads))
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
        threads: int = DEFAULT_THREADS,
        **options: Unpack[HistoryOptions],
    ) -> Self:
        """Create a memory from mem0's configuration as a mapping; see the constructor.

        From mem0 1.0.0 to 1.0.9 this returns an awaitable, as mem0's own.
        """
        check_flag("turns_between_processes", turns_between_processes)
        workers = Workers(threads)
        if history is not None:
            LoopStates(history, options)  # checks them before mem0 opens anything
        made = super().from_config(config_dict)

        def recording(memory: Self) -> Self:
            memory._call_in(workers)
            if history is not None or options or not turns_between_processes:
                where = memory.config.history_db_path if history is None else history
                memory._record_into(where, options, between_processes=turns_between_processes)
            return memory

        if inspect.isawaitable(made):
            return cast(Self, _then(made, recording))
        return recording(cast(Self, made))

    def _call_in(self, workers: Workers) -> None:
        self._workers = workers
        weakref.finalize(self, workers.end_threads).atexit = False

    def _record_into(
        self, where: Where, options: HistoryOptions, *, between_processes: bool = True
    ) -> None:
        self._states = LoopStates(where, options, between_processes=between_processes)
        self._recorder = Recorder(
            _name_of(where), self._states.store_name, self._states.start_in_background
        )
        self._assigned = OWN_RECORDER
        # Closes the threads and connections of a memory that is dropped without closing. At
        # exit they end by themselves.
        weakref.finalize(self, self._states.abandon).atexit = False

    @property
    def db(self) -> Any:
        """The object that mem0 uses as its history."""
        if self._assigned is DELETED:
            raise AttributeError("the db of this AsyncMemory was deleted")
        return self._recorder if self._assigned is OWN_RECORDER else self._assigned

    @db.setter
    def db(self, value: Any) -> None:
        """Use another object as the history; a manager as with `history=`.

        A database in memory that mem0 itself creates and assigns is closed, not used.
        """
        if self._is_set_up_by_mem0 and is_made_by_mem0(value):
            value.close()
        elif value is self.__dict__.get("_recorder", OWN_RECORDER):
            self._assigned = OWN_RECORDER
        elif isinstance(value, HistoryManager):
            replaced = self.__dict__.get("_states")
            self._record_into(value, {})
            if replaced is not None:
                replaced.close()
        else:
            self._assigned = value

    @db.deleter
    def db(self) -> None:
        self._assigned = DELETED

    @property
    def vector_store(self) -> Any:
        """mem0's vector store; during an operation a `WatchedStore`."""
        attributes = self.__dict__
        try:
            store = attributes["vector_store"]
        except KeyError:
            raise AttributeError("this AsyncMemory has no vector_store yet") from None
        own = self._assigned is OWN_RECORDER and "_recorder" in attributes
        operation = self._recorder.operation if own else None
        if operation is None:
            return store
        return WatchedStore(store, operation.payloads, operation.require_not_erased)

    @vector_store.setter
    def vector_store(self, value: Any) -> None:
        self.__dict__["vector_store"] = unwatched(value)

    @vector_store.deleter
    def vector_store(self) -> None:
        del self.__dict__["vector_store"]

    # Operations

    async def delete(self, memory_id: str) -> Any:
        """Delete a memory; see mem0's `delete`."""
        inherited = super().delete

        async def in_turn() -> Any:
            async with self._recorder.require_operation().part(memory_id):
                return await inherited(memory_id)

        if self._assigned is not OWN_RECORDER:
            return await inherited(memory_id)
        return await self._run(in_turn, "delete")

    async def history(self, memory_id: str) -> list[dict[str, Any]]:
        """Return a memory's changes, oldest first, with all that were acked before this call.

        Args:
            memory_id: the memory.
        """
        if self._assigned is not OWN_RECORDER:
            return await super().history(memory_id)  # type: ignore[no-any-return]
        state = self._state()
        await state.open_store()
        operation = state.new_operation("history", self, self._recorder)
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
        """Restore a memory as it was at a moment; return the change, as `history` lists it.

        One record is added to the history (see `HistoryManager.restore`), and one before it if the
        vector store has a text that the history does not know. Then the vector store follows: text,
        embedding, hash and metadata. Where the history does not know the metadata of that moment,
        the vector store's is kept. A deleted memory is inserted again under its id, with the owner,
        metadata, creation time, actor and role from its history. Where that does not know the owner
        (plain mem0 recorded the memory), name it in `metadata`, or searches by it will not find the
        memory.

        Args:
            memory_id: the memory to restore.
            to: an aware datetime, or a version number: 1 is the ADD.
            metadata: more fields for the vector store, which replace those of the history. The
                owner of an existing memory can't be changed.
            actor_id: who restores.
            role: the role of the actor.

        Raises:
            InvalidInput: the memory is unknown, did not exist then, or its text is not known.
            HistoryConflict: the memory changed meanwhile. Nothing was written.
            OwnerConflict: the memory is deleted, and `metadata` names another owner than its
                history. Nothing was written.
        """
        check_moment("to", to)
        given = check_metadata(metadata)
        self._require_own_history("restore")

        async def restored(operation: Operation) -> HistoryRecord:
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

        return (await self._in_turn("restore", memory_id, restored)).as_dict()

    @takes(rollback_request)
    async def rollback(self, asked: RollbackRequest) -> RollbackReport:
        """Take memories back to what they were at an instant, also in the vector store.

        As `HistoryManager.rollback`. Each memory is taken back in its turn, all or nothing: its
        record is written, then the vector store follows as in `restore`, or deletes a memory that
        did not exist then. Where the history is as it should be, and the vector store is not, only
        the vector store follows: so an interrupted call goes on. A text that the vector store has
        and the history does not is recorded first.

        Raises:
            InvalidInput: naming the argument, or the history is not one of this library.
            RollbackIncomplete: the vector store or the embedding model failed for some memories.
                The others are done. Call it again.
            HistoryError: as `HistoryManager.rollback`. What was done stays done. Call it again.
        """
        return await self._take_back("rollback", asked)

    @takes(undo_request)
    async def undo(self, asked: RollbackRequest) -> RollbackReport:
        """Take back what a run did, or what has a cause, also in the vector store.

        As `HistoryManager.undo`; the vector store follows as in `rollback`. A memory whose text in
        the vector store others have changed without a record stays as it is, as a conflict.

        Raises:
            InvalidInput, RollbackIncomplete, HistoryError: as `rollback`.
        """
        return await self._take_back("undo", asked)

    async def _take_back(self, name: str, asked: RollbackRequest) -> RollbackReport:
        self._require_own_history(name)
        with using(self._workers):
            return await take_back(self, asked, self._ask, functools.partial(self._in_turn, name))

    @takes(check_request)
    async def check(self, asked: CheckRequest) -> MemoryCheck:
        """Compare the vector store with the history; return what differs, and repair it if asked.

        Each memory's text, metadata, owner and deletion are compared, and its chain is checked, as
        `HistoryManager.check` does. Writers go on: what differs is compared again in the memory's
        turn. A memory that was made within the last minute and has no history is waited for, up to
        five seconds. Memories that the history does not know are found as far as the vector store
        lists them.

        With `repair="history"` the history follows: a record of what the vector store has is
        appended, with the report's `id` in its cause, under `check`. With `repair="vector"` the
        vector store follows, as in `restore`; a memory that the history does not know stays.

        Args:
            user_id, agent_id, run_id, app_id: only memories of this owner.
            repair: what follows the other: "history" or "vector".
            dry_run: only report what a repair would do. Give False to repair.

        Raises:
            InvalidInput: naming the argument, or the history is not one of this library.
            CursorGone: records were removed while they were read. Call it again.
            HistoryError: as every call. What was repaired stays so. Call it again.
        """
        self._require_own_history("check")
        in_turn = functools.partial(self._in_turn, "check")
        return await check_memory(self, asked, self._ask, in_turn, self._state().resetting)

    async def learn_owners(self) -> LearnedOwners:
        """Learn whose the memories of the history are, where it does not know, and report it.

        For a history from before owners were recorded, and for what plain mem0 recorded. The vector
        store is asked for each such memory, one after the other; no record is added. It may be
        cancelled, and called again.

        Raises:
            InvalidInput: the history is not one of this library.
        """
        self._require_own_history("learn_owners")

        async def learned() -> LearnedOwners:
            store = self._recorder.require_operation().manager
            return await learn(self, await ask(store, unowned), store.store)

        return await self._run(learned, "learn_owners")

    @takes(new_forget_request)
    async def forget(self, asked: ForgetRequest) -> ForgetReport:
        """Forget an owner: all their memories, in the vector store and in the history.

        The memories are removed from the vector store, also those that the history does not know;
        so are their entities. Then `HistoryManager.erase` takes what the history has of the owner,
        of memories deleted before too: texts, metadata, causes, buffered messages, the id. Then it
        is checked that nothing is found.

        An operation that began before, and changes something later, raises `Erased`. What it has
        put into the vector store is removed. What begins after the erasure is accepted: the same
        user may come back. Interrupted, call it again: it goes on.

        Args:
            user_id, agent_id, run_id: one owner to forget.
            app_id: refused, as mem0 finds nothing by it; see `HistoryManager.erase`.
            reason: kept with the erasure. Do not name a person in it.
            dry_run: only count, in the vector store as many as it lists.
            vacuum: see `HistoryManager.erase`.

        Raises:
            InvalidInput: naming the argument; or the history is not one of this library, or a graph
                (mem0 1.0) can't forget such an owner. Nothing was removed.
            HistoryError: what was removed so far stays removed. Call it again.
        """
        self._require_own_history("forget")
        return await self._run(
            lambda: forget(self, self._recorder.require_operation(), asked), "forget"
        )

    async def reset(self) -> None:
        """Empty the vector store and the history, as mem0 does. The manager stays open."""
        await self._run(self._reset, "reset")

    async def _reset(self) -> None:
        if self._assigned is OWN_RECORDER:
            async with self._state().resetting:
                await self._reset_all()
            if not self._recorder.require_operation().has_reset:
                self._recorder.reset()  # up to 2.0.6 mem0 drops its table itself
        else:
            await self._reset_all()
            # mem0 has closed the assigned object and created a history of its own.
            self._assigned = OWN_RECORDER

    async def _reset_all(self) -> None:
        given, self.config = self.config, without_history(self.config)
        self._is_set_up_by_mem0 = True
        self._recorder.is_resetting = True
        try:
            await super().reset()
        finally:
            self._recorder.is_resetting = False
            self.config = given
            self._is_set_up_by_mem0 = False

    async def _run(self, call: Callable[[], Coroutine[Any, Any, T]], name: str = "call") -> T:
        """Run a public operation of mem0 until its last ack.

        Also within another operation, whose hooks may start it without waiting for it.
        """
        if self._assigned is not OWN_RECORDER:
            with using(self._workers):
                return await call()
        begun = begin_operation()
        state = self._states.here()
        if not state.is_open:
            await state.open_store()
        operation = state.new_operation(name, self, self._recorder, begun, self._workers)
        return await state.run(operation, call)

    async def _in_turn(
        self, name: str, memory_id: str, body: Callable[[Operation], Awaitable[T]]
    ) -> T:
        """Run an operation on one memory, in its turn, once all earlier records can be read."""
        state = self._state()

        async def in_turn() -> T:
            operation = self._recorder.require_operation()
            async with operation.part(memory_id):
                await state.wait_for_acks()
                return await body(operation)

        return await self._run(in_turn, name)

    async def _ask(self, function: Callable[[HistoryManager], Awaitable[T]]) -> T:
        """Call a function with the history manager, on its loop."""
        return await ask(await self._state().open_store(), function)

    async def _within(self, name: str, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Call an internal function of mem0 within the running operation, or as a new operation."""
        operation = self._recorder.operation if self._assigned is OWN_RECORDER else None
        if self._assigned is OWN_RECORDER and (operation is None or operation.has_ended):
            return await self._run(call, name)
        return await call()

    async def _change(
        self, name: str, memory_id: str | None, call: Callable[[], Coroutine[Any, Any, T]]
    ) -> T:
        """Run a change of one memory, in its turn, as a part of the running operation."""
        if self._assigned is not OWN_RECORDER:
            return await call()
        operation = self._recorder.operation
        if operation is None or operation.has_ended:
            return await self._run(functools.partial(self._change, name, memory_id, call), name)
        async with operation.part(memory_id):
            return await call()

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
            operation = self._recorder.operation if self._assigned is OWN_RECORDER else None
            if operation is not None:
                operation.messages, operation.metadata = messages, metadata
                scope_of = getattr(mem0_main, "_build_session_scope", None)  # 1.0 has no buffer
                if infer and scope_of is not None:
                    await read_last_messages(operation, scope_of(effective_filters))
            return await inherited(messages, metadata, effective_filters, infer, **options)

        return await self._within("add", add)

    async def _create_memory(self, *arguments: Any, **options: Any) -> Any:
        inherited = functools.partial(super()._create_memory, *arguments, **options)
        return await self._change("add", None, inherited)

    async def _update_memory(self, memory_id: str, *arguments: Any, **options: Any) -> Any:
        inherited = functools.partial(super()._update_memory, memory_id, *arguments, **options)
        return await self._change("update", memory_id, inherited)

    async def _delete_memory(
        self, memory_id: str, existing_memory: object = None, **options: Any
    ) -> Any:
        operation = self._recorder.operation if self._assigned is OWN_RECORDER else None
        has_turn = operation is not None and operation.turns.is_held_here(memory_id)
        # The memory may have changed before its turn was granted: let mem0 read it again.
        if existing_memory is not None and (has_turn or self._assigned is not OWN_RECORDER):
            options["existing_memory"] = existing_memory
        inherited = functools.partial(super()._delete_memory, memory_id, **options)
        return await self._change("delete", memory_id, inherited)

    # State and closing

    def _require_own_history(self, name: str) -> None:
        if self._assigned is not OWN_RECORDER:
            raise InvalidInput(
                f"{name} needs a history of this library; a {type(self._assigned).__name__} was "
                "assigned to db"
            )

    def _state(self) -> LoopState:
        """Return the state for the running loop."""
        return self._states.here()

    async def aclose(self) -> None:
        """Cancel the operations that have changed nothing, wait for the others, and close."""
        self._close_assigned()
        if "_states" in vars(self):
            self._recorder.close_connection()
            await self._states.aclose()
        if self._workers is not None:
            self._workers.end_threads()

    def close(self) -> None:
        """Close from any thread.

        On an event loop this starts closing and returns at once. Elsewhere it returns when closed.
        """
        self._close_assigned()
        if "_states" in vars(self):
            self._recorder.close_connection()
            self._states.close()
        if self._workers is not None:
            self._workers.end_threads()

    def _close_assigned(self) -> None:
        """Close the object that was assigned to `db`, as mem0 does."""
        if self._assigned is not OWN_RECORDER:
            assigned, self._assigned = self._assigned, None
            if assigned is not None and assigned is not DELETED:
                assigned.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> bool:
        await self.aclose()
        return False


async def _then(value: Awaitable[T], then: Callable[[T], T]) -> T:
    return then(await value)


def _name_of(where: object) -> str:
    return (
        type(where).__name__ if isinstance(where, HistoryManager) else without_secrets(str(where))
    )
