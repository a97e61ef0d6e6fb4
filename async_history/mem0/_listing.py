"""Lists of mem0's vector stores."""

from collections.abc import Mapping
from inspect import signature
from typing import Any


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
