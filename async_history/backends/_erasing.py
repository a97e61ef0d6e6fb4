"""Whose texts a step erases, for every database alike.

Of a memory: both texts of all its records. Of an actor: both texts of the actor's records, the
actor's name on them, and in others' records of the same memory every text that is to the letter
one the actor recorded: `old_memory` of the change that came after, a text brought back later. They
go in the transaction that erases the actor's record: after it nothing tells whose the copy is.

Lives here: the decision. Not here: any SQL, and whose turn it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from async_history.retention import ERASED_AT_ONCE, EraseStep, Erasing, Reaching


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record is."""

    position: int
    id: str
    memory_id: str


@dataclass(frozen=True, slots=True)
class Found:
    """Records in order, and the position to go on behind; None where nothing follows."""

    places: Sequence[Place]
    after: int | None


@dataclass(frozen=True, slots=True)
class Blanks:
    """Which records lose which of their columns."""

    old_memory: Sequence[Place] = ()
    new_memory: Sequence[Place] = ()
    actor_id: Sequence[Place] = ()

    def all(self) -> list[Place]:
        """Return every record that loses something, once."""
        return list(dict.fromkeys((*self.old_memory, *self.new_memory, *self.actor_id)))


class EraseSteps(Protocol):
    """What a backend does inside a step's transaction."""

    async def with_text(self, memory_ids: Sequence[str], after: int, limit: int) -> Found:
        """Return records of memories that have a text still."""

    async def of_actor(self, actor_id: str, after: int, limit: int) -> Found:
        """Return records of an actor."""

    async def copies(self, actor_id: str, places: Sequence[Place]) -> Blanks:
        """Return where others' records of the same memories have these records' `new_memory`."""

    async def blank(self, blanks: Blanks) -> None:
        """Make the columns NULL."""

    async def messages(self, session_scopes: Sequence[str]) -> int:
        """Count scopes' buffered messages."""

    async def remove_messages(self, session_scopes: Sequence[str]) -> None:
        """Remove them."""

    async def note(self, erasure_id: str, erased: EraseStep) -> None:
        """Add what was erased to the erasure's counts."""


async def erase_step(asked: Erasing, whose: Reaching, steps: EraseSteps) -> EraseStep:
    """Erase the next few texts. The caller has the transaction, and the turn."""
    blanks = Blanks()
    erased = EraseStep()
    if whose.session_scopes:
        erased = EraseStep(messages=await steps.messages(whose.session_scopes))
    elif whose.memory_ids:
        found = await steps.with_text(whose.memory_ids, whose.after, ERASED_AT_ONCE)
        blanks = Blanks(found.places, found.places)
        erased = EraseStep(len(found.places), after=found.after)
    elif whose.actor_id is not None:
        found = await steps.of_actor(whose.actor_id, whose.after, ERASED_AT_ONCE)
        copies = await steps.copies(whose.actor_id, found.places)
        blanks = Blanks(
            (*found.places, *copies.old_memory),
            (*found.places, *copies.new_memory),
            found.places,
        )
        erased = EraseStep(len(blanks.all()), after=found.after)
    if not asked.dry_run and (erased.records or erased.messages):
        if erased.records:
            await steps.blank(blanks)
        if whose.session_scopes:
            await steps.remove_messages(whose.session_scopes)
        await steps.note(asked.id, erased)
    return erased
