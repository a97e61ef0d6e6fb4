"""Restoring a memory of mem0.

The history is written first. If the memory has changed meanwhile, that write is refused and nothing
else has changed. Then the vector store is updated. If that fails, restoring again does only what is
missing.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from async_history._core.operations.operation_log import logged
from async_history._core.reading.restoration import (
    Restoration,
    RestorationTarget,
    append_restoration,
    restoration,
    restoration_of,
)
from async_history._core.reading.timeline import Moment
from async_history._core.records.records import HistoryRecord
from async_history._core.records.rows import fields_of
from async_history.errors import Erased, InvalidInput
from async_history.mem0._late_changes import kept
from async_history.mem0._operation_log import AskedLog
from async_history.mem0._steps import Steps, result_of
from async_history.mem0._threads.forks import LockFreeInChild
from async_history.mem0._vectors.unrecorded import unrecorded_text
from async_history.mem0._vectors.vector_changes import (
    VectorChange,
    VectorRestore,
    embed_with,
    payload_held,
)

_REMEDY: Final = "restore again to update it, which adds no second record"


def check_metadata(metadata: object) -> Mapping[str, Any]:
    """Return the caller's metadata; an empty mapping for None.

    Raises:
        InvalidInput: it is not a mapping.
    """
    if metadata is not None and not isinstance(metadata, Mapping):
        raise InvalidInput(f"metadata must be a mapping, not {type(metadata).__name__}")
    return metadata or {}


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A restoration prepared with all steps that can fail before a change.

    Attributes:
        latest: the memory's latest record.
        unrecorded: a record of the text that only the vector store has.
        change: the change of the vector store.
    """

    latest: HistoryRecord
    unrecorded: HistoryRecord | None
    change: VectorRestore

    @classmethod
    def by(
        cls,
        memory: Any,
        plan: Restoration,
        history: Sequence[HistoryRecord],
        metadata: Mapping[str, Any],
    ) -> "_Prepared":
        """Query the vector store and the embedding model. It blocks, and may fail."""
        latest = plan.latest
        held = payload_held(memory, latest.memory_id)
        unrecorded = unrecorded_text(history, held)
        if unrecorded is not None:
            plan = replace(plan, latest=unrecorded)
        change = VectorRestore.of(plan, history, held, metadata)
        return cls(latest, unrecorded, change.with_embedding(embed_with(memory)))

    @property
    def records(self) -> int:
        """The number of records that `append` writes."""
        return int(self.change.plan.is_needed) + int(self.unrecorded is not None)

    async def append(
        self, history: RestorationTarget, actor_id: str | None, role: str | None
    ) -> HistoryRecord:
        """Write the history; return the memory's new latest record."""
        if self.unrecorded is None:
            return await append_restoration(history, self.change.plan, actor_id, role)
        records = [fields_of(self.unrecorded), self.change.plan.record(actor_id, role)]
        with self.change.plan.repeating():
            *_, record = await history.batch_add_history(records, if_latest=self.latest)
        return record


async def restore_memory(
    steps: Steps,
    memory_id: str,
    to: Moment,
    metadata: Mapping[str, Any],
    actor_id: str | None,
    role: str | None,
) -> HistoryRecord:
    """Restore a memory; return the new record."""
    history = await steps.ask(lambda manager: manager.get_history(memory_id))
    plan = restoration_of(memory_id, history, to)
    prepared = await steps.call(_Prepared.by, steps.memory, plan, history, metadata)
    steps.begin_change()
    async with logged(AskedLog(steps.ask), restoration(memory_id, to, actor_id)) as tally:
        record = await steps.ask(lambda manager: prepared.append(manager, actor_id, role))
        tally.records = prepared.records
        async with kept(steps, record):
            with note_history_ahead(_REMEDY):
                await change_vectors(steps, prepared.change, record)
    return record


async def change_vectors(steps: Steps, change: VectorChange, record: HistoryRecord) -> None:
    """Change the vector store.

    The entities that mem0 2.x finds in texts come first: until the vector store has the new state,
    repeating the call does everything that is missing.
    """
    memory = steps.memory
    if change.changes_text and _keeps_entities(memory):
        memory_id, scope = change.memory_id, change.scope
        await steps.call(open_entities, memory)
        await result_of(memory._remove_memory_from_entity_store(memory_id, scope))
        if change.text is not None:
            await result_of(memory._link_entities_for_memory(memory_id, change.text, scope))
    await steps.call(change.put, memory, record)


def _keeps_entities(memory: Any) -> bool:
    """Whether this mem0 links memories to the entities in their texts: since 2.0."""
    return hasattr(memory, "_link_entities_for_memory")


def open_entities(memory: Any) -> Any:
    """Open the store of entities: mem0 removes nothing from it before it has been used."""
    with _opening.lock:  # mem0 opens it twice in two threads, which fails on local files
        return memory.entity_store


_opening: Final = LockFreeInChild()


@contextmanager
def note_history_ahead(remedy: str) -> Iterator[None]:
    """Add a note to an error of the vector store: the history is ahead of it."""
    try:
        yield
    except Erased:
        raise
    except BaseException as error:
        error.add_note(f"the history has the new state, and the vector store may not: {remedy}")
        raise
