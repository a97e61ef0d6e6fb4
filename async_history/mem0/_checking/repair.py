"""The close check of one memory, in its turn, and its repair if requested."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from async_history._core.reading.restoration import Restoration
from async_history._core.records.owners import SCOPES
from async_history._core.records.records import Event, HistoryRecord, made_at
from async_history._core.records.values import now_text, parse_time
from async_history._core.writing.new_submissions import owners_to_give
from async_history.blocking._sanitize import Sanitizer
from async_history.errors import (
    Erased,
    HistoryConflict,
    HistoryError,
    OwnerConflict,
    StorageRefused,
)
from async_history.mem0._checking.differences import (
    Difference,
    MemoryDifference,
    Repair,
    differences_of,
)
from async_history.mem0._late_changes import kept
from async_history.mem0._steps import Steps
from async_history.mem0._undoing.restore import change_vectors
from async_history.mem0._vectors.payloads import context_in, owner_in
from async_history.mem0._vectors.vector_changes import (
    Fields,
    VectorChange,
    VectorDeletion,
    VectorRestore,
    embed_with,
    payload_held,
    text_held,
)

CAUSE: Final = "check"
"""The key of a cause that names the check that made a repair's record."""
_OF_ONE_MEMORY: Final = (Erased, HistoryConflict, OwnerConflict, StorageRefused)
"""Errors of the history that affect only one memory."""


@dataclass(frozen=True, slots=True)
class CheckRequest:
    """A checked request for a check.

    Attributes:
        id: the check's own.
        owner: the owner of the memories to check; empty for all.
        repair: the side to repair, if any.
        dry_run: whether a repair only reports what it would do.
    """

    id: str
    owner: Mapping[str, str]
    repair: Repair | None
    dry_run: bool

    @property
    def acts(self) -> bool:
        """Whether anything may be changed."""
        return self.repair is not None and not self.dry_run


@dataclass(slots=True)
class SuspectMemory:
    """A memory whose vector store and history seem to differ.

    It is compared again in its turn: the difference may have been a running operation.
    """

    memory: Any
    asked: CheckRequest
    memory_id: str
    found: tuple[Difference, ...] = ()
    reason: str | None = None
    is_repaired: bool = False
    failure: Exception | None = None
    record: dict[str, Any] | None = None
    change: VectorChange | None = None
    gives_owner: bool = False
    latest: HistoryRecord | None = None
    written: HistoryRecord | None = None
    _held: Fields | None = None
    _leaves_owner: bool = False

    # In the memory's turn

    async def run(self, steps: Steps) -> None:
        """Compare and repair the memory."""
        await steps.call(
            self.prepare, await steps.ask(lambda history: history.get_history(self.memory_id))
        )
        if not self._is_to_be_changed:
            return
        steps.begin_change()
        record, latest = self.record, self.latest
        if record is not None:
            (self.written,) = await steps.ask(
                lambda history: history.batch_add_history([record], if_latest=latest)
            )
        elif self.gives_owner:
            given = owners_to_give(self._owner_to_give())
            await steps.ask(lambda history: history.store.writer.submit(given))
        if self.change is not None and latest is not None:
            async with kept(steps, latest):
                await change_vectors(steps, self.change, latest)
        self.is_repaired = not self._leaves_owner

    def prepare(self, records: Sequence[HistoryRecord]) -> None:
        """Compare, plan the repair, and do all steps that can fail before a change. It blocks."""
        self._held = held = payload_held(self.memory, self.memory_id)
        self.found = differences_of(records, held)
        self.latest = records[-1] if records else None
        if not self.found or self.asked.repair is None:
            return
        if self.asked.repair == "history":
            self._plan_history(self.latest, held)
        else:
            self._plan_vectors(records, held)
        self._leaves_owner = self.asked.repair == "history" and Difference.OWNER in self.found
        self.is_repaired = not self.asked.acts and self._is_planned and not self._leaves_owner
        if self.asked.acts and isinstance(self.change, VectorRestore):
            self.change = self.change.with_embedding(embed_with(self.memory))

    @property
    def _is_planned(self) -> bool:
        return self.record is not None or self.change is not None or self.gives_owner

    @property
    def _is_to_be_changed(self) -> bool:
        return self.asked.acts and self._is_planned

    # Plans

    def _plan_history(self, latest: HistoryRecord | None, held: Fields | None) -> None:
        """Plan a record of the vector store's state."""
        if Difference.OWNER in self.found:
            self.reason = "an owner can't be changed in the history; repair the vector store"
        if held is None and latest is not None:
            self.record = self._record(
                Event.DELETE,
                old_memory=latest.new_memory,
                created_at=made_at(latest),
                context=latest.context,
            )
            return
        if held is None:
            return
        text = text_held(held)
        if text is None:
            self.reason = "the vector store has no text of it"
        elif latest is None or Difference.DELETED in self.found:
            self.record = self._record(
                Event.ADD,
                new_memory=text,
                created_at=_when(held, latest, "created_at"),
                actor_id=_text_in(held, "actor_id"),
                role=_text_in(held, "role"),
                **self._details(held, latest),
            )
        elif {Difference.TEXT, Difference.METADATA} & set(self.found):
            self.record = self._record(
                Event.UPDATE,
                old_memory=latest.new_memory,
                new_memory=text if latest.new_memory is not None else None,
                created_at=made_at(latest),
                updated_at=_when(held, latest, "updated_at"),
                **self._details(held, latest),
            )
        self.gives_owner = Difference.UNKNOWN_OWNER in self.found

    def _record(self, event: Event, **fields: Any) -> dict[str, Any]:
        return {
            "memory_id": self.memory_id,
            "event": event,
            **fields,
            "cause": {CAUSE: self.asked.id},
        }

    def _details(self, held: Fields, latest: HistoryRecord | None) -> dict[str, Any]:
        """Return the metadata of a payload, and the owner if the history does not know it."""
        sanitizer = Sanitizer()
        owner = owner_in(held, sanitizer)
        return {
            "owner": owner if latest is None or latest.owner is None else None,
            "context": context_in(self.memory_id, held, owner, held, sanitizer),
        }

    def _owner_to_give(self) -> dict[str, Any]:
        return {self.memory_id: owner_in(self._held or {}, Sanitizer())}

    def _plan_vectors(self, records: Sequence[HistoryRecord], held: Fields | None) -> None:
        """Plan the change of the vector store to the history's state."""
        latest = self.latest
        if latest is None:
            self.reason = "the history does not know it: repair the history, or delete the memory"
        elif Difference.DELETED in self.found:
            self.change = VectorDeletion(self.memory_id, held)
        elif self.found == (Difference.UNKNOWN_OWNER,):
            self.reason = "the history does not know its owner: call learn_owners"
        elif latest.new_memory is None:
            self.reason = "what it says is not in its history"
        else:
            change = VectorRestore.of(Restoration(latest, latest), records, held, {})
            if Difference.OWNER in self.found and latest.owner is not None:
                others = {n: value for n, value in change.fields.items() if n not in SCOPES}
                change = replace(change, fields={**others, **latest.owner.as_dict()})
            self.change = change

    # Outcome

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Catch errors that affect only this memory, for its outcome."""
        try:
            yield
        except _OF_ONE_MEMORY as error:
            self.is_repaired, self.reason = False, str(error)
        except HistoryError:
            raise
        except Exception as error:  # of the vector store or the model: in the report, or raised
            self.is_repaired, self.failure = False, error
            ahead = "" if self.written is None else ", after its record was written"
            self.reason = f"it failed{ahead}: {error!r}"

    def outcome(self) -> MemoryDifference | None:
        """Return the memory's difference; None if there is none."""
        if not self.found and self.failure is None:
            return None
        return MemoryDifference(
            memory_id=self.memory_id,
            differences=self.found,
            repaired=self.is_repaired,
            reason=self.reason,
            record_id=None if self.written is None else self.written.id,
        )


def _when(held: Fields, latest: HistoryRecord | None, name: str) -> str:
    """Return the time of a change from a payload; now, if it is not possible."""
    said = parse_time(str(held.get(name)))
    before = None if latest is None else latest.occurred_at
    if said is None or (before is not None and said <= before):
        return now_text()
    return said.isoformat()


def _text_in(held: Fields, name: str) -> str | None:
    value = held.get(name)
    return None if value is None else Sanitizer().text(name, value)
