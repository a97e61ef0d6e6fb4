"""Erasure requests and limits."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from async_history._core.reading.filters import Pairs
from async_history._core.records.new_records import new_id
from async_history._core.records.values import check_name
from async_history._core.validation import check_flag, check_iterable, shown
from async_history._core.writing.erased_names import Name
from async_history.errors import InvalidInput

Vacuuming = bool | Literal["full"]
"""Whether texts outside the tables are overwritten. "full": even if that locks the tables
(PostgreSQL).
"""


def check_vacuuming(value: object) -> Vacuuming:
    """Return `value` if it is a `Vacuuming`.

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
    """Limits of an erasure's steps.

    Attributes:
        records: most records read in one transaction, for which writers wait.
        names: most small memories, or session scopes, erased in one transaction. In separate
            transactions each took thirty times as long as a write.
        noted: most memories and session scopes noted as erased in one transaction, which on a
            server waits for running writes.
    """

    records: int = 300
    names: int = 100
    noted: int = 5_000


@dataclass(frozen=True, slots=True)
class EraseRequest:
    """A checked erasure request: texts of memories, of an actor or of an owner, and messages.

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
    """Check the arguments of an erasure.

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
