"""The check of the indexed causes in PostgreSQL, which queries by cause look up."""

from collections.abc import Mapping
from typing import Any, Final

from async_history._core.records.json_object import json_from_text
from async_history._core.wording import counted
from async_history._postgres.detail_columns import CAUSE_COLUMNS, cause_hash_columns

_AT_ONCE: Final = 1_000
"""Records that are compared at once, in some 3 ms."""
_CAUSES: Final = f"""
SELECT seq, cause, {", ".join(CAUSE_COLUMNS.values())} FROM {{}}.history
WHERE seq > $1::pg_catalog.int8
    AND coalesce(cause, {", ".join(f"{name}::pg_catalog.text" for name in CAUSE_COLUMNS.values())})
        IS NOT NULL
ORDER BY seq LIMIT {_AT_ONCE}
"""
_FIRST: Final = -(1 << 63)


async def fault_of_causes(connection: Any, schema: str) -> str | None:
    """Return a sentence about the records whose cause is not indexed as it is; None if all are.

    An encrypted cause has a token for each indexed value, which is compared instead.

    Args:
        schema: the quoted schema.
    """
    after, others = _FIRST, 0
    mend: str | None = None
    while rows := await connection.fetch(_CAUSES.format(schema), after):
        after = int(rows[-1][0])
        expected = zip(*cause_hash_columns([json_from_text(row[1]) for row in rows]), strict=True)
        for (seq, _, *stored), hashes in zip(rows, expected, strict=True):
            if tuple([None if one is None else str(one) for one in stored]) != hashes:
                others += 1
                mend = mend or _update(schema, int(seq), hashes)
    if mend is None:
        return None
    records = counted(others, "record")
    return f"Queries by cause go wrong for {records}, such as the one that this mends: {mend}."


def _update(schema: str, seq: int, hashes: tuple[str | None, ...]) -> str:
    named: Mapping[str, str | None] = dict(zip(CAUSE_COLUMNS.values(), hashes, strict=True))
    values = ", ".join(f"{name} = {'NULL' if h is None else h}" for name, h in named.items())
    return f"UPDATE {schema}.history SET {values} WHERE seq = {seq}"
