"""Erasing forgets: texts go for good, and the fact of each change stays.

Of a memory it takes both texts of all its records, and their contexts and causes. Of an actor it
takes the same of the actor's records, the actor's name on them, and in others' records of the same
memory every text that is exactly one the actor recorded: `old_memory` of the change that came
after, a text brought back.

Of records by id it takes the same as of an actor's, but for the name. Of an owner it takes the
memories, deleted ones too, the buffered messages, and the owner's id; what comes late is refused
(`erased_names`).

Only the actor's records tell what the actor recorded. So the actor's memories are erased whole, as
many in one transaction as have few records together. One that has many is walked through three
times, in small transactions: what the actor recorded is collected, as digests, then it is taken out
of others' records, and out of the actor's own last. Killed at any place, it can be begun again.

Each memory is read once, or three times, however the actor's records are spread: an erasure costs
as much as the memories that it goes through are long.
"""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol, TypeVar

from async_history._core.erase_request import EraseRequest, Vacuuming
from async_history._core.erase_transaction import EraseTransaction, note
from async_history._core.erase_walks import ErasureWalks
from async_history._core.erased_names import Name, session_names, until_later
from async_history._core.erasures import ERASE
from async_history._core.operations import OperationLog, hashed, logged, new_operation
from async_history._core.wording import counted

T = TypeVar("T")


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
                f"{verb} nothing: no record or message with a text matches (actor_id is who made "
                "the change; user_id, agent_id, run_id and app_id are whose the memory is)"
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


class EraseBackend(Protocol):
    """What a database does for an erasure."""

    async def in_transaction(self, work: Callable[[EraseTransaction], Coroutine[Any, Any, T]]) -> T:
        """Do work in one transaction, in its turn among the writes."""

    async def clean(self, *, owner: Name | None, vacuum: Vacuuming) -> Residue:
        """Overwrite what is left outside of the tables; return what can't be.

        Args:
            owner: whose memories were erased, and data keys are to be destroyed.
            vacuum: how far to go.
        """

    async def residue(self) -> Residue:
        """Return what an erasure would not reach, and change nothing."""


class OwnedReader(Protocol):
    """What is read to erase an owner."""

    async def memories(self, owner: Name) -> Sequence[str]:
        """Return an owner's memories."""

    async def session_scopes(self, after: str, limit: int) -> Sequence[str]:
        """Return the first session scopes after `after`, in their order."""


async def erase_in_steps(
    backend: EraseBackend,
    log: OperationLog,
    asked: EraseRequest,
    owned: OwnedReader,
    *,
    vacuum: Vacuuming,
) -> ErasureReport:
    """Erase, a step at a time. Interrupted, it is begun again: what is erased stays erased.

    An owner is noted first: what is committed after that is found, or refused.
    """
    begun_at = datetime.now(UTC)
    if asked.owner is not None:
        if not asked.dry_run:
            await backend.in_transaction(partial(note, [asked.owner], begun_at))
        asked = replace(
            asked,
            memory_ids=tuple(await owned.memories(asked.owner)),
            session_scopes=(*asked.session_scopes, *await _sessions(owned, asked)),
        )
    walks = ErasureWalks(backend.in_transaction, asked, begun_at)
    if asked.dry_run:
        await walks.run()
        residue = await backend.residue()
        return _report(asked, residue, walks.records, walks.messages)
    operation = new_operation(ERASE, _arguments(asked, vacuum), operation_id=asked.id)
    async with logged(log, operation) as tally:
        await walks.run()
        residue = await backend.clean(owner=asked.owner, vacuum=vacuum)
    await until_later(begun_at)
    # A step whose commit was lost on its way back is done again, and finds nothing any more: the
    # log has counted it.
    return _report(asked, residue, *(tally.total or (walks.records, walks.messages)))


def _report(asked: EraseRequest, residue: Residue, records: int, messages: int) -> ErasureReport:
    return ErasureReport(
        done=not asked.dry_run,
        records=records,
        messages=messages,
        copies=residue.copies,
        remains=residue.sentences,
        erasure_id=None if asked.dry_run else asked.id,
    )


def _arguments(asked: EraseRequest, vacuum: Vacuuming) -> dict[str, Any]:
    """Return what the log has of a request. The records of the memories keep these ids, too."""
    scope, owner = asked.owner or ("owner", None)
    return {
        "reason": asked.reason,
        "memory_ids": asked.memory_ids,
        **hashed("actor_id", asked.actor_id),
        **hashed(scope, owner),
        "record_ids": len(asked.record_ids),
        "session_scopes": len(asked.session_scopes),
        "vacuum": vacuum,
    }


async def _sessions(owned: OwnedReader, asked: EraseRequest) -> list[str]:
    """Return the session scopes that name an owner, which are not named already."""
    found: list[str] = []
    after = ""
    while asked.owner is not None:
        scopes = await owned.session_scopes(after, asked.limits.records)
        if not scopes:
            break
        found += [scope for scope in scopes if session_names(scope, asked.owner)]
        after = scopes[-1]
    return [scope for scope in found if scope not in asked.session_scopes]
