"""Which of a step's records are pruned, for every database alike.

A record goes when it is old and enough later ones of its memory stay. A memory goes as a whole when
all its records are old and its latest is a DELETE, or nothing has to be kept: its latest record
never goes before the others, or the memory would be back at an earlier state.

A record without a time of its own (old files have them) is dated by the one before it. Those two
go with the whole memory or not at all.

Lives here: the decision. Not here: any SQL, and whose turn it is.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Protocol

from async_history.retention import PRUNED_AT_ONCE, PruneStep, Pruning, Reached


@dataclass(frozen=True, slots=True)
class Seen:
    """A record as pruning sees it.

    `is_old` is None where it has no time of its own. `goes_alone` tells whether it is old and
    enough later ones of its memory are there, of which the next one has a time of its own.
    """

    position: int
    id: str
    memory_id: str
    is_delete: bool
    is_old: bool | None
    goes_alone: bool


class PruneSteps(Protocol):
    """What a backend does inside a step's transaction."""

    async def ends(self) -> tuple[int, int] | None:
        """Return the positions of the first and the last record; None where there is none."""

    async def window(self, asked: Pruning, after: int, last: int, limit: int) -> Sequence[Seen]:
        """Return the records behind a position and up to another, in order."""

    async def latest(self, records: Sequence[Seen]) -> Set[int]:
        """Return the positions of those records that are the latest of their memories."""

    async def whole(self, asked: Pruning, memory_ids: Sequence[str]) -> Sequence[Seen]:
        """Return all records of some memories, memory by memory, each's in order.

        One without a time of its own is as old as the one before it.
        """

    async def remove(self, records: Sequence[Seen]) -> int:
        """Remove records; return how many were still there."""


async def prune_step(asked: Pruning, reached: Reached | None, steps: PruneSteps) -> PruneStep:
    """Prune the next few records. The caller has the transaction, and the turn."""
    if reached is None:
        ends = await steps.ends()
        if ends is None:
            return PruneStep(0, 0, None)
        reached = Reached(ends[0] - 1, ends[0] - 1, ends[1])
    seen = await steps.window(asked, reached.position, reached.last, PRUNED_AT_ONCE)
    going = {one.position: one for one in seen if one.goes_alone}
    memories_gone = 0
    for records in await _gone_as_a_whole(asked, seen, steps):
        memories_gone += 1
        for one in records:
            # In a dry run, what went alone before is still there, and counted already.
            if not (asked.dry_run and one.goes_alone):
                going[one.position] = one
    removed = len(going) if asked.dry_run else await steps.remove(list(going.values()))
    is_last = len(seen) < PRUNED_AT_ONCE
    return PruneStep(
        removed,
        memories_gone,
        None if is_last else Reached(seen[-1].position, reached.first, reached.last),
    )


async def _gone_as_a_whole(
    asked: Pruning, seen: Sequence[Seen], steps: PruneSteps
) -> list[list[Seen]]:
    """Return, memory by memory, the records of those that go at the latest of them."""
    maybe = [
        one
        for one in seen
        if not one.goes_alone
        and (one.is_delete or asked.keep_last == 0)
        and one.is_old is not False
    ]
    # A whole memory is looked at once, at its latest record, not at each of its deletions.
    latest = await steps.latest(maybe) if maybe else frozenset()
    gone: list[list[Seen]] = []
    if latest:
        memory_ids = dict.fromkeys(one.memory_id for one in maybe if one.position in latest)
        found = await steps.whole(asked, list(memory_ids))
        for _, group in groupby(found, key=attrgetter("memory_id")):
            records = list(group)
            if records[-1].position in latest and all(one.is_old for one in records):
                gone.append(records)
    return gone


def goes_alone(asked: Pruning, are_old: Sequence[bool | None], index: int) -> bool:
    """Tell it of a record of a whole memory; `are_old` has each one's own `is_old`."""
    return (
        are_old[index] is True
        and len(are_old) - index > max(asked.keep_last, 1)
        and are_old[index + 1] is not None
    )
