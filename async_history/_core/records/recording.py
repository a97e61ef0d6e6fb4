"""Causes of records, also for a whole part of a program."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from async_history._core.records.json_object import JsonObject, json_object, object_of_texts
from async_history._core.records.owners import Owner, new_owner
from async_history._core.records.values import check_name, check_text
from async_history._core.validation import shown
from async_history.errors import InvalidInput

INDEXED_CAUSES: Final = ("run_id", "trace_id", "request_id")
"""The keys of a cause that have an index."""
MOST_KEYS: Final = 32
"""The most keys of a record's cause, including those of `recording`."""
_MOST_KEY_CHARACTERS: Final = 64
_MOST_CHARACTERS: Final = 1_024


class RepeatedText(NamedTuple):
    """A stored record, and its text that a change records again."""

    record_id: str
    text: str | None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Values that apply to all records of a part of a program."""

    owner: Owner | None = None
    cause: JsonObject | None = None
    begun_at: datetime | None = None
    repeats: RepeatedText | None = None


_surroundings: ContextVar[Surroundings | None] = ContextVar("async_history_recording", default=None)
surroundings: Final = _surroundings.get
"""Return the values that apply to records made here; None if there are none."""


@contextmanager
def recording(
    *,
    cause: Mapping[str, str] | None = None,
    owner: Owner | Mapping[str, str | None] | None = None,
) -> Iterator[None]:
    """Give a cause, or an owner, to all records made inside.

    Tasks and threads started inside inherit it (a context variable). A record's own values take
    precedence: its owner replaces this one, and its cause is merged into this one, key by key. The
    same is true for a nested `with recording(…)`.

    Args:
        cause: why the records are made: short texts under keys of your choice, such as
            `request_id`.
        owner: the owner of the memories.

    Raises:
        InvalidInput: an argument is not valid (it is named), or nested causes have too many keys.
    """
    whose, why = with_surroundings(
        None if owner is None else new_owner(owner), None if cause is None else new_cause(cause)
    )
    around = _surroundings.get() or Surroundings()
    with _surrounded(replace(around, owner=whose, cause=why)):
        yield


@contextmanager
def repeating(record_id: str | None, text: str | None) -> Iterator[None]:
    """Note the record whose text the changes made inside record again, with `if_latest`.

    They are refused with `HistoryConflict` if the record has lost this text. A record without an
    id, which another program has written, cannot be found again: only what was erased by its memory
    or owner is refused then.
    """
    repeats = None if record_id is None else RepeatedText(record_id, text)
    around = _surroundings.get() or Surroundings()
    with _surrounded(replace(around, repeats=repeats)):
        yield


class operation:  # noqa: N801 - used like a function: `with operation():`
    """Note the begin of an operation that records changes later.

    Changes recorded inside count as begun now, also in tasks and threads started inside. So they
    cannot undo an erasure that begins later. Of nested operations the outer one counts. What is
    read inside may decide a change, so it is read where it was written, not from a replica.

    It is a class because each operation of mem0 enters it, and a generator takes three times as
    long.
    """

    __slots__ = ("_token",)

    def __enter__(self) -> None:
        self._token = _surroundings.set(begin_operation())

    def __exit__(self, *_: object) -> None:
        _surroundings.reset(self._token)


def begin_operation() -> Surroundings:
    """Return the values for all records of an operation that begins now; see `operation`."""
    around = _surroundings.get()
    if around is None:
        return Surroundings(begun_at=datetime.now(UTC))
    return around if around.begun_at else replace(around, begun_at=datetime.now(UTC))


def surround(now: Surroundings) -> None:
    """Apply values to all records that this task makes from now on."""
    _surroundings.set(now)


@contextmanager
def _surrounded(now: Surroundings) -> Iterator[None]:
    token = _surroundings.set(now)
    try:
        yield
    finally:
        _surroundings.reset(token)


def begun_at() -> datetime | None:
    """Return when the current operation began; None if none is noted."""
    around = surroundings()
    return None if around is None else around.begun_at


def repeated_text() -> RepeatedText | None:
    """Return the text that changes made here record again; None if none is noted."""
    around = surroundings()
    return None if around is None else around.repeats


def with_surroundings(
    owner: Owner | None, cause: JsonObject | None
) -> tuple[Owner | None, JsonObject | None]:
    """Return a record's owner and cause, completed with the surrounding ones.

    Raises:
        InvalidInput: the causes together have too many keys.
    """
    around = surroundings()
    if around is None:
        return owner, cause
    if cause is None:
        cause = around.cause
    elif around.cause is not None:
        cause = _joined(around.cause, cause)
    return owner or around.owner, cause


def _joined(around: JsonObject, cause: JsonObject) -> JsonObject:
    joined = {**around, **cause}
    if len(joined) > MOST_KEYS:
        raise InvalidInput(
            f"cause must have at most {MOST_KEYS} keys, and has {len(joined)} with those that "
            "recording(…) gives around it; give fewer"
        )
    return json_object("cause", joined)


def new_cause(given: Mapping[str, Any]) -> JsonObject | None:
    """Check a cause; return None for an empty one.

    Raises:
        InvalidInput: it is not a mapping of short texts, or has too many of them.
    """
    if type(given) is dict and 0 < len(given) <= MOST_KEYS and _are_plain(given):
        return object_of_texts(given.copy())
    if not isinstance(given, Mapping):
        raise InvalidInput(f"cause must be a mapping of texts, not {type(given).__name__}")
    if len(given) > MOST_KEYS:
        raise InvalidInput(f"cause must have at most {MOST_KEYS} keys, not {len(given)}")
    if not given:
        return None
    return object_of_texts(dict([check_cause(key, value) for key, value in given.items()]))


def _are_plain(given: Mapping[Any, Any]) -> bool:
    """Return whether all keys and texts are of the usual kind that is never refused."""
    for key, text in given.items():
        if not (
            type(key) is type(text) is str
            and 0 < len(key) <= _MOST_KEY_CHARACTERS
            and len(text) <= _MOST_CHARACTERS
            and key.isascii()
            and text.isascii()
            and "\0" not in key
            and "\0" not in text
        ):
            return False
    return True


def check_cause(key: object, value: object) -> tuple[str, str]:
    """Return a key of a cause and its text.

    Raises:
        InvalidInput: one of them is not text, or is too long.
    """
    name = check_name("a key of cause", key)
    text = check_text(f"cause[{name!r}]", value)
    if len(name) > _MOST_KEY_CHARACTERS:
        raise InvalidInput(
            f"a key of cause has at most {_MOST_KEY_CHARACTERS} characters, not {shown(name)}"
        )
    if len(text) > _MOST_CHARACTERS:
        raise InvalidInput(
            f"cause[{name!r}] has at most {_MOST_CHARACTERS:,} characters, not {len(text):,}; "
            "what describes the memory belongs into its context"
        )
    return name, text
