"""Pruning: old records are removed, but an existing memory keeps its last known state.

A record is removed when it is old and enough later records of its memory remain. A memory is
removed as a whole when all its records are old and its latest is a DELETE, or nothing has to be
kept. The latest record is never removed before the others, or the memory would return to an earlier
state.

A record whose time is unknown is kept, and its memory is not removed as a whole. Where the time of
a record without its own (in old files) is looked up at the previous one, these two are removed with
the whole memory or not at all.

A walk goes through the history in small steps. So writers wait for one step at most, and an
interrupted walk is simply repeated. Most databases look up what a step's decisions need, and
`prune_step` decides. PostgreSQL decides and removes in one statement: see its `prune_sets.py`.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import groupby
from operator import attrgetter

from async_history._core.operations.progress import Progress
from async_history._core.removing.erase_transaction import RecordRef
from async_history._core.removing.prune_request import PruneRequest
from async_history._core.removing.prune_transaction import (
    Candidate,
    Edge,
    EdgesTransaction,
    EndsTransaction,
    PruneTransaction,
    PruneTries,
)
from async_history._core.wording import counted


@dataclass(frozen=True, slots=True)
class PruneCursor:
    """A walk's current position in the order of recording, with its begin and end.

    `records` is how many the next step reads. `edges` are those of the last memories it saw; None
    for a memory with too few records.
    """

    position: int
    first: int
    last: int
    records: int
    edges: OrderedDict[str, Edge | None] = field(default_factory=OrderedDict)


@dataclass(frozen=True, slots=True)
class PruneStep:
    """The result of one step, and the begin of the next; None after the last."""

    records: int
    memories_gone: int
    reached: PruneCursor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneReport:
    """The report of a pruning, or of a dry run."""

    done: bool
    """False for a dry run: nothing was removed."""
    before: datetime
    """The aware instant before which records were removed."""
    records: int = 0
    """Number of removed records."""
    memories_gone: int = 0
    """Number of memories without any record left."""
    batches: int = 0
    """Number of transactions that removed something."""

    def outcome(self) -> str:
        """Return the outcome as one sentence for people."""
        verb = "removed" if self.done else "would remove"
        text = f"{verb} {counted(self.records, 'record')} from before {self.before.isoformat()}"
        if self.memories_gone:
            text += f", {counted(self.memories_gone, 'memory', 'memories')} as a whole"
        return text


async def prune_in_steps(
    step: Callable[[PruneRequest, PruneCursor | None], Awaitable[PruneStep]],
    asked: PruneRequest,
    on_progress: Progress | None,
) -> PruneReport:
    """Walk step by step through the history as it was at the beginning."""
    report = PruneReport(done=not asked.dry_run, before=asked.before)
    reached: PruneCursor | None = None
    while True:
        pruned = await step(asked, reached)
        report = replace(
            report,
            records=report.records + pruned.records,
            memories_gone=report.memories_gone + pruned.memories_gone,
            batches=report.batches + (pruned.records > 0),
        )
        reached = pruned.reached
        if reached is None:
            return report
        if on_progress is not None:
            on_progress(reached.position - reached.first, reached.last - reached.first)


async def prune_step(
    asked: PruneRequest,
    reached: PruneCursor | None,
    steps: PruneTransaction,
    tries: PruneTries[RecordRef] | None = None,
) -> PruneStep:
    """Prune the next few records, inside the caller's transaction.

    Args:
        tries: earlier tries of this step, if their outcome may be unknown.
    """
    tries = PruneTries[RecordRef]() if tries is None else tries
    reached = reached or await first_cursor(asked, steps)
    if reached is None:
        return PruneStep(*await tries.remove(asked, [], frozenset(), steps), None)
    seen = await steps.window(asked, reached.position, reached.last, reached.records)
    named = [one for one in seen if isinstance(one.memory_id, str)]
    old = {one.memory_id for one in named if one.is_old}
    edges = await known_edges(asked, old, reached.edges, steps)
    window = _Window(asked, named, edges)
    await window.look_ahead(steps)
    going = {one.position: one for one in window.prunable_alone()}
    ending: set[str] = set()
    for records in await _gone_as_a_whole(asked, window.latest(), steps):
        ending.add(records[0].memory_id)
        for one in records:
            # In a dry run, records removed alone are still there, but already counted.
            if not (asked.dry_run and one.prunable_alone):
                going[one.position] = one
    removed, memories_gone = len(going), len(ending)
    if not asked.dry_run:
        removed, memories_gone = await tries.remove(asked, list(going.values()), ending, steps)
    is_last = len(seen) < reached.records
    reached = None if is_last else replace(reached, position=seen[-1].position)
    return PruneStep(removed, memories_gone, reached)


def fitted(step: PruneStep, asked: PruneRequest, took_s: float) -> PruneStep:
    """Return a step after which the next one has the size that fits the time of this one."""
    reached = step.reached
    if reached is None:
        return step
    records = asked.limits.next_records(reached.records, took_s, asked.keep_last)
    return replace(step, reached=replace(reached, records=records))


async def first_cursor(asked: PruneRequest, steps: EndsTransaction) -> PruneCursor | None:
    """Return the position at the begin of the history; None if it is empty."""
    ends = await steps.ends()
    if ends is None:
        return None
    first, last = ends
    return PruneCursor(first - 1, first - 1, last, asked.limits.records)


async def known_edges(
    asked: PruneRequest,
    memory_ids: Iterable[str],
    kept: OrderedDict[str, Edge | None],
    steps: EdgesTransaction,
) -> Mapping[str, Edge | None]:
    """Return the first of the last records to keep of each memory; None if all are kept.

    An earlier step's result is valid as long as its record exists: removed records are older, and
    records added since are kept.
    """
    edges = {name: kept.pop(name) for name in memory_ids if name in kept}
    known = {RecordRef(*edge, name) for name, edge in edges.items() if edge is not None}
    there = await steps.still_there(known) if known else frozenset()
    gone = {ref.memory_id for ref in known - there}
    unknown = [name for name in memory_ids if name not in edges or name in gone]
    found = await steps.edges(unknown, max(asked.keep_last, 1) - 1) if unknown else {}
    edges |= {name: found.get(name) for name in unknown}
    kept.update(edges)
    while len(kept) > asked.limits.edges:
        kept.popitem(last=False)
    return edges


class _Window:
    """The records of a step, with what follows each in its memory.

    Attributes:
        beyond: old records with enough later records of their memory.
        may_end: records that may be the latest of a memory to remove as a whole.
    """

    def __init__(
        self, asked: PruneRequest, seen: Sequence[Candidate], edges: Mapping[str, Edge | None]
    ) -> None:
        first_kept = {name: edge[0] for name, edge in edges.items() if edge is not None}
        self.beyond = [
            one
            for one in seen
            if one.is_old and one.position < first_kept.get(one.memory_id, one.position)
        ]
        next_in_memory: dict[str, Candidate] = {}
        self._next: dict[int, Candidate] = {}
        for one in reversed(seen):
            following = next_in_memory.get(one.memory_id)
            if following is not None:
                self._next[one.position] = following
            next_in_memory[one.memory_id] = one
        are_beyond = {one.position for one in self.beyond}
        self.may_end = [
            one
            for one in seen
            if (one.is_delete or asked.keep_last == 0)
            and one.is_old is not False
            and one.position not in self._next
            and one.position not in are_beyond
        ]
        self._next_are_dated: Mapping[int, bool] = {}

    async def look_ahead(self, steps: PruneTransaction) -> None:
        """Look up next records outside the window, if the decision depends on them."""
        undated = [one for one in self.beyond if one.of_undated and one.position not in self._next]
        if undated or self.may_end:
            self._next_are_dated = await steps.next_are_dated(undated + self.may_end)

    def latest(self) -> list[Candidate]:
        """Return the last records of memories that may be removed as a whole."""
        return [one for one in self.may_end if one.position not in self._next_are_dated]

    def prunable_alone(self) -> list[Candidate]:
        """Return the records to remove whatever happens to their memory: they do not date the next
        record.
        """
        return [one for one in self.beyond if self._next_is_dated(one)]

    def _next_is_dated(self, one: Candidate) -> bool:
        if not one.of_undated:
            return True
        following = self._next.get(one.position)
        if following is not None:
            return following.is_old is not None
        return self._next_are_dated.get(one.position, False)


async def _gone_as_a_whole(
    asked: PruneRequest, latest: Sequence[Candidate], steps: PruneTransaction
) -> list[list[Candidate]]:
    """Return, by memory, the records of removable memories, given their latest records."""
    gone: list[list[Candidate]] = []
    if latest:
        positions = {one.position for one in latest}
        found = await steps.whole(asked, [one.memory_id for one in latest])
        for _, group in groupby(found, key=attrgetter("memory_id")):
            records = list(group)
            if records[-1].position in positions and all(one.is_old for one in records):
                gone.append(records)
    return gone
