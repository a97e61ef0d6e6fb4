# mypy: disable-error-code=import-untyped
"""mem0's `AsyncMemory`, recording its history without blocking the loop.

Private names begin with `_history_`, so that mem0 and programs may use any others in their classes.
"""

import functools
import inspect
import os
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Self, TypeVar, Unpack, cast

from mem0.configs.base import MemoryConfig
from mem0.memory import main as mem0_main

from async_history._core.manager import HistoryManager
from async_history._core.options import HistoryOptions
from async_history._core.records.values import plain
from async_history._core.telemetry import memory_operation
from async_history._core.validation import check_flag
from async_history._opening import without_secrets
from async_history.mem0._assigned import DELETED, OWN_RECORDER, is_made_by_mem0, without_history
from async_history.mem0._config import check_config
from async_history.mem0._history_operations import HistoryOperations
from async_history.mem0._loop_states import LoopStates, Where
from async_history.mem0._operation import Operation, current
from async_history.mem0._recorder import Recorder, read_history, read_last_messages
from async_history.mem0._threads.workers import DEFAULT_THREADS, Workers, using
from async_history.mem0._vectors.payloads import WatchedStore, unwatched

T = TypeVar("T")


def _operation(name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Wrap a public operation of mem0 so that it waits for the acks of its records."""
    inherited = getattr(mem0_main.AsyncMemory, name)

    @functools.wraps(inherited)
    async def operation(self: "AsyncMemory", *arguments: Any, **options: Any) -> Any:
        return await self._history_run(
            functools.partial(inherited, self, *arguments, **options), name
        )

    return operation


def _reading(name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Wrap a public operation of mem0 that changes nothing to use the workers."""
    inherited = getattr(mem0_main.AsyncMemory, name)

    @functools.wraps(inherited)
    async def reading(self: "AsyncMemory", *arguments: Any, **options: Any) -> Any:
        with using(self._history_workers):
            if self._history_db is not OWN_RECORDER:
                return await inherited(self, *arguments, **options)
            with memory_operation(name, self._history_recorder.db_path):
                return await inherited(self, *arguments, **options)

    return reading


class AsyncMemory(HistoryOperations, mem0_main.AsyncMemory):  # type: ignore[misc]  # mem0 has no type information
    """mem0's `AsyncMemory` with its history in a manager of this library.

    Args:
        config: mem0's own.
        history: a URL (see `open_history`), or an open manager, which is shared and not closed.
            Default: mem0's `history_db_path`, which may also be a URL. "" and "null://" disable
            the history.
        turns_between_processes: whether operations on one memory are serialized with those of
            other processes too, by locks of the server or of a file `<history>-turns`.
        threads: the most threads for calls of the embedder, model, reranker and vector store. Each
            waiting call has a thread, and idle threads end. Coroutine functions of these objects
            (`aembed`, `agenerate_response`, `asearch`, …) are awaited instead.
        options: the other options of `open_history`.

    The store is opened on first use, once for each event loop. All loops share one history in
    memory. Operations on one memory are serialized, so that each record's `old_memory` is the
    `new_memory` of the previous record. An object assigned to `db` replaces the store, as in mem0.
    """

    add = _operation("add")
    update = _operation("update")
    delete_all = _operation("delete_all")
    get = _reading("get")
    get_all = _reading("get_all")
    search = _reading("search")

    _history_is_set_by_mem0 = False
    """Whether mem0 itself is assigning to `db` now."""

    def __init__(
        self,
        config: MemoryConfig | None = None,
        *,
        history: str | os.PathLike[str] | HistoryManager | None = None,
        turns_between_processes: bool = True,
        threads: int = DEFAULT_THREADS,
        **options: Unpack[HistoryOptions],
    ) -> None:
        self._history_call_in(Workers(threads))
        config = config or MemoryConfig()
        where = config.history_db_path if history is None else history
        self._history_record_into(where, options, between_processes=turns_between_processes)
        self._history_is_set_by_mem0 = True
        super().__init__(without_history(config))
        self._history_is_set_by_mem0 = False
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

        Raises:
            InvalidInput: the configuration has an option of the history.
        """
        check_config(config_dict)
        check_flag("turns_between_processes", turns_between_processes)
        workers = Workers(threads)
        if history is not None:
            LoopStates(history, options)  # checks them before mem0 opens anything
        made = super().from_config(config_dict)

        def recording(memory: Self) -> Self:
            memory._history_call_in(workers)
            if history is not None or options or not turns_between_processes:
                where = memory.config.history_db_path if history is None else history
                memory._history_record_into(
                    where, options, between_processes=turns_between_processes
                )
            return memory

        if inspect.isawaitable(made):
            return cast(Self, _then(made, recording))
        return recording(cast(Self, made))

    def _history_call_in(self, workers: Workers) -> None:
        self._history_workers = workers
        weakref.finalize(self, workers.end_threads).atexit = False

    def _history_record_into(
        self, where: Where, options: HistoryOptions, *, between_processes: bool = True
    ) -> None:
        self._history_states = LoopStates(where, options, between_processes=between_processes)
        self._history_recorder = Recorder(
            _name_of(where),
            self._history_states.store_name,
            self._history_states.start_in_background,
        )
        self._history_db = OWN_RECORDER
        # Closes the threads and connections of an unclosed memory that is garbage-collected. At
        # exit they end by themselves.
        weakref.finalize(self, self._history_states.abandon).atexit = False

    @property
    def db(self) -> Any:
        """The object that mem0 uses as its history."""
        if self._history_db is DELETED:
            raise AttributeError("the db of this AsyncMemory was deleted")
        return self._history_recorder if self._history_db is OWN_RECORDER else self._history_db

    @db.setter
    def db(self, value: Any) -> None:
        """Use another object as the history; a manager as with `history=`.

        A database in memory that mem0 itself creates and assigns is closed, not used.
        """
        if self._history_is_set_by_mem0 and is_made_by_mem0(value):
            value.close()
        elif value is self.__dict__.get("_history_recorder", OWN_RECORDER):
            self._history_db = OWN_RECORDER
        elif isinstance(value, HistoryManager):
            replaced = self.__dict__.get("_history_states")
            self._history_record_into(value, {})
            if replaced is not None:
                replaced.close()
        else:
            self._history_db = value

    @db.deleter
    def db(self) -> None:
        self._history_db = DELETED

    @property
    def vector_store(self) -> Any:
        """mem0's vector store; during an operation a `WatchedStore`."""
        attributes = self.__dict__
        try:
            store = attributes["vector_store"]
        except KeyError:
            raise AttributeError("this AsyncMemory has no vector_store yet") from None
        own = self._history_db is OWN_RECORDER and "_history_recorder" in attributes
        operation = self._history_recorder.operation if own else None
        if operation is None:
            return store
        return WatchedStore(store, operation.payloads, operation.require_not_erased, operation.new)

    @vector_store.setter
    def vector_store(self, value: Any) -> None:
        self.__dict__["vector_store"] = unwatched(value)

    @vector_store.deleter
    def vector_store(self) -> None:
        del self.__dict__["vector_store"]

    # Operations of mem0

    async def delete(self, memory_id: str) -> Any:
        """Delete a memory; see mem0's `delete`."""
        inherited = super().delete

        async def in_turn() -> Any:
            async with self._history_recorder.require_operation().part(memory_id):
                return await inherited(memory_id)

        if self._history_db is not OWN_RECORDER:
            return await inherited(memory_id)
        return await self._history_run(in_turn, "delete")

    async def history(self, memory_id: str) -> list[dict[str, Any]]:
        """Return a memory's changes, oldest first, including all that were acked before this call.

        Args:
            memory_id: the memory.
        """
        if self._history_db is not OWN_RECORDER:
            with using(self._history_workers):
                return await super().history(memory_id)  # type: ignore[no-any-return]
        state = self._history_state()
        await state.open_store()
        await state.wait_for_background()
        operation = state.new_operation("history", self, self._history_recorder)
        await read_history(operation, memory_id)
        before = current.set(operation)
        try:
            found: list[dict[str, Any]] = await super().history(memory_id)
        finally:
            current.reset(before)
        return found

    async def reset(self) -> None:
        """Empty the vector store and the history, as mem0 does. The manager stays open."""
        await self._history_run(self._history_reset, "reset")

    async def _history_reset(self) -> None:
        if self._history_db is not OWN_RECORDER:
            await self._history_reset_all()
            # mem0 has closed the assigned object and created its own history.
            if "_history_recorder" in vars(self):
                self._history_db = OWN_RECORDER
            else:
                self._history_record_into(self.config.history_db_path, {})
            return
        self._history_recorder.is_resetting = True
        try:
            async with self._history_state().resetting:
                await self._history_reset_all()
        finally:
            self._history_recorder.is_resetting = False
        if not self._history_recorder.require_operation().has_reset:
            self._history_recorder.reset()  # up to 2.0.6 mem0 drops its table itself

    async def _history_reset_all(self) -> None:
        given, self.config = self.config, without_history(self.config)
        self._history_is_set_by_mem0 = True
        try:
            await super().reset()
        finally:
            self.config = given
            self._history_is_set_by_mem0 = False

    @property
    def _history_operation(self) -> Operation | None:
        """The running operation; None if another object is assigned to `db`."""
        return self._history_recorder.operation if self._history_db is OWN_RECORDER else None

    async def _history_within(self, name: str, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Call an internal function of mem0 within the running operation, or as a new operation."""
        operation = self._history_operation
        if self._history_db is OWN_RECORDER and (operation is None or operation.has_ended):
            return await self._history_run(call, name)
        return await call()

    async def _history_change(
        self, name: str, memory_id: str | None, call: Callable[[], Coroutine[Any, Any, T]]
    ) -> T:
        """Run a change of one memory, in its turn, as part of the running operation."""
        if self._history_db is not OWN_RECORDER:
            return await call()
        operation = self._history_recorder.operation
        if operation is None or operation.has_ended:
            return await self._history_run(
                functools.partial(self._history_change, name, memory_id, call), name
            )
        async with operation.part(memory_id):
            with operation.reported_change(name, memory_id) as note_memory:
                result = await call()
                if memory_id is None:
                    note_memory(result)
                return result

    async def _add_to_vector_store(
        self,
        messages: Sequence[Any],
        metadata: dict[str, Any],
        effective_filters: dict[str, Any],
        infer: bool,
        *more: Any,
        **options: Any,
    ) -> Any:
        inherited = super()._add_to_vector_store

        async def adding() -> Any:
            operation = self._history_operation
            if operation is not None:
                operation.messages, operation.metadata = messages, metadata
                scope_of = getattr(mem0_main, "_build_session_scope", None)  # 1.0 has no buffer
                if infer and scope_of is not None:
                    await read_last_messages(operation, scope_of(effective_filters))
            return await inherited(messages, metadata, effective_filters, infer, *more, **options)

        return await self._history_within("add", adding)

    async def _create_procedural_memory(self, *arguments: Any, **options: Any) -> Any:
        inherited = functools.partial(super()._create_procedural_memory, *arguments, **options)
        return await self._history_within("_create_procedural_memory", inherited)

    async def _create_memory(self, *arguments: Any, **options: Any) -> Any:
        inherited = functools.partial(super()._create_memory, *arguments, **options)
        return await self._history_change("create", None, inherited)

    async def _update_memory(self, memory_id: str, *arguments: Any, **options: Any) -> Any:
        inherited = functools.partial(super()._update_memory, memory_id, *arguments, **options)
        return await self._history_change("update", memory_id, inherited)

    async def _delete_memory(
        self, memory_id: str, existing_memory: object = None, *more: Any, **options: Any
    ) -> Any:
        operation = self._history_operation
        has_turn = operation is not None and operation.has_turn_of(memory_id)
        if not has_turn and self._history_db is OWN_RECORDER:
            # The memory may have changed before its turn was granted: let mem0 read it again.
            existing_memory = None
        if existing_memory is not None or more:
            more = existing_memory, *more
        inherited = functools.partial(super()._delete_memory, memory_id, *more, **options)
        return await self._history_change("delete", memory_id, inherited)

    # Closing

    async def aclose(self) -> None:
        """Cancel the operations that have changed nothing, wait for the others, and close."""
        self._history_close_assigned()
        if "_history_states" in vars(self):
            self._history_recorder.close_connection()
            await self._history_states.aclose()
        if self._history_workers is not None:
            self._history_workers.end_threads()

    def close(self) -> None:
        """Close from any thread.

        On an event loop this starts closing and returns at once. Elsewhere it returns when closed.
        """
        self._history_close_assigned()
        if "_history_states" in vars(self):
            self._history_recorder.close_connection()
            self._history_states.close()
        if self._history_workers is not None:
            self._history_workers.end_threads()

    def _history_close_assigned(self) -> None:
        """Close the object that was assigned to `db`, as mem0 does."""
        if self._history_db is not OWN_RECORDER:
            assigned, self._history_db = self._history_db, None
            if assigned is not None and assigned is not DELETED:
                assigned.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> bool:
        await self.aclose()
        return False


async def _then(value: Awaitable[T], then: Callable[[T], T]) -> T:
    return then(await value)


def _name_of(where: Where) -> str:
    if isinstance(where, HistoryManager):
        return where.backend.where
    return without_secrets(plain(os.fspath(where or "")))
