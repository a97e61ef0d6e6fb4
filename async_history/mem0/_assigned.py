# mypy: disable-error-code=import-untyped
"""What is assigned to a memory's `db`: this library's recorder, nothing, or another object."""

from typing import Final

from mem0.configs.base import MemoryConfig
from mem0.memory.storage import SQLiteManager

from async_history.blocking import BlockingHistoryManager
from async_history.errors import InvalidInput

OWN_RECORDER: Final = object()
"""Marks this library's own recorder, while no other object is assigned to `db`."""
DELETED: Final = object()
"""Marks no history, after `del memory.db`."""
_IN_MEMORY: Final = ":memory:"
"""The path for mem0's own code, which would open and migrate a real one."""


def without_history(config: MemoryConfig) -> MemoryConfig:
    """Return mem0's configuration with a history in memory, which touches no file."""
    return config.model_copy(update={"history_db_path": _IN_MEMORY})


def is_made_by_mem0(value: object) -> bool:
    """Return whether mem0 created this from a configuration of `without_history`."""
    return isinstance(value, SQLiteManager | BlockingHistoryManager) and value.db_path == _IN_MEMORY


def require_own_history(assigned: object, name: str) -> None:
    """Check that a history of this library is assigned, which the call with this name needs.

    Raises:
        InvalidInput: another object is assigned.
    """
    if assigned is not OWN_RECORDER:
        raise InvalidInput(
            f"{name} needs a history of this library; a {type(assigned).__name__} was assigned to "
            "db"
        )
