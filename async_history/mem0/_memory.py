"""mem0's synchronous `Memory` on the synchronous face."""

import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Self

from mem0.configs.base import MemoryConfig
from mem0.memory import main as mem0_main
from mem0.memory.storage import SQLiteManager

from async_history.blocking import BlockingHistoryManager
from async_history.errors import InvalidInput
from async_history.manager import HistoryManager
from async_history.mem0._restoring import bring_back_blocking, check_metadata
from async_history.timeline import Moment, check_moment

_NOWHERE: Final = ":memory:"
"""The path mem0's own code gets to see: it would open a real one, and migrate it its way."""


def without_history(config: MemoryConfig) -> MemoryConfig:
    """Return mem0's configuration with a history that touches no file."""
    return config.model_copy(update={"history_db_path": _NOWHERE})


class _History(BlockingHistoryManager):
    """What mem0 takes for its `SQLiteManager`: mem0's reset closes it, and ours stays open."""

    connection = None
    """mem0 up to 2.0.6 drops its table through it where there is one; `Memory.reset` does that."""
    resets = 0
    """How often it was reset."""

    def reset(self) -> None:
        self.resets += 1
        super().reset()

    def close(self) -> None:
        """Do nothing: `Memory.close` closes it."""

    def ask(self, function: Callable[[HistoryManager], Awaitable[Any]]) -> Any:
        """Ask the manager what mem0's `SQLiteManager` has no call for."""
        return self._call(function)

    def end(self) -> None:
        """Close it."""
        super().close()


class Memory(mem0_main.Memory):  # type: ignore[misc]  # mem0 has no type information
    """mem0's `Memory` with its history in a store of this library.

    Args:
        config: mem0's own.
        history: a URL (see `open_history`). Without it mem0's `history_db_path` counts, where a URL
            is welcome too. "" and "null://" switch the history off.
    """

    def __init__(
        self,
        config: MemoryConfig | None = None,
        *,
        history: str | os.PathLike[str] | None = None,
    ) -> None:
        config = config or MemoryConfig()
        self._record_into(config.history_db_path if history is None else history)
        try:
            super().__init__(without_history(config))
        except BaseException:
            self.close()
            raise
        self.config = config

    @classmethod
    def from_config(
        cls, config_dict: dict[str, Any], *, history: str | os.PathLike[str] | None = None
    ) -> Self:
        """Make one from mem0's configuration as a mapping."""
        if history is not None:
            config_dict = {**config_dict, "history_db_path": os.fspath(history)}
        memory: Self = super().from_config(config_dict)
        return memory

    def _record_into(self, where: str | os.PathLike[str]) -> None:
        if isinstance(where, HistoryManager):
            raise InvalidInput(
                "Memory needs a URL: a manager belongs to a loop, which a blocking call would stop"
            )
        self._history = _History(where or "null://")

    @property
    def db(self) -> _History:
        """What mem0 takes for its history."""
        return self._history

    @db.setter
    def db(self, made_by_mem0: object) -> None:
        """Close what mem0 made instead of ours: a database in memory that nobody needs."""
        if isinstance(made_by_mem0, SQLiteManager):
            made_by_mem0.close()

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
        ask = self._history.ask
        return bring_back_blocking(self, ask, memory_id, to, given, actor_id, role).as_dict()

    def reset(self) -> None:
        """Empty the vector store and the history, as mem0 does; the history stays open."""
        of_user, self.config = self.config, without_history(self.config)
        resets = self._history.resets
        try:
            super().reset()
        finally:
            self.config = of_user
        if self._history.resets == resets:
            self._history.reset()  # up to 2.0.6 mem0 drops its table through a connection itself

    def close(self) -> None:
        """Close the history. Idempotent."""
        self._history.end()
