"""What is to be erased, and how much at once."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from async_history._core.erased_names import Name
from async_history._core.filters import Pairs
from async_history._core.new_records import new_id
from async_history._core.validation import check_flag, check_iterable, shown
from async_history._core.values import check_name
from async_history.errors import InvalidInput

Vacuuming = bool | Literal["full"]
"""Whether what is left outside of the tables is overwritten. "full": also where that keeps others
from the tables meanwhile (PostgreSQL)."""


def check_vacuuming(value: object) -> Vacuuming:
    """Return `value` if it is one.

    Raises:
        InvalidInput: it is not.
    """
    if value == "full":
        return "full"
    if not isinstance(value, bool):
        raise InvalidInput(f"vacuum must be True, False or 'full', not {shown(value)}")
    return value


@dataclass(frozen=True, kw_only=True, slots=True)
class EraseLimits:
    """How much an erasure does at once.

    Attributes:
        records: looked at in one transaction, which writers wait for.
        names: memories, or session scopes, whose texts go in one transaction where they are few:
            in transactions of their own each took thirty times as long as to write.
        noted: memories that are noted as erased in one transaction, for which a server waits until
            those that are writing have ended.
    """

    records: int = 300
    names: int = 100
    noted: int = 5_000


@dataclass(frozen=True, slots=True)
class EraseRequest:
    """What is to be erased: texts of memories, of an actor or of an owner, and messages.

    `owner` is a scope and its id.
    """

    id: str
    memory_ids: tuple[str, ...]
    record_ids: tuple[str, ...]
    actor_id: str | None
    owner: Name | None
    session_scopes: tuple[str, ...]
    reason: str
    dry_run: bool
    limits: EraseLimits


def new_erase_request(
    memory_ids: Iterable[str],
    actor_id: str | None,
    session_scopes: Iterable[str],
    reason: str,
    *,
    owner: Pairs = (),
    record_ids: Iterable[str] = (),
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
        ("record_ids", "record_id", record_ids),
        ("session_scopes", "session_scope", session_scopes),
    ):
        check_iterable(plural, names)
        given[plural] = tuple(dict.fromkeys(check_name(singular, name) for name in names))
    if actor_id is not None:
        actor_id = check_name("actor_id", actor_id)
    named = [name for name in ("memory_ids", "record_ids") if given[name]]
    named += ["an actor_id"] * (actor_id is not None) + [f"a {scope}" for scope, _ in owner]
    if len(named) > 1:
        raise InvalidInput(f"erase {' or '.join(named)}, one after the other")
    if not named and not given["session_scopes"]:
        raise InvalidInput(
            "name what to erase: memory_ids, record_ids, actor_id, an owner or session_scopes"
        )
    return EraseRequest(
        new_id(),
        given["memory_ids"],
        given["record_ids"],
        actor_id,
        owner[0] if owner else None,
        given["session_scopes"],
        check_name("reason", reason),
        check_flag("dry_run", dry_run),
        limits,
    )
