"""Query filters, checked."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

from async_history._core.records.recording import check_cause
from async_history._core.records.records import Event, HistoryRecord, known_event
from async_history._core.records.values import check_name, check_text, in_utc, is_aware, plain
from async_history._core.validation import check_choice, shown
from async_history.errors import InvalidInput

Order = Literal["oldest", "newest"]
"""Which record comes first."""
Pairs = tuple[tuple[str, str], ...]
"""Names, each with a value."""


@dataclass(frozen=True, slots=True)
class Filter:
    """The filter of a query; None matches everything. Times are aware instants.

    `owner` has scopes of the memory's owner, and `cause` keys of the record's cause, each with its
    required value. `through` is the last position, in the order of the query, to look at.
    """

    memory_ids: tuple[str, ...] | None = None
    actor_id: str | None = None
    role: str | None = None
    event: Event | None = None
    text: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    order: Order = "oldest"
    owner: Pairs = ()
    cause: Pairs = ()
    through: int | None = None


def new_filter(
    *,
    memory_id: str | Collection[str] | None,
    actor_id: str | None,
    role: str | None,
    event: Event | str | None,
    text: str | None,
    since: datetime | None,
    until: datetime | None,
    order: Order = "oldest",
    owner: Pairs = (),
    cause: Mapping[str, str] | None = None,
) -> Filter:
    """Check the filters of a query.

    Raises:
        InvalidInput: naming the argument that can't be used.
    """
    for name, moment in (("since", since), ("until", until)):
        if moment is not None and not is_aware(moment):
            raise InvalidInput(f"{name} must be a datetime with a time zone, not {shown(moment)}")
    change = known_event(plain(event))
    if event is not None and change is None:
        raise InvalidInput(f"event must be ADD, UPDATE or DELETE, not {shown(event)}")
    check_choice("order", order, get_args(Order))
    return Filter(
        _memory_ids(memory_id),
        None if actor_id is None else check_text("actor_id", actor_id),
        None if role is None else check_text("role", role),
        change,
        None if text is None else check_name("text", text),
        None if since is None else in_utc(since),
        None if until is None else in_utc(until),
        order,
        owner,
        check_cause_filter(cause),
    )


def check_scopes(
    *, user_id: str | None, agent_id: str | None, run_id: str | None, app_id: str | None
) -> Pairs:
    """Return the scopes of a filter by owner.

    Raises:
        InvalidInput: naming the scope that can't be used.
    """
    given = (("user_id", user_id), ("agent_id", agent_id), ("run_id", run_id), ("app_id", app_id))
    return tuple((name, check_name(name, value)) for name, value in given if value is not None)


def check_cause_filter(cause: object) -> Pairs:
    """Return the keys and texts of a filter by cause.

    Raises:
        InvalidInput: it is not a mapping of texts.
    """
    if cause is None:
        return ()
    if not isinstance(cause, Mapping):
        raise InvalidInput(f"cause must be a mapping of texts, not {type(cause).__name__}")
    return tuple(check_cause(key, value) for key, value in cause.items())


def has_owner_and_cause(record: HistoryRecord, owner: Pairs, cause: Pairs) -> bool:
    """Return whether a record matches a filter by owner and cause."""
    return all(
        record.owner is not None and getattr(record.owner, name) == value for name, value in owner
    ) and all(record.cause is not None and record.cause.get(name) == value for name, value in cause)


def _memory_ids(given: str | Collection[str] | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    if isinstance(given, str):
        return (check_text("memory_id", given),)
    if not isinstance(given, Collection):
        raise InvalidInput(f"memory_id must be text or several, not {type(given).__name__}")
    return tuple(dict.fromkeys(check_text("memory_id", memory_id) for memory_id in given))
