"""Names that were erased: memories and owners whose texts must not come back.

An owner's erasure first notes the owner's scope in the store, and then the owner's memories, each
with the instant at which the erasure began. An erasure of memories first notes their texts. From
then on, changes are refused:

- for a memory that was erased with its owner, if the change has a text, a context, a cause or an
  owner: such a memory never gets a text again;
- for a memory whose texts were erased after the change began, if the change has a text, a context
  or a cause. Later changes are accepted: the memory continues. A record with the caller's id,
  outside an operation, is accepted too: it counts as begun now, whatever its time;
- for any other memory, if the owner given with the change was erased after the change began. A
  change begins with its operation (`operation`), or when its record was made, by its id
  (`recorded_at`) or else its own time. Changes that begin after an erasure are accepted: the same
  user may come back.

Messages are refused by the second rule if an owner whom their session scope names, or the session
scope itself, was erased after they were given. The clocks of programs that share a store are
assumed to agree. Names are stored as digests: a given name can be checked, but names cannot be
read. The digests have no salt, because anyone who reads the store could read the salt too.
"""

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from itertools import islice
from operator import attrgetter
from typing import Final

from async_history._core.records.owners import SCOPES
from async_history._core.records.records import HistoryRecord
from async_history._core.records.values import parse_time
from async_history._core.writing.submissions import AddRecords, GiveOwners, SaveMessages, Submission
from async_history.errors import Erased

Name = tuple[str, str]
"""A memory, its texts, a session scope, or an owner: "memory_id", "text", "session_scope" or a
scope, and the id."""
MEMORY: Final = "memory_id"
"""The prefix of a memory's name that was erased with its owner."""
TEXTS: Final = "text"
"""The prefix of a memory's name whose texts were erased."""
SESSION: Final = "session_scope"
"""The prefix of a session scope's name whose messages were erased."""


def name_digest(name: Name) -> bytes:
    """Return a name's digest of 128 bits, as stored."""
    kind, value = name
    return blake2b(f"{kind}={value}".encode(), digest_size=16).digest()


async def until_later(at: datetime) -> None:
    """Wait until the time in a new id, to the millisecond, is after an instant."""
    now = datetime.now(UTC)
    if now.replace(microsecond=now.microsecond // 1_000 * 1_000) <= at:
        await asyncio.sleep(0.001)


def names_in(batch: Iterable[Submission]) -> Sequence[Name]:
    """Return the distinct names that decide whether a batch's submissions are refused."""
    names: dict[Name, None] = {}
    for submission in batch:
        if isinstance(submission, SaveMessages):
            names[SESSION, submission.session_scope] = None
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
    """Return the earliest possible begin of some additions, in microseconds since 1970.

    If no erasure began then or later, they can only be refused for a memory that was erased with
    its owner. 0 if the begin is not known.
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
    if ours:  # a submission's ids were made in order, and their texts sort in that order
        begun.append(min(ours, key=_id).recorded_at)
    known = [instant for instant in begun if instant is not None]
    return microseconds(min(known)) if len(known) == len(begun) > 0 else 0


_id: Final = attrgetter("id")


def microseconds(instant: datetime) -> int:
    """Return an instant in microseconds since 1970."""
    return (instant - _EPOCH) // _MICROSECOND


def from_microseconds(since_epoch: int) -> datetime:
    """Return an instant from microseconds since 1970."""
    return _EPOCH + since_epoch * _MICROSECOND


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def require_not_erased(
    submission: AddRecords, records: Sequence[HistoryRecord], erased: Mapping[Name, datetime]
) -> None:
    """Refuse records that would bring back erased texts.

    Raises:
        Erased: the first of them.
    """
    for record in records:
        has_text = record.old_memory is not None or record.new_memory is not None
        has_content = has_text or record.context is not None or record.cause is not None
        names = [] if record.owner is None else list(record.owner.as_dict().items())
        if (has_content or names) and (MEMORY, record.memory_id) in erased:
            raise Erased(record.memory_id, MEMORY)
        made = _earlier(submission.begun_at, record.recorded_at)
        if has_content and made is not None:  # otherwise it begins now, whatever its time is
            _require_later(record.memory_id, (TEXTS, record.memory_id), made, erased)
        began = _began(submission, record)
        for name in names:
            _require_later(record.memory_id, name, began, erased)


def require_session_not_erased(submission: SaveMessages, erased: Mapping[Name, datetime]) -> None:
    """Refuse messages that would bring back erased texts.

    Raises:
        Erased: their session scope, or an owner whom it names, was erased since they were given.
    """
    made = min((message.created_at or "" for message in submission.messages), default="")
    began = _earlier(submission.begun_at, parse_time(made) if made else None)
    scope = submission.session_scope
    for name in ((SESSION, scope), *names_of_session(scope)):
        _require_later(scope, name, began, erased)


def names_of_session(session_scope: str) -> Sequence[Name]:
    """Return the owners that a session scope of mem0 may name.

    It is `agent_id=…&run_id=…&user_id=…`, each once. Before mem0 2.2 the ids are not escaped: one
    with "&run_id=" in it looks like two. Some of very many parts are omitted.
    """
    found: dict[Name, None] = {}
    for scope, begin in islice(_begins(session_scope), _MOST_PARTS):
        ends = (part.start() for part in _PARTS.finditer(session_scope, begin))
        for end in (*islice(ends, _MOST_PARTS), len(session_scope)):
            value = session_scope[begin:end]
            found[scope, value] = found[scope, _unescaped(value)] = None
    return list(found)


def session_names(session_scope: str, name: Name) -> bool:
    """Return whether a session scope may name an owner, with the id escaped (mem0 2.2) or not."""
    scope, value = name
    return any(
        scope == named and _is_at(session_scope, begin, one)
        for named, begin in _begins(session_scope)
        for one in (value, _escaped(value))
    )


def _begins(session_scope: str) -> Iterator[tuple[str, int]]:
    """Yield the scopes that a session scope may name, and where their ids begin.

    A scope that its first part names does not come again: a second one is part of an id.
    """
    first = session_scope.partition("=")[0]
    for part in _PARTS.finditer(session_scope):
        scope = part[1]
        if scope in SCOPES and (part.start() == 0 or scope != first):
            yield scope, part.end()


def _is_at(session_scope: str, begin: int, value: str) -> bool:
    """Return whether an id is there, up to another part or the end."""
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
