# mypy: disable-error-code=import-untyped
"""Erased names: the statements that store and find them.

An erasure notes the names and changes `owners_state.number`, in one transaction. Then it waits for
the transactions that may not have seen that (`open_writers`). So the scans that follow find all
that those have committed. Transactions that write later find another number, and look up the names:

- A statement that adds records or messages compares the number in its own snapshot.
- A transaction that keeps one snapshot (REPEATABLE READ) locks the row of `owners_state` before it
  writes. So the erasure waits for it, or the transaction fails because the row has changed.
- A transaction that gives an owner to a memory with records changes the number only if it is still
  the one that it has seen.
- On a Citus cluster each transaction locks the row.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from async_history._core.records.owners import SCOPES
from async_history._core.writing.erased_names import (
    MEMORY,
    Name,
    from_microseconds,
    microseconds,
    name_digest,
)
from async_history._postgres.detail_columns import OWNERS_NUMBER

IS_ERASED: Final = """EXISTS (
    SELECT FROM {{schema}}.erased
    WHERE digest = ANY(
        pg_catalog.string_to_array(${digests}::pg_catalog.text, ','::pg_catalog.text)
    )
)"""
"""SQL condition: one of some names was erased. The parameter number `digests` is
`memory_digests`."""
FIND_ERASED: Final = f"""
SELECT {OWNERS_NUMBER}, erased_at, digest, at FROM {{schema}}.owners_state
LEFT JOIN {{schema}}.erased ON digest = ANY($1::pg_catalog.text[])
"""
_NOTE: Final = """
INSERT INTO {schema}.erased (digest, at)
SELECT name, $2::pg_catalog.int8 FROM pg_catalog.unnest($1::pg_catalog.text[]) AS name
ON CONFLICT (digest) DO UPDATE SET at = greatest(erased.at, excluded.at)
"""
_NOTED: Final = """
UPDATE {schema}.owners_state
SET last = last + 1::pg_catalog.int8, number = last + 1::pg_catalog.int8,
    erased_at = greatest(erased_at, $1::pg_catalog.int8)
"""
_NEXT_NUMBER: Final = """
UPDATE {schema}.owners_state
SET last = last + 1::pg_catalog.int8, number = last + 1::pg_catalog.int8
"""
_DISOWN: Final = {
    scope: (
        f"UPDATE {{schema}}.history SET {scope} = NULL"
        f" WHERE memory_id = ANY($1::pg_catalog.text[]) AND {scope} IS NOT NULL",
        f"UPDATE {{schema}}.owners SET {scope} = NULL WHERE memory_id = ANY($1::pg_catalog.text[])",
    )
    for scope in SCOPES
}
STILL_OWNED: Final = {
    scope: f"""
    SELECT true FROM {{schema}}.history
    WHERE memory_id = ANY($1::pg_catalog.text[]) AND {scope} IS NOT NULL
    UNION ALL SELECT true FROM {{schema}}.owners
    WHERE memory_id = ANY($1::pg_catalog.text[]) AND {scope} IS NOT NULL
    LIMIT 1
    """
    for scope in SCOPES
}
"""Whether a memory still has a scope, by scope."""


def digests_of(names: Iterable[Name]) -> dict[str, Name]:
    """Return names by their digests, as stored in the table."""
    return {name_digest(name).hex(): name for name in names}


def memory_digests(memory_ids: Iterable[str]) -> str:
    """Return the parameter of `IS_ERASED`."""
    return ",".join([name_digest((MEMORY, memory_id)).hex() for memory_id in memory_ids])


def found_erased(
    rows: Iterable[Sequence[Any]], digests: Mapping[str, Name]
) -> dict[Name, datetime]:
    """Return when names were erased, from the rows of `FIND_ERASED`."""
    return {digests[digest]: from_microseconds(at) for *_, digest, at in rows if digest is not None}


def note_statements(names: Sequence[Name], at: datetime) -> list[tuple[str, Sequence[Any]]]:
    """Return the statements that note names as erased.

    The number comes first: two erasures of the same names wait for each other there.
    """
    instant = microseconds(at)
    return [(_NOTED, (instant,)), (_NOTE, (list(digests_of(names)), instant))]


def disown_statements(scope: str, memory_ids: Sequence[str]) -> list[tuple[str, Sequence[Any]]]:
    """Return the statements that remove a scope from the owners of memories."""
    named = (list(memory_ids),)
    return [(_NEXT_NUMBER, ()), *((sql, named) for sql in _DISOWN[scope])]
