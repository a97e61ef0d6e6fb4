"""What was erased by name: memories and owners, whose texts must not come back.

An owner's erasure begins by noting the owner's scope in the store, and then its memories, each with
the instant at which the erasure began. An erasure of memories begins by noting their texts. From
then on a change is refused

- of a memory that was erased with its owner, if it has a text, a context, a cause or an owner: such
  a memory gets no text any more, whoever records it and when;
- of a memory whose texts were erased after the change began, if it has a text, a context or a
  cause. What begins later is accepted: the memory goes on. So is a record under an id of the
  caller's, outside of an operation: it is given now, whatever its time;
- of any other memory, if the owner given with it was erased after the change began. A change began
  with the operation that it is part of (`operation`), or when its record was made: its id tells
  (`recorded_at`), or else its own time. What begins after an erasure is accepted: the same user may
  come back.

Messages are refused as the second. The clocks of the programs that share a store are taken to be
the same. Names are kept as digests: whether one was erased can be checked, but which can't be read.
They have no salt, since whoever reads the store would read it too.
"""

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from itertools import islice
from operator import attrgetter
from typing import Final

from async_history._core.owners import SCOPES
from async_history._core.records import HistoryRecord
from async_history._core.submissions import AddRecords, GiveOwners, SaveMessages, Submission
from async_history._core.values import parse_time
from async_history.errors import Erased

Name = tuple[str, str]
"""A memory, its texts, or an owner: "memory_id", "text" or a scope, and the id."""
MEMORY: Final = "memory_id"
"""What the name of a memory begins with that was erased with its owner."""
TEXTS: Final = "text"
"""What the name of a memory begins with whose texts were erased."""


def name_digest(name: Name) -> bytes:
    """Return the 128 bits under which a store keeps a name."""
    kind, value = name
    return blake2b(f"{kind}={value}".encode(), digest_size=16).digest()


async def until_later(at: datetime) -> None:
    """Return when the time that a new id tells, to the millisecond, is after an instant."""
    now = datetime.now(UTC)
    if now.replace(microsecond=now.microsecond // 1_000 * 1_000) <= at:
        await asyncio.sleep(0.001)


def names_in(batch: Iterable[Submission]) -> Sequence[Name]:
    """Return the names that decide whether a batch's submissions are refused, each once."""
    names: dict[Name, None] = {}
    for submission in batch:
        if isinstance(submission, SaveMessages):
            names.update(dict.fromkeys(names_of_session(submission.session_scope)))
            continue
        if isinstance(submission, GiveOwners):
            for memory_id, owner in submission.owners.items():
                names[MEMORY, memory_id] = None
                names.update(dict.fromkeys(owner.as_dict().items()))
            continue
        for record in submission.wanted:
            names[MEMORY, record.memory_id] = names[TEXTS, record.memory_id] = None
            if record.owner is not None:
                names.update(dict.fromkeys(record.owner.as_dict().items()))
    return list(names)


def earliest_begin(additions: Iterable[AddRecords]) -> int:
    """Return when the earliest of some additions may have begun, in microseconds since 1970.

    If no erasure began then or later, only a memory of them can have been erased, with its owner.
    0 where that is not known.
    """
    begun: list[datetime | None] = []
    ours: list[HistoryRecord] = []
    for submission in additions:
        if submission.names_ids:
            begun += [_began(submission, record) for record in submission.records]
            continue
        ours.append(submission.records[0])
        if submission.begun_at is not None:
            begun.append(submission.begun_at)
    if ours:  # a submission's ids were made in order, and their texts have that order
        begun.append(min(ours, key=_id).recorded_at)
    known = [instant for instant in begun if instant is not None]
    return microseconds(min(known)) if len(known) == len(begun) > 0 else 0


_id: Final = attrgetter("id")


def microseconds(instant: datetime) -> int:
    """Return an instant in microseconds since 1970."""
    return (instant - _EPOCH) // _MICROSECOND


def from_microseconds(since_epoch: int) -> datetime:
    """Return the instant of so many microseconds since 1970."""
    return _EPOCH + since_epoch * _MICROSECOND


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def require_not_erased(
    submission: AddRecords, records: Sequence[HistoryRecord], erased: Mapping[Name, datetime]
) -> None:
    """Refuse records that would bring back what was erased.

    Raises:
        Erased: the first of them.
    """
    for record in records:
        has_text = record.old_memory is not None or record.new_memory is not None
        tells = has_text or record.context is not None or record.cause is not None
        names = [] if record.owner is None else list(record.owner.as_dict().items())
        if (tells or names) and (MEMORY, record.memory_id) in erased:
            raise Erased(record.memory_id, MEMORY)
        made = _earlier(submission.begun_at, record.recorded_at)
        if tells and made is not None:  # else it is given now, whatever time it has
            _require_later(record.memory_id, (TEXTS, record.memory_id), made, erased)
        began = _began(submission, record)
        for name in names:
            _require_later(record.memory_id, name, began, erased)


def require_session_not_erased(submission: SaveMessages, erased: Mapping[Name, datetime]) -> None:
    """Refuse messages that would bring back what was erased.

    Raises:
        Erased: their session scope names an owner who was erased since they were given.
    """
    made = min((message.created_at or "" for message in submission.messages), default="")
    began = _earlier(submission.begun_at, parse_time(made) if made else None)
    for name in names_of_session(submission.session_scope):
        _require_later(submission.session_scope, name, began, erased)


def names_of_session(session_scope: str) -> Sequence[Name]:
    """Return the owners that a session scope of mem0's may name.

    It is `agent_id=…&run_id=…&user_id=…`, each once. Before mem0 2.2 the ids stand there as they
    are: one with "&run_id=" in it can't be told from two. Of very many parts some are left out.
    """
    found: dict[Name, None] = {}
    for scope, begin in islice(_begins(session_scope), _MOST_PARTS):
        ends = (part.start() for part in _PARTS.finditer(session_scope, begin))
        for end in (*islice(ends, _MOST_PARTS), len(session_scope)):
            value = session_scope[begin:end]
            found[scope, value] = found[scope, _unescaped(value)] = None
    return list(found)


def session_names(session_scope: str, name: Name) -> bool:
    """Return whether a session scope may name an owner: as mem0 2.2 escapes the id, or as it is."""
    scope, value = name
    return any(
        scope == named and _is_at(session_scope, begin, one)
        for named, begin in _begins(session_scope)
        for one in (value, _escaped(value))
    )


def _begins(session_scope: str) -> Iterator[tuple[str, int]]:
    """Yield the scopes that a session scope may name, and where their ids begin.

    What its first part names it does not name again: that stands in an id.
    """
    first = session_scope.partition("=")[0]
    for part in _PARTS.finditer(session_scope):
        scope = part[1]
        if scope in SCOPES and (part.start() == 0 or scope != first):
            yield scope, part.end()


def _is_at(session_scope: str, begin: int, value: str) -> bool:
    """Return whether an id stands there, up to another part or the end."""
    end = begin + len(value)
    return session_scope.startswith(value, begin) and (
        end == len(session_scope) or _PARTS.match(session_scope, end) is not None
    )


_PARTS: Final = re.compile("(?:^|&)([^=&]+)=")
_MOST_PARTS: Final = 16


def _require_later(
    what: str, name: Name, began: datetime | None, erased: Mapping[Name, datetime]
) -> None:
    at = erased.get(name)
    if at is not None and (began is None or began <= at):
        raise Erased(what, name[0])


def _began(submission: AddRecords, record: HistoryRecord) -> datetime | None:
    return _earlier(submission.begun_at, record.recorded_at or record.occurred_at)


def _earlier(one: datetime | None, other: datetime | None) -> datetime | None:
    return min((at for at in (one, other) if at is not None), default=None)


_ESCAPES: Final = (("%", "%25"), ("&", "%26"), ("=", "%3D"))
"""As in mem0's `_escape_scope_value` (mem0ai 2.2)."""


def _escaped(value: str) -> str:
    for plain, escape in _ESCAPES:
        value = value.replace(plain, escape)
    return value


def _unescaped(value: str) -> str:
    for plain, escape in reversed(_ESCAPES):
        value = value.replace(escape, plain)
    return value
