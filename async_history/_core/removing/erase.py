"""Erasure: texts are removed for good; the event and time of each change are kept.

For a memory it removes both texts, the context and the cause of all its records. For an actor it
removes the same from the actor's records, and the actor's name. In others' records of the same
memory it removes every text equal to one that the actor recorded: the `old_memory` of the next
change, a restored text.

For records by id it removes the same as for an actor's, except the name. For an owner it erases the
memories, deleted ones too, the buffered messages, and the owner's id; late changes are refused
(`erased_names`).

Only the actor's records show what the actor recorded. So the actor's memories are erased as a
whole, several small ones in one transaction. A memory with many records is walked three times, in
small transactions. The first walk collects digests of the actor's texts, the second erases these
texts from others' records, and the last erases them from the actor's own. After a kill at any
point, it can be repeated.

Each memory is read once or three times, wherever the actor's records are. So the cost of an erasure
is proportional to the length of the memories.
"""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol, TypeVar

from async_history._core.operations.erasures import ERASE
from async_history._core.operations.operation_log import OperationLog, logged
from async_history._core.operations.operations import hashed, new_operation
from async_history._core.reading.cursors import Cursor
from async_history._core.reading.filters import Filter
from async_history._core.reading.query import PAGE_SIZE, HistoryQuery, PageRead, memories_of
from async_history._core.removing.erase_request import EraseRequest, Vacuuming
from async_history._core.removing.erase_transaction import EraseTransaction, note
from async_history._core.removing.erase_walks import ErasureWalks
from async_history._core.wording import counted
from async_history._core.writing.erased_names import Name, session_names, until_later

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureReport:
    """The report of an erasure, or of a dry run."""

    done: bool
    """False for a dry run: nothing was erased."""
    records: int = 0
    """Number of records that lost a text or their actor."""
    messages: int = 0
    """Number of messages that were removed from the buffers."""
    copies: tuple[str, ...] = ()
    """Paths of the copies of the store that this library made and that still have the texts."""
    remains: tuple[str, ...] = ()
    """Where else the texts may remain, and what to do about it: one sentence each."""
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
    """Where an erased text may remain after it was removed from the tables."""

    copies: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()


class EraseBackend(Protocol):
    """The database's part of an erasure."""

    async def in_transaction(self, work: Callable[[EraseTransaction], Coroutine[Any, Any, T]]) -> T:
        """Do work in one transaction, queued with the writes."""

    async def clean(self, *, key_ids: Sequence[str], vacuum: Vacuuming) -> Residue:
        """Overwrite the texts outside the tables; return where they can't be overwritten.

        Args:
            key_ids: the data keys of an erased owner, to destroy.
            vacuum: see `Vacuuming`.
        """

    async def residue(self) -> Residue:
        """Return what an erasure would not reach, without changing anything."""


class NameReader(Protocol):
    """The reads of what an owner's erasure names: see `Store.name_reader`."""

    async def page(self, wanted: Filter, after: Cursor | None, limit: int, ahead: int) -> PageRead:
        """Return a page of records."""

    async def scopes(self, after: str, limit: int) -> Sequence[str]:
        """Return the first session scopes after `after`, in their order."""


async def erase_in_steps(
    backend: EraseBackend,
    log: OperationLog,
    asked: EraseRequest,
    names: NameReader,
    *,
    vacuum: Vacuuming,
) -> ErasureReport:
    """Erase step by step. After an interruption, repeat it: erased texts stay erased.

    An owner is noted first, so that later commits are found or refused.
    """
    begun_at = datetime.now(UTC)
    key_ids: Sequence[str] = ()
    if asked.owner is not None:
        if not asked.dry_run:
            key_ids = await backend.in_transaction(partial(note, [asked.owner], begun_at))
        asked = replace(
            asked,
            memory_ids=tuple(await _memories(names, asked.owner)),
            session_scopes=(*asked.session_scopes, *await _sessions(names, asked)),
        )
    walks = ErasureWalks(backend.in_transaction, asked, begun_at)
    if asked.dry_run:
        await walks.run()
        residue = await backend.residue()
        return _report(asked, residue, walks.records, walks.messages)
    operation = new_operation(ERASE, _arguments(asked, vacuum), operation_id=asked.id)
    async with logged(log, operation) as tally:
        await walks.run()
        residue = await backend.clean(key_ids=key_ids, vacuum=vacuum)
    await until_later(begun_at)
    # If a commit's answer is lost, the step is repeated and finds nothing: the log has counted it.
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
    """Return a request's arguments for the log. The memories' records keep these ids too."""
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


async def _memories(names: NameReader, owner: Name) -> list[str]:
    """Return an owner's memories."""
    wanted = Filter(order="newest", owner=(owner,))
    return await memories_of([HistoryQuery(names.page, wanted, None, None, PAGE_SIZE)])


async def _sessions(names: NameReader, asked: EraseRequest) -> list[str]:
    """Return the session scopes that name an owner, without those already given."""
    found: list[str] = []
    after = ""
    while asked.owner is not None:
        scopes = await names.scopes(after, asked.limits.records)
        if not scopes:
            break
        found += [scope for scope in scopes if session_names(scope, asked.owner)]
        after = scopes[-1]
    return [scope for scope in found if scope not in asked.session_scopes]
