"""Marks: numbers under which records are listed by owner, actor, role and cause.

A record has a row in `marks` for each of its marks.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

from sqlalchemy import delete, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from async_history._core.records.json_object import json_text
from async_history._core.records.owners import Owner
from async_history._core.records.recording import INDEXED_CAUSES
from async_history._core.records.records import HistoryRecord
from async_history._sql.dialects import in_parts
from async_history._sql.tables import Tables

_BITS: Final = 64


@lru_cache(16_384)
def mark_of(kind: str, value: str) -> int:
    """Return the number under which `marks` lists the records with a value."""
    digest = blake2b(f"{kind}={value}".encode(), digest_size=_BITS // 8).digest()
    return int.from_bytes(digest, signed=True)


def owner_marks(owner: Owner | None) -> list[int]:
    """Return the marks of an owner's scopes."""
    if owner is None:
        return []
    return [mark_of(name, value) for name, value in owner.as_dict().items()]


def cause_marks(cause: Mapping[str, Any] | None) -> list[int]:
    """Return the marks of the indexed keys of a cause."""
    if cause is None or not json_text(cause):
        return []
    found = [(key, cause.get(key)) for key in INDEXED_CAUSES]
    return [mark_of(f"cause {key}", text) for key, text in found if isinstance(text, str)]


def marks_of(record: HistoryRecord) -> list[int]:
    """Return the marks of a record."""
    marks = owner_marks(record.owner) + cause_marks(record.cause)
    if record.actor_id is not None:
        marks.append(mark_of("actor_id", record.actor_id))
    if record.role is not None:
        marks.append(mark_of("role", record.role))
    return marks


async def add_marks(
    connection: AsyncConnection, tables: Tables, marks: Iterable[tuple[int, int]]
) -> None:
    """Add marks of records, without duplicates."""
    rows = [{"mark": mark, "seq": seq} for mark, seq in dict.fromkeys(marks)]
    if rows:
        await connection.execute(insert(tables.marks), rows)


async def remove_marks(
    connection: AsyncConnection, tables: Tables, marks: Sequence[tuple[int, int]]
) -> None:
    """Remove marks of records."""
    by_mark: dict[int, list[int]] = {}
    for mark, seq in marks:
        by_mark.setdefault(mark, []).append(seq)
    table = tables.marks
    for mark, seqs in by_mark.items():
        for part in in_parts(seqs):
            await connection.execute(
                delete(table).where(table.c.mark == mark, table.c.seq.in_(part))
            )
