"""A list of a vector store's memories, up to the store's limit."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any, Final

from async_history.mem0._vectors.payloads import unwatched
from async_history.mem0._vectors.vector_changes import Fields

_FIRST: Final = 1_024
_MORE: Final = 4
"""The factor for the next request if a list was full."""
_MOST: Final = 1 << 20
"""The most rows requested: a list is held in memory."""
_BOUNDS: Final = frozenset((100, 500, 1_000, 10_000, 16_384))
"""Limits of vector stores. A list of exactly this length may have been cut."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The memories that a vector store has listed.

    Attributes:
        payloads: their payloads, by id.
        limit: why there may be more; None if the list is complete, as far as known.
    """

    payloads: Mapping[str, Fields]
    limit: str | None


def list_memories(memory: Any, owner: Mapping[str, str], *, most: int = _MOST) -> Listing:
    """List the vector store's memories, or those of an owner. It blocks.

    mem0 cannot request the rest of a list. So a full list is requested again with a higher limit.
    If the store refuses that, the shorter list is used, and `limit` has the refusal.
    """
    ask = partial(list_rows, unwatched(memory.vector_store), owner)
    rows, count = ask(_FIRST), _FIRST
    limit: str | None = None
    while len(rows) >= count and limit is None:
        if count >= most:
            limit = f"only the first {count:,} were asked for"
            break
        count *= _MORE
        try:
            rows = ask(count)
        except Exception as error:  # the store's own limit, which is in the report
            limit = f"it lists at most its first {len(rows):,} ({error!r})"
    if limit is None and len(rows) in _BOUNDS:
        limit = f"it listed exactly {len(rows):,}, which may be its bound"
    payloads = ((row.id, getattr(row, "payload", None)) for row in rows)
    return Listing(
        {str(name): dict(payload) for name, payload in payloads if isinstance(payload, Mapping)},
        limit,
    )


def list_rows(store: Any, filters: Mapping[str, Any], limit: int) -> list[Any]:
    """Return up to `limit` rows that have these fields in their payloads. It blocks.

    The following rows cannot be requested, and many stores list fewer than requested.
    """
    parameters = signature(store.list).parameters
    is_old = "limit" in parameters and "top_k" not in parameters  # mem0 1.0
    listed = store.list(filters=dict(filters), **{"limit" if is_old else "top_k": limit})
    if not listed:
        return []
    return list(listed[0] if isinstance(listed[0], list | tuple) else listed)
