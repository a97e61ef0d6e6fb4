# mypy: disable-error-code=import-untyped
"""mem0's synchronous `Memory` on the synchronous face."""

import functools
import os
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, Final, Self, TypeVar, Unpack

from mem0.configs.base import MemoryConfig
from mem0.memory import main as mem0_main
from mem0.memory.storage import SQLiteManager

from async_history._core.manager import HistoryManager
from async_history._core.options import HistoryOptions
from async_history._core.timeline import Moment, check_moment
from async_history.blocking import BlockingHistoryManager
from async_history.errors import InvalidInput
from async_history.mem0._blocking_operations import BlockingRecorder
from async_history.mem0._restore import check_metadata, restore_memory_blocking

T = TypeVar("T")

OURS: Final = object()
"""Stands for what this library gives mem0 as its history, where nothing else was assigned."""
_given: Final = ContextVar[tuple[str | os.PathLike[str] | None, bool, HistoryOptions]](
    "async_history_memory", default=(None, True, {})
)
"""What `Memory.from_config` was given besides mem0's configuration, for the constructor."""
_NOWHERE: Final = ":memory:"
"""The path mem0's own code gets to see: it would open a real one, and migrate it its way."""


def without_history(config: MemoryConfig) -> MemoryConfig:
    """Return mem0's configuration with a history that touches no file."""
    return config.model_copy(update={"history_db_path": _NOWHERE})


def is_made_by_mem0(value: object) -> bool:
    """Return whether mem0 made this for the configuration that `without_history` returned."""
    return isinstance(value, SQLiteManager | BlockingHistoryManager) and value.db_path == _NOWHERE


def _operation(name: str) -> Callable[..., Any]:
    """Make one of mem0's functions tell whether its history was written."""
    inherited = getattr(mem0_main.Memory, name)

    @functools.wraps(inherited)
    def operation(self: "Memory", *arguments: Any, **options: Any) -> Any:
        return self._run(functools.partial(inherited, self, *arguments, **options))

    return operation


class Memory(mem0_main.Memory):  # type: ignore[misc]  # mem0 has no type information
    """mem0's `Memory` with its history in a store of this library.

    Args:
        config: mem0's own.
        history: a URL (see `open_history`). Without it mem0's `history_db_path` counts, where a URL
            is welcome too. "" and "null://" switch the history off.
        turns_between_processes: see `AsyncMemory`.
        options: what `open_history` takes besides the URL.

    The store is made, or adopted, at once, and stays open from its first use on: a process that is
    forked before opens it for itself. What is assigned to `db` is
    used instead, as mem0 uses it.
    """

    add = _operation("add")
    update = _operation("update")
    delete_all = _operation("delete_all")
    _add_to_vector_store = _operation("_add_to_vector_store")  # mem0 1.0 calls it in a thread
    _create_memory = _operation("_create_memory")
    _create_procedural_memory = _operation("_create_procedural_memory")

    _assigned: Any = None
    """What somebody assigned to `db`; nothing in one that was made without its constructor."""
    _is_set_up_by_mem0 = False
    """Whether what is assigned to `db` now is assigned by mem0 itself."""

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
            history, turns_between_processes, options = _given.get()
        where = config.history_db_path if history is None else history
        if isinstance(where, HistoryManager):
            raise _needs_a_url()
        self._history = BlockingRecorder(
            where or "null://", options, between_processes=turns_between_processes
        )
        self._history.create()
        self._assigned = OURS
        self._is_set_up_by_mem0 = True
        super().__init__(without_history(config))
        self._is_set_up_by_mem0 = False
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
        """Make one from mem0's configuration as a mapping."""
        before = _given.set((history, turns_between_processes, options))
        try:
            memory: Self = super().from_config(config_dict)
        finally:
            _given.reset(before)
        return memory

    @property
    def db(self) -> Any:
        """What mem0 takes for its history."""
        return self._history if self._assigned is OURS else self._assigned

    @db.setter
    def db(self, value: Any) -> None:
        """Use what is assigned instead of ours.

        What mem0 makes instead of ours is closed: a database in memory that nobody needs.
        """
        if self._is_set_up_by_mem0 and is_made_by_mem0(value):
            value.close()
        elif isinstance(value, HistoryManager):
            raise _needs_a_url()
        else:
            self._assigned = OURS if value is self.__dict__.get("_history", OURS) else value

    @property
    def vector_store(self) -> Any:
        """mem0's vector store, which is used in a memory's turn while that is kept.

        Raises:
            StorageLocked: another process may have this memory's turn, before anything changed.
        """
        attributes = self.__dict__
        if self._assigned is OURS and "_history" in attributes:
            self._history.require_turn()
        try:
            return attributes["vector_store"]
        except KeyError:
            raise AttributeError("this Memory has no vector_store yet") from None

    @vector_store.setter
    def vector_store(self, value: Any) -> None:
        self.__dict__["vector_store"] = value

    @vector_store.deleter
    def vector_store(self) -> None:
        del self.__dict__["vector_store"]

    def delete(self, memory_id: str) -> Any:
        """Delete a memory."""
        return self._changing(memory_id, functools.partial(super().delete, memory_id))

    def _update_memory(self, memory_id: str, *arguments: Any, **options: Any) -> Any:
        inherited = functools.partial(super()._update_memory, memory_id, *arguments, **options)
        return self._changing(memory_id, inherited)

    def _delete_memory(self, memory_id: str, existing_memory: object = None, **options: Any) -> Any:
        is_current = self._assigned is not OURS or self._history.has_turn_of(memory_id)
        # What was read before this memory's turn came may have changed: mem0 reads it again.
        if existing_memory is not None and is_current:
            options["existing_memory"] = existing_memory
        inherited = functools.partial(super()._delete_memory, memory_id, **options)
        return self._changing(memory_id, inherited)

    def _changing(self, memory_id: str, call: Callable[[], T]) -> T:
        """Change one memory, in its turn."""

        def in_turn() -> T:
            with self._history.turn_of(memory_id):
                return call()

        return call() if self._assigned is not OURS else self._history.run(in_turn)

    def _run(self, call: Callable[[], Any]) -> Any:
        return self._history.run(call) if self._assigned is OURS else call()

    def restore(
        self,
        memory_id: str,
        *,
        to: Moment,
        metadata: Mapping[str, Any] | None = None,
        actor_id: str | None = None,
        role: str | None = None,
    ) -> dict[str, Any]:
        """Bring back what a memory said at a moment; see `AsyncMemory.restore`."""
        check_moment("to", to)
        given = check_metadata(metadata)
        if self._assigned is not OURS:
            raise InvalidInput(
                f"restore needs a history of this library; a {type(self._assigned).__name__} was "
                "assigned to db"
            )
        history = self._history
        append_restoration = self._changing(
            memory_id,
            lambda: restore_memory_blocking(
                self,
                history.ask,
                memory_id,
                to,
                given,
                actor_id,
                role,
                begin_change=history.begin_change,
            ),
        )
        return append_restoration.as_dict()

    def reset(self) -> None:
        """Empty the vector store and the history, as mem0 does; the history stays open."""
        self._run(self._reset)

    def _reset(self) -> None:
        is_ours, resets = self._assigned is OURS, self._history.resets
        of_user, self.config = self.config, without_history(self.config)
        self._is_set_up_by_mem0 = True
        self._history.is_resetting = True
        try:
            super().reset()
        finally:
            self._history.is_resetting = False
            self.config = of_user
            self._is_set_up_by_mem0 = False
        if not is_ours:
            self._assigned = OURS  # mem0 replaces what it has closed by a history of its own
        elif self._history.resets == resets:
            self._history.reset()  # up to 2.0.6 mem0 drops its table by itself

    def close(self) -> None:
        """Refuse new calls, wait for those of other threads, and close the history. Idempotent."""
        if self._assigned is not OURS:
            assigned, self._assigned = self._assigned, None
            if assigned is not None:
                assigned.close()
        if "_history" in vars(self):
            self._history.end()


def _needs_a_url() -> InvalidInput:
    return InvalidInput(
        "Memory needs a URL: a manager belongs to a loop, which a blocking call would stop"
    )
