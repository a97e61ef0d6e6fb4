"""How an erasure goes through a store: whose texts it takes, and in which transactions.

Of a memory it takes both texts of all its records. Of an actor it takes both texts of the actor's
records, the actor's name on them, and in others' records of the same memory every text that is to
the letter one the actor recorded: `old_memory` of the change that came after, a text brought back.

Only the actor's records tell what the actor recorded. So the actor's memories are erased whole, as
many in one transaction as have few records together. One that has many is walked through three
times, in small transactions: what the actor recorded is collected, as digests, then it is taken out
of others' records, and out of the actor's own last. Killed at any place, it can be begun again.

Each memory is read once, or three times, however the actor's records are spread: an erasure costs
as much as the memories that it goes through are long.
"""

from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from async_history._core.erase_transaction import (
    OWN,
    Decision,
    Done,
    EraseTransaction,
    Place,
    collect_told,
    erase_memories,
    erase_messages,
    erase_next,
    erase_places,
    erase_whole,
    look,
    take_told,
)
from async_history._core.retention import EraseRequest, ErasureReport, Residue

T = TypeVar("T")

_NAMES_AT_ONCE: Final = 100
"""Memories, or session scopes, whose texts go in one step where they are few: in transactions of
their own each took thirty times as long as to write."""


class ErasureSteps(Protocol):
    """What a backend does for an erasure."""

    async def begin(self, asked: EraseRequest) -> None:
        """Note that the erasure has begun."""

    async def step(self, work: Callable[[EraseTransaction], Coroutine[Any, Any, T]]) -> T:
        """Do work in one transaction, in its turn among the writes."""

    async def clean(self, *, vacuum: bool) -> Residue:
        """Overwrite what is left outside of the tables, and tell what can't be."""

    async def remains(self) -> Residue:
        """Tell what an erasure would not reach, and change nothing."""

    async def finish(self, asked: EraseRequest) -> tuple[int, int] | None:
        """Note that the erasure is done; return how many records and messages were noted.

        None where none of it is kept.
        """


async def erase_in_steps(
    steps: ErasureSteps, asked: EraseRequest, *, vacuum: bool
) -> ErasureReport:
    """Erase, a step at a time. Interrupted, it is begun again: what is erased stays erased."""
    if not asked.dry_run:
        await steps.begin(asked)
    erasure = _Erasure(steps, asked)
    await erasure.run()
    records, messages = erasure.records, erasure.messages
    if asked.dry_run:
        remains = await steps.remains()
    else:
        remains = await steps.clean(vacuum=vacuum)
        # A step whose commit was lost on its way back is done again, and finds nothing any more.
        records, messages = await steps.finish(asked) or (records, messages)
    return ErasureReport(
        done=not asked.dry_run,
        records=records,
        messages=messages,
        copies=remains.copies,
        remains=remains.sentences,
        erasure_id=None if asked.dry_run else asked.id,
    )


class _Erasure:
    """The walks of one erasure, and what they have erased so far."""

    def __init__(self, steps: ErasureSteps, asked: EraseRequest) -> None:
        self._step = steps.step
        self._asked = asked
        self.records = 0
        self.messages = 0

    async def run(self) -> None:
        asked = self._asked
        for memory_ids in _parts(asked.memory_ids):
            await self._memories(memory_ids)
        if asked.actor_id is not None:
            await self._actor(asked.actor_id)
        for session_scopes in _parts(asked.session_scopes):
            self.messages += await self._step(partial(erase_messages, asked, session_scopes))

    async def _memories(self, memory_ids: Sequence[str]) -> None:
        """Erase memories. Those that have more than a step are halved: in the end one with very
        many is alone, and its records are not looked up again with each step of the others."""
        left: list[tuple[Sequence[str], Place | None]] = [(memory_ids, None)]
        while left:
            names, after = left.pop()
            done = await self._step(partial(erase_memories, self._asked, names, after))
            self.records += done.records
            if done.after is not None:
                half = len(names) // 2
                left += [(part, done.after) for part in (names[:half], names[half:]) if part]

    async def _actor(self, actor_id: str) -> None:
        seen: set[str] = set()
        after: Place | None = None
        while True:
            found = await self._step(partial(look, actor_id, after, seen))
            if found.alone:
                work = partial(erase_places, self._asked, OWN, found.alone)
                self.records += await self._step(work)
            for memory_ids in found.groups():
                if found.is_large(memory_ids[0]):
                    await self._in_large_memory(actor_id, memory_ids[0])
                else:
                    work = partial(erase_whole, self._asked, actor_id, memory_ids)
                    self.records += await self._step(work)
            seen.update(found.sizes)
            after = found.after
            if after is None:
                return

    async def _in_large_memory(self, actor_id: str, memory_id: str) -> None:
        walk = partial(self._through, actor_id, memory_id)
        through: int | None = None
        while True:
            told: set[bytes] = set()
            collected = await walk(partial(collect_told, told))
            if through is None:
                through = collected.last
            if not self._asked.dry_run:  # the third walk would count them again
                await walk(partial(take_told, told, with_own=False))
            done = await walk(partial(take_told, told, with_own=True))
            # One of the actor's that was committed in between, before the place where the first
            # walk ended, is still there, so that its copies can be found.
            if self._asked.dry_run or done.left is None or done.left > through:
                return

    async def _through(self, actor_id: str, memory_id: str, decide: Decision) -> Done:
        """Walk through a memory, a transaction at a time."""
        after: Place | None = None
        last, left = 0, None
        while True:
            work = partial(erase_next, self._asked, actor_id, memory_id, after, decide)
            done = await self._step(work)
            self.records += done.records
            last = max(last, done.last)
            left = done.left if left is None else left
            after = done.after
            if after is None:
                return Done(last=last, left=left)


def _parts(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[at : at + _NAMES_AT_ONCE] for at in range(0, len(names), _NAMES_AT_ONCE))
