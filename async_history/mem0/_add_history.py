"""mem0's `add_history`, which records one change."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any


class AddHistory(ABC):
    """Base of the replacements of mem0's `SQLiteManager`: one change is recorded like several."""

    def add_history(
        self,
        memory_id: str,
        old_memory: str | None,
        new_memory: str | None,
        event: str,
        *,
        created_at: str | None = None,
        updated_at: str | None = None,
        is_deleted: int = 0,
        actor_id: str | None = None,
        role: str | None = None,
    ) -> None:
        """Record one change, with the arguments of `SQLiteManager.add_history`."""
        change = {
            "memory_id": memory_id,
            "old_memory": old_memory,
            "new_memory": new_memory,
            "event": event,
            "created_at": created_at,
            "updated_at": updated_at,
            "is_deleted": is_deleted,
            "actor_id": actor_id,
            "role": role,
        }
        self._record([change])

    @abstractmethod
    def _record(self, changes: Sequence[Mapping[str, Any]]) -> None:
        """Record changes, given by mem0's names; all or none, in order."""
