"""Checks and limits on one caller's queries and changes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from starlette.exceptions import HTTPException

from async_history._core.reading.filters import check_scopes
from async_history.errors import InvalidInput
from async_history.web._access import Access


class OwnerFilter(TypedDict, total=False):
    """The scopes of the owner whose memories are asked for."""

    user_id: str | None
    agent_id: str | None
    run_id: str | None
    app_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewLimits:
    """Limits of one request. Tests give smaller ones.

    Attributes:
        page_size: most records or memories of a page.
        part: most records of one read, where texts are short.
        page_chars: characters of texts after which a page ends.
        walked: most records that are read to find the memories of a page.
        asked: most queries that are sent to find the memories of a page.
        memory_records: most records of a memory that is read as a whole.
        named: most memories, or record ids, that a change may name.
        scan_first: records that the first read of a search may look at.
        search_s: seconds after which a search ends with what it has found. Where no index finds the
            records, it would otherwise read the whole history.
    """

    page_size: int = 200
    part: int = 50
    page_chars: int = 8 << 20
    walked: int = 1_000
    asked: int = 200
    memory_records: int = 10_000
    named: int = 1_000
    scan_first: int = 64
    search_s: float = 0.15


class Reach:
    """The checks of a `View` on what a caller asks for and changes.

    Args:
        access: the caller's rights.
        write: whether this page may change the history.
        limits: the limits of a request.
    """

    def __init__(self, access: Access, *, write: bool, limits: ViewLimits) -> None:
        self.owner: Mapping[str, Any] = {} if access.owner is None else access.owner.as_dict()
        self.can_write = write and access.write
        self.limits = limits

    @property
    def is_limited(self) -> bool:
        """Whether the caller is limited to one owner's memories."""
        return bool(self.owner)

    def scopes(self, given: OwnerFilter) -> dict[str, Any]:
        """Return the owner to query: the given one, within the caller's.

        Raises:
            HTTPException: it is another owner.
        """
        asked = scopes_given(given)
        if any(asked.get(name, value) != value for name, value in self.owner.items()):
            raise HTTPException(403, "you may see memories of one owner only; leave the owner out")
        return {**asked, **self.owner}

    def require_unlimited(self, what: str) -> None:
        """Refuse what concerns other owners too, if the caller is limited to one."""
        if self.is_limited:
            raise HTTPException(403, f"you may see memories of one owner only, not {what}")

    def require_write(self) -> None:
        """Refuse a change if the page or the caller may not change anything."""
        if not self.can_write:
            raise HTTPException(403, "this page is read-only, or you may not change the history")

    def page_size(self, given: int) -> int:
        """Check the size of a page."""
        if not 1 <= given <= self.limits.page_size:
            raise InvalidInput(f"page_size must be 1 to {self.limits.page_size}, not {given}")
        return given

    def named(self, name: str, given: Iterable[str]) -> tuple[str, ...]:
        """Check the number of named memories, records or scopes."""
        named = tuple(given)
        if len(named) > self.limits.named:
            raise InvalidInput(f"{name} has {len(named):,} names; give {self.limits.named:,}")
        return named


def scopes_given(given: OwnerFilter) -> dict[str, Any]:
    """Return the scopes of an owner that were given, by name.

    Raises:
        InvalidInput: naming the scope that can't be used.
    """
    return dict(
        check_scopes(
            user_id=given.get("user_id"),
            agent_id=given.get("agent_id"),
            run_id=given.get("run_id"),
            app_id=given.get("app_id"),
        )
    )
