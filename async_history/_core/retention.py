"""Letting go: what may be pruned, what is to be erased, and the reports of both.

Pruning makes room: old records go, a living memory keeps its last known state. Erasing forgets:
texts go for good and the fact of each change stays. Both walk in small steps, so that writers wait
for one step at most and an interrupted walk is simply begun again.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from async_history._core.records import check_name, is_aware, new_id
from async_history._core.validation import check_count, check_flag, check_iterable
from async_history.errors import InvalidInput

PRUNED_AT_ONCE: Final = 500
"""Records looked at in one step of pruning, which writers wait for."""

Progress = Callable[[int, int], None]
"""Told how far a walk has come, and how far it goes: places in the order of recording."""


# Pruning


@dataclass(frozen=True, slots=True)
class PruneRequest:
    """What is to be pruned: records from before an instant, but a memory's last ones."""

    before: datetime
    keep_last: int
    dry_run: bool

    def is_old(self, moment: datetime | None) -> bool | None:
        """Return whether a record of this instant may go; None where its instant is not known."""
        return None if moment is None else moment < self.before


Edge = tuple[int, str]
"""The first of the last records of a memory that stay: its position and id."""


@dataclass(frozen=True, slots=True)
class PruneCursor:
    """How far a walk has come in the order of recording, and where it began and ends.

    `edges` are those of the memories that it met last; None of one that has too few records.
    """

    position: int
    first: int
    last: int
    edges: OrderedDict[str, Edge | None] = field(default_factory=OrderedDict)


@dataclass(frozen=True, slots=True)
class PruneStep:
    """What one step removed, and where the next begins; None after the last."""

    records: int
    memories_gone: int
    reached: PruneCursor | None


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What pruning removed, or with `done=False` (a dry run) would remove.

    `before` is the instant, aware. `memories_gone` of the memories have no record left. `batches`
    counts the transactions that removed something.
    """

    done: bool
    before: datetime
    records: int = 0
    memories_gone: int = 0
    batches: int = 0

    def outcome(self) -> str:
        """Return the outcome as one sentence for people."""
        verb = "removed" if self.done else "would remove"
        text = f"{verb} {_counted(self.records, 'record')} from before {self.before.isoformat()}"
        if self.memories_gone:
            text += f", {_counted(self.memories_gone, 'memory', 'memories')} as a whole"
        return text


def new_prune_request(
    older_than: datetime | timedelta, keep_last: int, *, dry_run: bool
) -> PruneRequest:
    """Check what is to be pruned.

    Raises:
        InvalidInput: naming the argument that can't be used.
    """
    if isinstance(older_than, timedelta):
        if older_than < timedelta():
            raise InvalidInput(f"older_than must not lie in the future, as {older_than} does")
        try:
            older_than = datetime.now(UTC) - older_than
        except OverflowError as error:
            raise InvalidInput(f"older_than reaches beyond year 1: {older_than}") from error
    if not is_aware(older_than):
        raise InvalidInput(
            "older_than must be a datetime with a time zone or a timedelta before now, "
            f"not {older_than!r}"
        )
    return PruneRequest(
        older_than, check_count("keep_last", keep_last), check_flag("dry_run", dry_run)
    )


async def prune_in_steps(
    step: Callable[[PruneRequest, PruneCursor | None], Awaitable[PruneStep]],
    asked: PruneRequest,
    on_progress: Progress | None,
) -> PruneReport:
    """Walk through the history as it was at the beginning, a step at a time."""
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


# Erasing


@dataclass(frozen=True, slots=True)
class EraseRequest:
    """What is to be erased: memories' texts, an actor's, and scopes' messages."""

    id: str
    memory_ids: tuple[str, ...]
    actor_id: str | None
    session_scopes: tuple[str, ...]
    reason: str
    dry_run: bool


@dataclass(frozen=True, slots=True)
class Erasure:
    """One erasure, as the store keeps it: when, why, whose, and how much. No text, no actor's name.

    `actor_sha256` is the SHA-256 of the actor's id in hexadecimal: whether somebody was erased can
    be checked, who was can't be read. `finished_at` is None of one that was interrupted, or runs.
    """

    id: str
    begun_at: datetime
    finished_at: datetime | None
    reason: str
    memory_ids: tuple[str, ...]
    actor_sha256: str | None
    records: int
    messages: int


@dataclass(frozen=True, slots=True)
class ErasureReport:
    """What an erasure did, or with `done=False` (a dry run) would do.

    `records` lost a text or their actor, `messages` are gone from the buffers. `copies` are files
    that this library itself made of the store and that still have the texts. `remains` tells, a
    sentence each, where else the texts may still be and what to do about it. `erasure_id` is its
    entry among `erasures()`; None in a dry run.
    """

    done: bool
    records: int = 0
    messages: int = 0
    copies: tuple[str, ...] = ()
    remains: tuple[str, ...] = ()
    erasure_id: str | None = None

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
            f"{verb} the texts of {_counted(self.records, 'record')} and "
            f"{_counted(self.messages, 'message')}"
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
    )


def actor_digest(actor_id: str | None) -> str | None:
    """Return what an erasure keeps of an actor's id."""
    return None if actor_id is None else hashlib.sha256(actor_id.encode()).hexdigest()


def _counted(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"
