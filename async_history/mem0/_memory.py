# mypy: disable-error-code=import-untyped
"""mem0's synchronous `Memory`, with its history in this library.

Private names begin with `_history_`, so that mem0 and programs may use any others in their classes.
"""

import functools
import os
from collections.abc import Callable, Mapping
from contextvars import ContextVar, copy_context
from typing import Any, Final, Self, TypeVar, Unpack

from mem0.configs.base import MemoryConfig
from mem0.memory import main as mem0_main

from async_history._core.concurrency.threads import run_to_completion
from async_history._core.manager import HistoryManager
from async_history._core.options import HistoryOptions
from async_history._core.reading.timeline import Moment, check_moment
from async_history._core.records.records import HistoryRecord
from async_history._core.requests import takes
from async_history._core.telemetry import memory_operation
from async_history._core.undoing.rollback import RollbackReport
from async_history._core.undoing.rollback_request import (
    RollbackRequest,
    rollback_request,
    undo_request,
)
from async_history.errors import InvalidInput
from async_history.mem0._assigned import (
    DELETED,
    OWN_RECORDER,
    is_made_by_mem0,
    require_own_history,
    without_history,
)
from async_history.mem0._blocking_operations import BlockingRecorder
from async_history.mem0._checking.check import check_memory_blocking, check_request
from async_history.mem0._checking.differences import MemoryCheck
from async_history.mem0._checking.learning import LearnedOwners, learn
from async_history.mem0._checking.repair import CheckRequest
from async_history.mem0._config import check_config
from async_history.mem0._forgetting.forget_request import (
    ForgetReport,
    ForgetRequest,
    new_forget_request,
)
from async_history.mem0._forgetting.owner_removal import forget
from async_history.mem0._steps import ThreadSteps
from async_history.mem0._undoing.restore import check_metadata, restore_memory
from async_history.mem0._undoing.rollback import take_back_blocking
from async_history.mem0._vectors.payloads import WatchedStore, unwatched

T = TypeVar("T")

_from_config_arguments: Final = ContextVar[
    tuple[str | os.PathLike[str] | None, bool, HistoryOptions]
]("async_history_memory", default=(None, True, {}))
"""The arguments of `Memory.from_config`, for the constructor that mem0 calls in it."""


class _FunctionOf:
    """A function that depends on the reader. Like any function, it can be replaced in a memory.

    Args:
        read: returns the function of a memory.
    """

    def __init__(self, read: Callable[["Memory"], Callable[..., Any]]) -> None:
        self._read = read

    def __get__(self, memory: "Memory | None", owner: type | None = None) -> Callable[..., Any]:
        if memory is not None:
            return self._read(memory)
        return lambda memory, *arguments, **options: self._read(memory)(*arguments, **options)


def _operation(name: str, shown: str | None = None) -> Callable[..., Any]:
    """Wrap a function of mem0 so that it raises if its history was not written.

    Args:
        shown: the operation's name in telemetry, if it differs.
    """
    inherited = getattr(mem0_main.Memory, name)

    @functools.wraps(inherited)
    def operation(self: "Memory", *arguments: Any, **options: Any) -> Any:
        return self._history_run(
            shown or name, functools.partial(inherited, self, *arguments, **options)
        )

    return operation


def _reading(name: str) -> Callable[..., Any]:
    """Wrap a public function of mem0 that changes nothing, for telemetry."""
    inherited = getattr(mem0_main.Memory, name)

    @functools.wraps(inherited)
    def reading(self: "Memory", *arguments: Any, **options: Any) -> Any:
        if self._history_db is not OWN_RECORDER:
            return inherited(self, *arguments, **options)
        with memory_operation(name, self._history_recorder.shown):
            return inherited(self, *arguments, **options)

    return reading


class Memory(mem0_main.Memory):  # type: ignore[misc]  # mem0 has no type information
    """mem0's `Memory` with its history in a store of this library.

    Args:
        config: mem0's own.
        history: a URL (see `open_history`). Default: mem0's `history_db_path`, which may also be a
            URL. "" and "null://" disable the history.
        turns_between_processes: see `AsyncMemory`.
        options: the other options of `open_history`.

    The store is created or adopted at once, and opened on first use: a process that is forked
    before that opens it for itself. An object assigned to `db` replaces it, as in mem0.
    """

    add = _operation("add")
    update = _operation("update")
    delete_all = _operation("delete_all")
    get = _reading("get")
    get_all = _reading("get_all")
    search = _reading("search")
    _create_memory = _operation("_create_memory", "create")
    _create_procedural_memory = _operation("_create_procedural_memory", "create")

    _history_db: Any = None
    """The object assigned to `db`; None in an instance that was created without its constructor."""
    _history_is_set_by_mem0 = False
    """Whether mem0 itself is assigning to `db` now."""

    def __init__(
        self,
        config: MemoryConfig | None = None,
        *,
        history: str | os.PathLike[str] | None = None,
        turns_between_processes: bool = True,
        **options: Unpack[HistoryOptions],
    ) -> None:
        config = config or MemoryConfig()
        if history is None and not options and turns_between_processes is True:
            history, turns_between_processes, options = _from_config_arguments.get()
        where = config.history_db_path if history is None else history
        if isinstance(where, HistoryManager):
            raise _needs_a_url()
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
        history: str | os.PathLike[str] | None = None,
        turns_between_processes: bool = True,
        **options: Unpack[HistoryOptions],
    ) -> Self:
        """Create a memory from mem0's configuration as a mapping; see the constructor.

        Raises:
            InvalidInput: the configuration has an option of the history.
        """
        check_config(config_dict)
        before = _from_config_arguments.set((history, turns_between_processes, options))
        try:
            memory: Self = super().from_config(config_dict)
        finally:
            _from_config_arguments.reset(before)
        return memory

    def _history_record_into(
        self,
        where: str | os.PathLike[str],
        options: HistoryOptions,
        *,
        between_processes: bool = True,
    ) -> None:
        self._history_recorder = BlockingRecorder(
            where or "null://", options, between_processes=between_processes
        )
        self._history_recorder.create()
        self._history_db = OWN_RECORDER

    @property
    def db(self) -> Any:
        """The object that mem0 uses as its history."""
        if self._history_db is DELETED:
            raise AttributeError("the db of this Memory was deleted")
        return self._history_recorder if self._history_db is OWN_RECORDER else self._history_db

    @db.setter
    def db(self, value: Any) -> None:
        """Use another object as the history.

        A database in memory that mem0 itself creates and assigns is closed, not used.
        """
        if self._history_is_set_by_mem0 and is_made_by_mem0(value):
            value.close()
        elif isinstance(value, HistoryManager):
            raise _needs_a_url()
        else:
            own = self.__dict__.get("_history_recorder", OWN_RECORDER)
            self._history_db = OWN_RECORDER if value is own else value

    @db.deleter
    def db(self) -> None:
        self._history_db = DELETED

    @property
    def vector_store(self) -> Any:
        """mem0's vector store. Reading it within a memory's turn checks that the turn is kept.

        During an operation it is a `WatchedStore`.

        Raises:
            StorageLocked: another process may have this memory's turn. Nothing has changed.
        """
        attributes = self.__dict__
        payloads = new = None
        if self._history_db is OWN_RECORDER and "_history_recorder" in attributes:
            self._history_recorder.require_turn()
            payloads, new = self._history_recorder.payloads, self._history_recorder.new
        try:
            store = attributes["vector_store"]
        except KeyError:
            raise AttributeError("this Memory has no vector_store yet") from None
        if payloads is None or new is None:
            return store
        return WatchedStore(store, payloads, self._history_recorder.require_not_erased, new)

    @vector_store.setter
    def vector_store(self, value: Any) -> None:
        self.__dict__["vector_store"] = unwatched(value)

    @vector_store.deleter
    def vector_store(self) -> None:
        del self.__dict__["vector_store"]

    @_FunctionOf
    def _add_to_vector_store(self) -> Callable[..., Any]:
        """mem0's function, as an operation.

        mem0 1.0 reads it here and calls it in a thread. The thread then has the reader's context,
        with its cause, and what it does is part of the reader's operation.
        """
        inherited: Callable[..., Any] = super()._add_to_vector_store
        if self._history_db is not OWN_RECORDER:
            return functools.partial(copy_context().run, inherited)
        within = self._history_recorder.running

        def operation(*arguments: Any, **options: Any) -> Any:
            call = functools.partial(inherited, *arguments, **options)
            return self._history_recorder.run(self, "add", call, within=within)

        return functools.partial(copy_context().run, operation)

    def delete(self, memory_id: str) -> Any:
        """Delete a memory; see mem0's `delete`."""
        return self._history_change(
            "delete", memory_id, functools.partial(super().delete, memory_id)
        )

    def _update_memory(self, memory_id: str, *arguments: Any, **options: Any) -> Any:
        inherited = functools.partial(super()._update_memory, memory_id, *arguments, **options)
        return self._history_change("update", memory_id, inherited)

    def _delete_memory(self, memory_id: str, existing_memory: object = None, **options: Any) -> Any:
        is_assigned = self._history_db is not OWN_RECORDER
        is_current = is_assigned or self._history_recorder.has_turn_of(memory_id)
        # The memory may have changed before its turn was granted: let mem0 read it again.
        if existing_memory is not None and is_current:
            options["existing_memory"] = existing_memory
        inherited = functools.partial(super()._delete_memory, memory_id, **options)
        return self._history_change("delete", memory_id, inherited)

    def _history_change(self, name: str, memory_id: str, call: Callable[[], T]) -> T:
        """Run a change of one memory, in its turn."""

        def in_turn() -> T:
            with self._history_recorder.turn_of(memory_id):
                return call()

        if self._history_db is not OWN_RECORDER:
            return call()
        return self._history_recorder.run(self, name, in_turn, memory_id)

    def _history_run(
        self, name: str, function: Callable[..., Any], *arguments: Any, **options: Any
    ) -> Any:
        call = functools.partial(function, *arguments, **options)
        if self._history_db is not OWN_RECORDER:
            return call()
        return self._history_recorder.run(self, name, call)

    @property
    def _history_steps(self) -> ThreadSteps:
        """The steps of its own operations."""
        return ThreadSteps(self, self._history_recorder)

    def restore(
        self,
        memory_id: str,
        *,
        to: Moment,
        metadata: Mapping[str, Any] | None = None,
        actor_id: str | None = None,
        role: str | None = None,
    ) -> dict[str, Any]:
        """Restore a memory as it was at a moment; see `AsyncMemory.restore`."""
        check_moment("to", to)
        given = check_metadata(metadata)
        require_own_history(self._history_db, "restore")

        def restored() -> HistoryRecord:
            return run_to_completion(
                restore_memory(self._history_steps, memory_id, to, given, actor_id, role)
            )

        return self._history_change("restore", memory_id, restored).as_dict()

    @takes(rollback_request)
    def rollback(self, asked: RollbackRequest) -> RollbackReport:
        """Take memories back to their state at an instant; see `AsyncMemory.rollback`."""
        return self._history_take_back("rollback", asked)

    @takes(undo_request)
    def undo(self, asked: RollbackRequest) -> RollbackReport:
        """Take back what a run did, or what has a cause; see `AsyncMemory.undo`."""
        return self._history_take_back("undo", asked)

    def _history_take_back(self, name: str, asked: RollbackRequest) -> RollbackReport:
        require_own_history(self._history_db, name)
        return take_back_blocking(
            self._history_steps, asked, functools.partial(self._history_change, name)
        )

    @takes(check_request)
    def check(self, asked: CheckRequest) -> MemoryCheck:
        """Compare the vector store with the history; see `AsyncMemory.check`."""
        require_own_history(self._history_db, "check")
        return check_memory_blocking(
            self._history_steps, asked, functools.partial(self._history_change, "check")
        )

    def learn_owners(self) -> LearnedOwners:
        """Learn unknown owners of the history's memories; see `AsyncMemory.learn_owners`."""
        require_own_history(self._history_db, "learn_owners")
        learned: LearnedOwners = self._history_run(
            "learn_owners", lambda: run_to_completion(learn(self._history_steps))
        )
        return learned

    @takes(new_forget_request)
    def forget(self, asked: ForgetRequest) -> ForgetReport:
        """Forget an owner: in the vector store and in the history; see `AsyncMemory.forget`."""
        require_own_history(self._history_db, "forget")
        report: ForgetReport = self._history_run(
            "forget", lambda: run_to_completion(forget(self._history_steps, asked))
        )
        return report

    def reset(self) -> None:
        """Empty the vector store and the history, as mem0 does. The history stays open."""
        self._history_run("reset", self._history_reset)

    def _history_reset(self) -> None:
        if self._history_db is not OWN_RECORDER:
            self._history_reset_all()
            # mem0 has closed the assigned object and created a history of its own.
            if "_history_recorder" in vars(self):
                self._history_db = OWN_RECORDER
            else:
                self._history_record_into(self.config.history_db_path, {})
            return
        resets = self._history_recorder.resets
        self._history_recorder.is_resetting = True
        try:
            self._history_reset_all()
        finally:
            self._history_recorder.is_resetting = False
        if self._history_recorder.resets == resets:
            self._history_recorder.reset()  # up to 2.0.6 mem0 drops its table itself

    def _history_reset_all(self) -> None:
        given, self.config = self.config, without_history(self.config)
        self._history_is_set_by_mem0 = True
        try:
            super().reset()
        finally:
            self.config = given
            self._history_is_set_by_mem0 = False

    def close(self) -> None:
        """Refuse new calls, wait for those in other threads, and close the history. Idempotent."""
        if self._history_db is not OWN_RECORDER:
            assigned, self._history_db = self._history_db, None
            if assigned is not None and assigned is not DELETED:
                assigned.close()
        if "_history_recorder" in vars(self):
            self._history_recorder.close_store()


def _needs_a_url() -> InvalidInput:
    return InvalidInput(
        "Memory needs a URL, not a manager: a manager belongs to an event loop, which a blocking "
        "call would stop. Give the manager to AsyncMemory"
    )
