"""The statements of the log of operations in PostgreSQL."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from async_history._core.operations.operation_log import OperationStatements
from async_history._core.operations.operations import LogEntries, StoreOperation, entry_of
from async_history._postgres.rows import joined_texts

_BEGIN_NEW: Final = """
    INSERT INTO {schema}.operations (
        kind, ended_at, error, process_id, host, records, messages, id, begun_at, actor_id,
        arguments, database_role
    )
    SELECT
        $1::pg_catalog.text, $2::pg_catalog.text::pg_catalog.timestamptz, $3::pg_catalog.text,
        $4::pg_catalog.int8, $5::pg_catalog.text, $6::pg_catalog.int8, $7::pg_catalog.int8,
        id, begun_at::pg_catalog.timestamptz, actor_id, arguments::pg_catalog.json,
        CURRENT_USER::pg_catalog.text
    FROM (
        SELECT
            pg_catalog.unnest(pg_catalog.string_to_array($8::pg_catalog.text, $12, $13)) AS id,
            pg_catalog.unnest(pg_catalog.string_to_array($9::pg_catalog.text, $12, $13))
                AS begun_at,
            pg_catalog.unnest(pg_catalog.string_to_array($10::pg_catalog.text, $12, $13))
                AS actor_id,
            pg_catalog.unnest(pg_catalog.string_to_array($11::pg_catalog.text, $12, $13))
                AS arguments
    ) AS given WHERE id <> ''
"""
_BEGIN: Final = f"{_BEGIN_NEW} ON CONFLICT (id) DO NOTHING"


def _added_by(sql: str, entries: LogEntries) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield a statement that adds operations, with its arguments."""
    *shared, each = entries
    yield sql, (*shared, *joined_texts(list(zip(*each, strict=True))))


OPERATIONS: Final = OperationStatements(
    begin=partial(_added_by, _BEGIN),
    add="""
    UPDATE {schema}.operations
    SET records = records + $1::pg_catalog.int8, messages = messages + $2::pg_catalog.int8
    WHERE id = $3::pg_catalog.text
    """,
    end="""
    UPDATE {schema}.operations
    SET ended_at = $1::pg_catalog.text::pg_catalog.timestamptz, error = $2::pg_catalog.text,
        records = records + $3::pg_catalog.int8, messages = messages + $4::pg_catalog.int8
    WHERE id = $5::pg_catalog.text AND ended_at IS NULL
    """,
    counts="SELECT records, messages FROM {schema}.operations WHERE id = $1::pg_catalog.text",
    forget_actor="""
    UPDATE {schema}.operations SET actor_id = NULL WHERE actor_id = $1::pg_catalog.text
    """,
    last="""
    SELECT pg_catalog.json_build_array(
        id, kind, begun_at, ended_at, error, actor_id, process_id, host, database_role, arguments,
        records, messages
    )::pg_catalog.text FROM {schema}.operations
    WHERE (
        $1::pg_catalog.text IS NULL OR (begun_at, id) <= (
            SELECT begun_at, id FROM {schema}.operations WHERE id = $1::pg_catalog.text
        )
    ) AND ($3::pg_catalog.text IS NULL OR kind = $3::pg_catalog.text)
    ORDER BY begun_at DESC, id DESC LIMIT $2::pg_catalog.int8
    """,
)

NEW_OPERATIONS: Final = replace(OPERATIONS, begin=partial(_added_by, _BEGIN_NEW))
"""The same for operations whose ids can't be in the log: looking for each takes a third of the
server's time."""


async def enter(connection: Any, schema: str, operation: StoreOperation) -> None:
    """Add an operation to the log, in the open transaction.

    Args:
        schema: the quoted schema.
    """
    for sql, arguments in _added_by(_BEGIN, entry_of(operation)):
        await connection.execute(sql.format(schema=schema), *arguments)
