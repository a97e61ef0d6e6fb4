"""The message buffers in PostgreSQL: what a batch reads from them and writes to them."""

from collections.abc import Sequence
from typing import Any, Final

from async_history._core.records.messages import MESSAGES_KEPT
from async_history._core.writing.message_buffers import Buffer, MessageRow
from async_history._core.writing.submissions import SaveMessages
from async_history._postgres.detail_columns import OWNERS_NUMBER
from async_history._postgres.schema import in_schema

_BUFFERS: Final = """
SELECT session_scope, pg_catalog.count(*), pg_catalog.min(seq), pg_catalog.max(seq),
       pg_catalog.array_agg(id) FILTER (WHERE id = ANY($2::pg_catalog.text[]))
FROM {schema}.messages WHERE session_scope = ANY($1::pg_catalog.text[]) GROUP BY session_scope
"""
_SAVE_MESSAGES: Final = """
INSERT INTO {schema}.messages (id, session_scope, role, content, name, created_at)
SELECT id, session_scope, role, content, name, created_at
FROM ROWS FROM (
    pg_catalog.unnest($1::pg_catalog.text[]), pg_catalog.unnest($2::pg_catalog.text[]),
    pg_catalog.unnest($3::pg_catalog.text[]), pg_catalog.unnest($4::pg_catalog.text[]),
    pg_catalog.unnest($5::pg_catalog.text[]), pg_catalog.unnest($6::pg_catalog.text[])
) WITH ORDINALITY
    AS given (id, session_scope, role, content, name, created_at, place)
ORDER BY place
"""
_SAVE_MESSAGES_AS_SEEN: Final = _SAVE_MESSAGES.replace(
    "ORDER BY place",
    f"WHERE (SELECT {OWNERS_NUMBER} FROM {{schema}}.owners_state) = $7::pg_catalog.int8"
    " ORDER BY place",
)
"""Adds nothing if a name was erased since the look-up. (On a Citus cluster the statement can't
compare the number, so the number is locked.)"""
_EVICT: Final = f"""
DELETE FROM {{schema}}.messages USING (
    SELECT id, session_scope,
           pg_catalog.row_number() OVER (PARTITION BY session_scope ORDER BY seq DESC) AS age
    FROM {{schema}}.messages WHERE session_scope = ANY($1::pg_catalog.text[])
) AS aged
WHERE messages.session_scope = aged.session_scope AND messages.id = aged.id
  AND aged.age > {MESSAGES_KEPT}
"""


async def find_buffers(
    connection: Any, schema: str, submissions: Sequence[SaveMessages]
) -> dict[str, Buffer]:
    """Return the stored message buffers of these submissions' scopes."""
    scopes = list({submission.session_scope for submission in submissions})
    ids = [submission.ids[-1] for submission in submissions]
    rows = await connection.fetch(in_schema(_BUFFERS, schema), scopes, ids)
    return {
        scope: Buffer(count, oldest, newest, frozenset(there or ()))
        for scope, count, oldest, newest, there in rows
    }


async def add_messages(
    connection: Any, schema: str, rows: Sequence[MessageRow], number: int | None
) -> str:
    """Add messages in order; return the statement's status.

    Args:
        number: the number of `owners_state`. If it has changed, no messages are added. None: not
            compared.
    """
    sql = _SAVE_MESSAGES if number is None else _SAVE_MESSAGES_AS_SEEN
    known = () if number is None else (number,)
    done: str = await connection.execute(in_schema(sql, schema), *zip(*rows, strict=True), *known)
    return done


async def evict_messages(connection: Any, schema: str, submissions: Sequence[SaveMessages]) -> None:
    """Remove the messages of these submissions' scopes that are no longer in a buffer."""
    scopes = sorted({submission.session_scope for submission in submissions})
    await connection.execute(in_schema(_EVICT, schema), scopes)
