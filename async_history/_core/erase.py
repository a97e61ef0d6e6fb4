"""Erasing forgets: texts go for good, and the fact of each change stays.

Of a memory it takes both texts of all its records, and their contexts and causes. Of an actor it
takes the same of the actor's records, the actor's name on them, and in others' records of the same
memory every text that is to the letter one the actor recorded: `old_memory` of the change that came
after, a text brought back.

Only the actor's records tell what the actor recorded. So the actor's memories are erased whole, as
many in one transaction as have few records together. One that has many is walked through three
times, in small transactions: what the actor recorded is collected, as digests, then it is taken out
of others' records, and out of the actor's own last. Killed at any place, it can be begun again.

Each memory is read once, or three times, however the actor's records are spread: an erasure costs
as much as the memories that it goes through are long.
"""

from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol, TypeVar

from async_history._core.erase_transaction import (
    OWN,
    Decision,
    Done,
    EraseTransaction,
    RecordRef,
    collect_told,
    erase_memories,
    erase_messages,
    erase_next,
    erase_places,
    erase_whole,
    look,
    take_told,
)
from async_history._core.erasure_log import ErasureLog, new_erasure
from async_history._core.records import new_id
from async_history._core.validation import check_flag, check_iterable
from async_history._core.values import check_name
from async_history._core.wording import counted
from async_history.errors import InvalidInput

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class EraseLimits:
    """How much an erasure does at once.

    Attributes:
        records: looked at in one transaction, which writers wait for.
        names: memories, or session scopes, whose texts go in one transaction where they are few:
            in transactions of their own each took thirty times as long as to write.
    """

    records: int = 300
    names: int = 100


@dataclass(frozen=True, slots=True)
class EraseRequest:
    """What is to be erased: memories' texts, an actor's, and scopes' messages."""

    id: str
    memory_ids: tuple[str, ...]
    actor_id: str | None
    session_scopes: tuple[str, ...]
    reason: str
    dry_run: bool
    limits: EraseLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureReport:
    """What an erasure did, or in a dry run would do."""

    done: bool
    """False of a dry run: nothing was erased."""
    records: int = 0
    """Records that lost a text or their actor."""
    messages: int = 0
    """Messages that were removed from the buffers."""
    copies: tuple[str, ...] = ()
    """Files that this library itself made of the store, and that still have the texts: paths."""
    remains: tuple[str, ...] = ()
    """Where else the texts may still be, and what to do about it: a sentence each."""
    erasure_id: str | None = None
    """The `id` of its entry among `erasures()`; None in a dry run."""

    @property
    def matches_nothing(self) -> bool:
        """Whether there was no text to erase."""
        return not self.records and not self.messages

    def outcome(self) -> str:
        """Return the outcome as one sentence for people."""
        verb = "erased" if self.done else "would erase"
        if self.matches_nothing:
            return (
                f"{verb} nothing: no record or message with a text matches (records are matched by "
                "memory and by actor, messages by session scope)"
            )
        return (
            f"{verb} the texts of {counted(self.records, 'record')} and "
            f"{counted(self.messages, 'message')}"
        )


@dataclass(frozen=True, slots=True)
class Residue:
    """Where an erased text may still be, once it is in no table."""

    copies: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()


def new_erase_request(
    memory_ids: Iterable[str],
    actor_id: str | None,
    session_scopes: Iterable[str],
    reason: str,
    *,
    dry_run: bool,
    limits: EraseLimits,
) -> EraseRequest:
    """Check what is to be erased.

    Raises:
        InvalidInput: naming the argument that can't be used, or that nothing was named.
    """
    given: dict[str, tuple[str, ...]] = {}
    for plural, singular, names in (
        ("memory_ids", "memory_id", memory_ids),
        ("session_scopes", "session_scope", session_scopes),
    ):
        check_iterable(plural, names)
        given[plural] = tuple(dict.fromkeys(check_name(singular, name) for name in names))
    if actor_id is not None:
        actor_id = check_name("actor_id", actor_id)
        if given["memory_ids"]:
            raise InvalidInput("erase memory_ids or an actor_id, one after the other")
    if actor_id is None and not any(given.values()):
        raise InvalidInput("name what to erase: memory_ids, actor_id or session_scopes")
    return EraseRequest(
        new_id(),
        given["memory_ids"],
        actor_id,
        given["session_scopes"],
        check_name("reason", reason),
        check_flag("dry_run", dry_run),
        limits,
    )


class EraseBackend(Protocol):
    """What a database does for an erasure."""

    @property
    def log(self) -> ErasureLog:
        """The store's log of erasures, each of whose changes is a transaction of its own."""

    async def in_transaction(self, work: Callable[[EraseTransaction], Coroutine[Any, Any, T]]) -> T:
        """Do work in one transaction, in its turn among the writes."""

    async def clean(self, *, vacuum: bool) -> Residue:
        """Overwrite what is left outside of the tables; return what can't be."""

    async def residue(self) -> Residue:
        """Return what an erasure would not reach, and change nothing."""


async def erase_in_steps(
    backend: EraseBackend, asked: EraseRequest, *, vacuum: bool
) -> ErasureReport:
    """Erase, a step at a time. Interrupted, it is begun again: what is erased stays erased."""
    if not asked.dry_run:
        erasure = new_erasure(asked.id, asked.reason, asked.memory_ids, asked.actor_id)
        await backend.log.begin(erasure)
    walks = _Erasure(backend, asked)
    await walks.run()
    records, messages = walks.records, walks.messages
    if asked.dry_run:
        residue = await backend.residue()
    else:
        residue = await backend.clean(vacuum=vacuum)
        # A step whose commit was lost on its way back is done again, and finds nothing any more.
        records, messages = (await backend.log.finish(asked.id, datetime.now(UTC))) or (
            records,
            messages,
        )
    return ErasureReport(
        done=not asked.dry_run,
        records=records,
        messages=messages,
        copies=residue.copies,
        remains=residue.sentences,
        erasure_id=None if asked.dry_run else asked.id,
    )


class _Erasure:
    """The walks of one erasure, and what they have erased so far."""

    def __init__(self, backend: EraseBackend, asked: EraseRequest) -> None:
        self._in_transaction = backend.in_transaction
        self._asked = asked
        self._id = None if asked.dry_run else asked.id
        self._records = asked.limits.records
        self.records = 0
        self.messages = 0

    async def run(self) -> None:
        asked = self._asked
        for memory_ids in self._parts(asked.memory_ids):
            await self._memories(memory_ids)
        if asked.actor_id is not None:
            await self._actor(asked.actor_id)
        for session_scopes in self._parts(asked.session_scopes):
            self.messages += await self._in_transaction(
                partial(erase_messages, self._id, session_scopes)
            )

    async def _memories(self, memory_ids: Sequence[str]) -> None:
        """Erase memories. Those that have more than a step are halved: in the end one with very
        many is alone, and its records are not looked up again with each step of the others."""
        left: list[tuple[Sequence[str], RecordRef | None]] = [(memory_ids, None)]
        while left:
            names, after = left.pop()
            done = await self._in_transaction(
                partial(erase_memories, self._id, names, after, self._records)
            )
            self.records += done.records
            if done.after is not None:
                half = len(names) // 2
                left += [(part, done.after) for part in (names[:half], names[half:]) if part]

    async def _actor(self, actor_id: str) -> None:
        seen: set[str] = set()
        after: RecordRef | None = None
        while True:
            found = await self._in_transaction(partial(look, actor_id, after, seen, self._records))
            if found.alone:
                work = partial(erase_places, self._id, OWN, found.alone)
                self.records += await self._in_transaction(work)
            for memory_ids in found.groups():
                if found.is_large(memory_ids[0]):
                    await self._in_large_memory(actor_id, memory_ids[0])
                else:
                    work = partial(erase_whole, self._id, actor_id, memory_ids)
                    self.records += await self._in_transaction(work)
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
        after: RecordRef | None = None
        last, left = 0, None
        while True:
            work = partial(erase_next, self._id, actor_id, memory_id, after, decide, self._records)
            done = await self._in_transaction(work)
            self.records += done.records
            last = max(last, done.last)
            left = done.left if left is None else left
            after = done.after
            if after is None:
                return Done(last=last, left=left)

    def _parts(self, names: Sequence[str]) -> Iterator[Sequence[str]]:
        most = self._asked.limits.names
        return (names[at : at + most] for at in range(0, len(names), most))
