"""The columns of a record's owner, context and cause, and conversions of their values."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final
from zlib import crc32

from async_history._core.encryption.sealed_records import SealedTexts
from async_history._core.records.json_object import JsonObject, json_text
from async_history._core.records.owners import SCOPES, Owner
from async_history._core.records.recording import INDEXED_CAUSES
from async_history._core.records.records import CAUSE, CONTEXT, MEMORY_ID, Fields

OWNERS_NUMBER: Final = (
    "CASE WHEN number = 0::pg_catalog.int8 THEN 0::pg_catalog.int8 ELSE"
    " number * 4294967296 + owners_state.xmin::pg_catalog.text::pg_catalog.int8 END"
)
"""What identifies a state of `owners_state`: its number, and the transaction that wrote its row.
Another table of that name, or a row that was restored, may have the same number."""
SCOPE_LIST: Final = ", ".join(SCOPES)
CAUSE_COLUMNS: Final[Mapping[str, str]] = {key: f"cause_{key}" for key in INDEXED_CAUSES}
"""The column with the hash of a cause, by the cause's key."""
DETAIL_COLUMNS: Final = (*SCOPES, "context", "cause", *CAUSE_COLUMNS.values())
_KEPT: Final = 16_384

OwnerByMemory = Mapping[str, Owner | None]
"""Owners of memories; None: the memory's owner is not known."""


@lru_cache(_KEPT)
def owner_of(*scopes: str | None) -> Owner | None:
    """Return the owner of a row's scopes."""
    if scopes == _NOBODY:
        return None
    user_id, agent_id, run_id, app_id = scopes
    return Owner(user_id=user_id, agent_id=agent_id, run_id=run_id, app_id=app_id)


_NOBODY: Final = (None,) * len(SCOPES)


@lru_cache(_KEPT)
def scopes_of(owner: Owner | None) -> tuple[str | None, ...]:
    """Return the scopes of a row."""
    if owner is None:
        return _NOBODY
    return tuple([getattr(owner, name) for name in SCOPES])


def cause_hash(text: str) -> int:
    """Return the indexed hash of a cause, the same on every server and in every version."""
    return crc32(text.encode())


def cause_hash_columns(causes: Sequence[Mapping[str, Any] | None]) -> list[Sequence[str | None]]:
    """Return the columns `CAUSE_COLUMNS` of causes, one list for each column."""
    contents = [cause.content() if type(cause) is JsonObject else cause for cause in causes]
    return [
        [
            str(cause_hash(text))
            if content is not None and isinstance(text := content.get(key), str)
            else None
            for content in contents
        ]
        for key in CAUSE_COLUMNS
    ]


def detail_columns(
    fields: Sequence[Fields], texts: SealedTexts | None, owners: OwnerByMemory
) -> list[Sequence[str | None]]:
    """Return the columns `DETAIL_COLUMNS` of records, one list for each column."""
    scopes = scope_columns([owners.get(one[MEMORY_ID]) for one in fields])
    if texts is not None:
        return [*scopes, texts.context, texts.cause, *cause_hash_columns(texts.tokens)]
    causes = [one[CAUSE] for one in fields]
    return [
        *scopes,
        [None if (context := one[CONTEXT]) is None else json_text(context) for one in fields],
        [None if cause is None else json_text(cause) for cause in causes],
        *cause_hash_columns(causes),
    ]


def scope_columns(owners: Iterable[Owner | None]) -> list[Sequence[str | None]]:
    """Return the scopes of owners, one list for each scope."""
    return list(zip(*map(scopes_of, owners), strict=True)) or [()] * len(SCOPES)
