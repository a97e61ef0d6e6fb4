"""The check of the indexed causes in PostgreSQL, which queries by cause look up."""

from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any, Final

from async_history._core.records.json_object import is_readable, json_from_text
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
_NAMED: Final = 10
"""Most records that are named."""


async def faults_of_causes(connection: Any, schema: str) -> list[str]:
    """Return sentences about the records whose cause can't be read, or is not indexed as it is.

    An encrypted cause has a token for each indexed value, which is compared instead.

    Args:
        schema: the quoted schema.
    """
    after, others = _FIRST, 0
    unreadable: list[int] = []
    mend: str | None = None
    while rows := await connection.fetch(_CAUSES.format(schema), after):
        after = int(rows[-1][0])
        causes = [json_from_text(row[1]) for row in rows]
        sound = [cause is None or is_readable(cause) for cause in causes]
        unreadable += [
            int(row[0]) for row, is_sound in zip(rows, sound, strict=True) if not is_sound
        ]
        expected = zip(*cause_hash_columns(list(compress(causes, sound))), strict=True)
        for (seq, _, *stored), hashes in zip(compress(rows, sound), expected, strict=True):
            if tuple([None if one is None else str(one) for one in stored]) != hashes:
                others += 1
                mend = mend or _update(schema, int(seq), hashes)
    found: list[str] = []
    if unreadable:
        found.append(_unreadable(schema, unreadable))
    if mend is not None:
        records = counted(others, "record")
        found.append(
            f"Queries by cause go wrong for {records}, such as the one that this mends: {mend}."
        )
    return found


def _unreadable(schema: str, seqs: Sequence[int]) -> str:
    records = counted(len(seqs), "record has", "records have")
    named = ", ".join(map(str, seqs[:_NAMED]))
    return (
        f"{records} a cause that is not a JSON object: restore it from a backup, in the rows of "
        f"{schema}.history with seq {named}{' and more' if len(seqs) > _NAMED else ''}."
    )


def _update(schema: str, seq: int, hashes: tuple[str | None, ...]) -> str:
    named: Mapping[str, str | None] = dict(zip(CAUSE_COLUMNS.values(), hashes, strict=True))
    values = ", ".join(f"{name} = {'NULL' if h is None else h}" for name, h in named.items())
    return f"UPDATE {schema}.history SET {values} WHERE seq = {seq}"
