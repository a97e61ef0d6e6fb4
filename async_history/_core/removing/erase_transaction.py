"""One transaction of an erasure: what it reads and erases, the same for every database.

In a dry run there is no `erasure_id`: texts are counted and nothing is changed. `limit` is the
number of records that a transaction reads, for which writers wait.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, NamedTuple, Protocol

from async_history._core.operations.operation_log import OperationLog
from async_history._core.writing.erased_names import Name

Columns = tuple[str, ...]
TEXTS: Final[Columns] = ("old_memory", "new_memory")
WHOLE: Final[Columns] = (*TEXTS, "context", "cause")
OWN: Final[Columns] = (*WHOLE, "actor_id")
LOST: Final = (TEXTS[:1], TEXTS[1:], TEXTS, WHOLE, OWN)
"""Parts of a record that are erased together: columns, its context, its cause."""


class RecordRef(NamedTuple):
    """The position of a record, with its id."""

    position: int
    id: str
    memory_id: str


@dataclass(frozen=True, slots=True)
class Texts:
    """Digests of a record's texts (at least 128 bits), and whether it is the actor's."""

    ref: RecordRef
    is_actors: bool
    old_memory: bytes | None
    new_memory: bytes | None


class EraseTransaction(Protocol):
    """The database's part of an erasure transaction.

    A walk continues after a record. If rows were renumbered and that record is another one now, a
    backend starts at the first record. So nothing is omitted, and erased records are skipped.
    """

    @property
    def log(self) -> OperationLog:
        """The store's log of operations, inside this transaction."""

    async def with_text(
        self, memory_ids: Sequence[str], after: RecordRef | None, limit: int
    ) -> Sequence[RecordRef]:
        """Return records of memories that still have a text, a context or a cause, in order."""

    async def of_actor(
        self, actor_id: str, after: RecordRef | None, limit: int
    ) -> Sequence[RecordRef]:
        """Return records of an actor, in order."""

    async def sizes(self, memory_ids: Sequence[str]) -> Mapping[str, int]:
        """Return the number of records of each memory that can be found by name."""

    async def texts(self, actor_id: str, memory_ids: Sequence[str]) -> Sequence[Texts]:
        """Return all records of some memories."""

    async def next_texts(
        self, actor_id: str, memory_id: str, after: RecordRef | None, limit: int
    ) -> Sequence[Texts]:
        """Return records of one memory, in order."""

    async def with_ids(self, record_ids: Sequence[str]) -> Sequence[RecordRef]:
        """Return the records with these ids that still have a text, a context or a cause."""

    async def redact(self, columns: Columns, refs: Sequence[RecordRef]) -> int:
        """Set columns of records to NULL; return how many records lost a value.

        `columns` are one of `LOST`.
        """

    async def note(self, names: Sequence[Name], at: datetime) -> Sequence[str]:
        """Store that names were erased at an instant, unless a later instant is already stored.

        They are stored as digests (`name_digest`) and kept after a reset. The data keys of owners
        among them seal nothing more. Returns the ids of these keys, to be destroyed in the end.
        """

    async def disown(self, scope: str, memory_ids: Sequence[str]) -> None:
        """Remove a scope from memories' owners. An owner without any other scope is removed."""

    async def messages(self, session_scopes: Sequence[str]) -> int:
        """Count scopes' buffered messages."""

    async def remove_messages(self, session_scopes: Sequence[str]) -> int:
        """Remove them; return how many."""


@dataclass(frozen=True, slots=True)
class Done:
    """The result of a transaction, and the record after which to continue; None after the last.

    `last` is the last position read, `left` the first chosen record that was not erased.
    """

    records: int = 0
    after: RecordRef | None = None
    last: int = 0
    left: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The actor's next memories by size, and records whose memory cannot be found by name."""

    sizes: Mapping[str, int]
    alone: Sequence[RecordRef]
    after: RecordRef | None
    limit: int

    def groups(self) -> Iterator[Sequence[str]]:
        """Yield the memories, several small ones together or a large one alone."""
        group: list[str] = []
        records = 0
        for memory_id, size in self.sizes.items():
            if group and records + size > self.limit:
                yield group
                group, records = [], 0
            group.append(memory_id)
            records += size
        if group:
            yield group

    def is_large(self, memory_id: str) -> bool:
        """Return whether a memory has more records than one transaction reads."""
        return self.sizes[memory_id] > self.limit


@dataclass(frozen=True, slots=True)
class Chosen:
    """Records whose texts are erased wherever they occur: an actor's, or those with some ids.

    `columns` are erased from these records themselves.
    """

    actor_id: str | None
    record_ids: Set[str]
    columns: Columns

    def has(self, record: Texts) -> bool:
        """Return whether a record is one of them."""
        return record.is_actors if self.actor_id is not None else record.ref.id in self.record_ids


Decision = Callable[[Texts], Columns | None]
"""The columns to erase from a record; None for a chosen one that has to wait."""


def collect_recorded(recorded: set[bytes], chosen: Chosen, record: Texts) -> Columns:
    """Erase nothing, and add the text that a chosen record recorded."""
    if chosen.has(record) and record.new_memory is not None:
        recorded.add(record.new_memory)
    return ()


def erase_recorded(
    recorded: Set[bytes], chosen: Chosen, record: Texts, *, with_own: bool
) -> Columns | None:
    """Erase these texts, and with `with_own` the chosen records' own columns."""
    if not chosen.has(record):
        return tuple(column for column in TEXTS if getattr(record, column) in recorded)
    if not with_own:
        return ()
    return chosen.columns if record.new_memory is None or record.new_memory in recorded else None


async def look(
    actor_id: str, after: RecordRef | None, seen: Set[str], limit: int, steps: EraseTransaction
) -> Found:
    """Find the memories of the actor's next records, except those already seen."""
    refs = await steps.of_actor(actor_id, after, limit)
    found = await _found(refs, seen, limit, steps)
    return replace(found, after=refs[-1] if len(refs) == limit else None)


async def look_up(
    record_ids: Sequence[str], limit: int, steps: EraseTransaction
) -> tuple[Set[str], Found]:
    """Find the memories of records; return also the ids of those records that are not erased."""
    refs = await steps.with_ids(record_ids)
    return {ref.id for ref in refs}, await _found(refs, frozenset(), limit, steps)


async def _found(
    refs: Sequence[RecordRef], seen: Set[str], limit: int, steps: EraseTransaction
) -> Found:
    unseen = [ref for ref in refs if ref.memory_id not in seen]
    names = list(dict.fromkeys(ref.memory_id for ref in unseen))
    sizes = await steps.sizes(names) if names else {}
    alone = [ref for ref in unseen if ref.memory_id not in sizes]
    return Found(sizes, alone, None, limit)


async def erase_whole(
    erasure_id: str | None, chosen: Chosen, memory_ids: Sequence[str], steps: EraseTransaction
) -> int:
    """Erase chosen records' texts in whole memories; return how many records lost something."""
    recorded: dict[str, set[bytes]] = defaultdict(set)
    records = await steps.texts(chosen.actor_id or "", memory_ids)
    for record in records:
        collect_recorded(recorded[record.ref.memory_id], chosen, record)
    lost: dict[Columns, list[RecordRef]] = defaultdict(list)
    for record in records:
        columns = erase_recorded(recorded[record.ref.memory_id], chosen, record, with_own=True)
        if columns:
            lost[columns].append(record.ref)
    return await _erase(erasure_id, lost, steps)


async def erase_next(
    erasure_id: str | None,
    chosen: Chosen,
    memory_id: str,
    after: RecordRef | None,
    decide: Decision,
    limit: int,
    steps: EraseTransaction,
) -> Done:
    """Erase chosen records' texts in the next records of a memory."""
    records = await steps.next_texts(chosen.actor_id or "", memory_id, after, limit)
    lost: dict[Columns, list[RecordRef]] = defaultdict(list)
    left: int | None = None
    for record in records:
        columns = decide(record)
        if columns is None:
            left = record.ref.position if left is None else left
        elif columns:
            lost[columns].append(record.ref)
    return Done(
        await _erase(erasure_id, lost, steps),
        records[-1].ref if len(records) == limit else None,
        last=records[-1].ref.position if records else 0,
        left=left,
    )


async def erase_memories(
    erasure_id: str | None,
    memory_ids: Sequence[str],
    after: RecordRef | None,
    limit: int,
    steps: EraseTransaction,
) -> Done:
    """Erase the texts of the next records of memories."""
    refs = await steps.with_text(memory_ids, after, limit)
    return Done(
        await erase_columns(erasure_id, WHOLE, refs, steps),
        refs[-1] if len(refs) == limit else None,
    )


async def erase_columns(
    erasure_id: str | None, columns: Columns, refs: Sequence[RecordRef], steps: EraseTransaction
) -> int:
    """Erase columns of records; return the number of records."""
    return await _erase(erasure_id, {columns: refs}, steps)


async def _erase(
    erasure_id: str | None, lost: Mapping[Columns, Sequence[RecordRef]], steps: EraseTransaction
) -> int:
    """Erase columns of records; return the number of records."""
    if erasure_id is None:
        return sum(map(len, lost.values()))
    # Not the number found: an earlier try may have been committed since.
    records = sum([await steps.redact(*each) for each in lost.items() if each[1]])
    if records:
        await steps.log.add(erasure_id, records, 0)
    return records


async def disown(scope: str, memory_ids: Sequence[str], steps: EraseTransaction) -> None:
    """Remove an owner from memories whose texts were erased."""
    await steps.disown(scope, memory_ids)


async def note(names: Sequence[Name], at: datetime, steps: EraseTransaction) -> Sequence[str]:
    """Store that names were erased: see `EraseTransaction.note`."""
    return await steps.note(names, at)


async def forget_actor(actor_id: str, steps: EraseTransaction) -> None:
    """Remove the name of an erased actor from the log of operations."""
    await steps.log.forget_actor(actor_id)


async def erase_messages(
    erasure_id: str | None, session_scopes: Sequence[str], steps: EraseTransaction
) -> int:
    """Remove the messages of session scopes; return their number. Without an id only count."""
    if erasure_id is None:
        return await steps.messages(session_scopes)
    messages = await steps.remove_messages(session_scopes)
    if messages:
        await steps.log.add(erasure_id, 0, messages)
    return messages
