"""The restoration of a memory's text of a moment: whether it is needed, and what it records.

It is not in `undoing`, because writing, on which undoing depends, also records restorations.
"""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeGuard

from async_history._core.operations.operations import StoreOperation, new_operation
from async_history._core.reading.timeline import Moment, index_at, state_at
from async_history._core.records.json_object import quoted
from async_history._core.records.owners import Owner
from async_history._core.records.recording import repeating
from async_history._core.records.records import Event, HistoryRecord, is_alive, made_at
from async_history._core.records.values import in_utc
from async_history.errors import InvalidInput

RESTORE: Final = "restore"
"""The kind of the log entry."""


@dataclass(frozen=True, slots=True)
class Restoration:
    """A restoration: the memory's latest record, and the record whose text to restore.

    `owner` is the memory's owner, if it is known elsewhere but not in these records.
    """

    latest: HistoryRecord
    wanted: HistoryRecord
    owner: Owner | None = None

    @property
    def wanted_text(self) -> str:
        """The text to restore."""
        return self.wanted.new_memory or ""

    @property
    def is_needed(self) -> bool:
        """Whether the memory has another text or context now, or is deleted."""
        latest, wanted = self.latest, self.wanted
        return (
            not is_alive(latest)
            or latest.new_memory != wanted.new_memory
            or wanted.context not in (None, latest.context)
        )

    def repeating(self) -> AbstractContextManager[None]:
        """Return a context in which the new record is refused if the wanted text was erased."""
        return repeating(self.wanted.id, self.wanted.new_memory)

    def record(self, actor_id: str | None, role: str | None) -> dict[str, Any]:
        """Return the columns of the new record: an UPDATE, or an ADD if the memory is deleted."""
        known = {
            "memory_id": self.latest.memory_id,
            "new_memory": self.wanted.new_memory,
            "actor_id": actor_id,
            "role": role,
            "owner": self.owner,
            "context": self.wanted.context,
        }
        if not is_alive(self.latest):
            return {**known, "event": Event.ADD}
        return {
            **known,
            "event": Event.UPDATE,
            "old_memory": self.latest.new_memory,
            "created_at": made_at(self.latest),
        }


def can_be_restored(record: HistoryRecord | None) -> TypeGuard[HistoryRecord]:
    """Return whether a memory's last record as of a moment has a text to restore."""
    return record is not None and is_alive(record) and record.new_memory is not None


def restoration(memory_id: str, to: Moment, actor_id: str | None) -> StoreOperation:
    """Return the log entry for restoring a memory."""
    arguments = json.loads(restore_arguments(memory_id, to))
    return new_operation(RESTORE, arguments, actor_id=actor_id)


def restore_arguments(memory_id: str, to: Moment) -> str:
    """Return the arguments of the log entry for restoring a memory, as JSON."""
    moment = to if isinstance(to, int) else quoted(in_utc(to).isoformat())
    return f'{{"memory_id":{quoted(memory_id)},"to":{moment}}}'


def restoration_of(memory_id: str, records: Sequence[HistoryRecord], to: Moment) -> Restoration:
    """Return the restoration of a memory's text of a moment.

    Raises:
        InvalidInput: the memory is unknown or did not exist then, or its text is not in the
            history.
    """
    if not records:
        raise InvalidInput(f"there is no history of {memory_id!r}, so nothing to restore")
    wanted = state_at(memory_id, records, to)
    if wanted is None:
        was = "did not exist yet" if index_at(memory_id, records, to) < 0 else "was deleted"
        raise InvalidInput(f"{memory_id!r} {was} at {_shown(to)}; restore to when it was there")
    if wanted.new_memory is None:
        raise InvalidInput(
            f"what {memory_id!r} said at {_shown(to)} is not in its history; restore to another "
            "version"
        )
    return Restoration(records[-1], wanted)


def _shown(when: Moment) -> str:
    return f"version {when}" if isinstance(when, int) else when.isoformat()


class RestorationTarget(Protocol):
    """The part of a history manager that restoring needs."""

    async def batch_add_history(
        self, records: Sequence[dict[str, Any]], *, if_latest: HistoryRecord | None
    ) -> list[HistoryRecord]:
        """Append records if `if_latest` is still the latest record."""


async def append_restoration(
    history: RestorationTarget, plan: Restoration, actor_id: str | None, role: str | None
) -> HistoryRecord:
    """Append the record of a restoration; if none is needed, return the memory's latest record.

    Raises:
        HistoryConflict: the memory changed, or its text was erased, since its history was read.
    """
    if not plan.is_needed:
        return plan.latest
    with plan.repeating():
        (record,) = await history.batch_add_history(
            [plan.record(actor_id, role)], if_latest=plan.latest
        )
    return record
