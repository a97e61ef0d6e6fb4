"""The statements of the log of operations in PostgreSQL."""

from typing import Any, Final

from async_history._core.operations import OperationStatements, StoreOperation, entries_of

OPERATIONS: Final = OperationStatements(
    begin="""
    INSERT INTO {schema}.operations (
        kind, ended_at, error, process_id, host, records, messages, id, begun_at, actor_id,
        arguments, database_role
    )
    SELECT
        $1::pg_catalog.text, $2::pg_catalog.text::pg_catalog.timestamptz, $3::pg_catalog.text,
        $4::pg_catalog.int8, $5::pg_catalog.text, $6::pg_catalog.int8, $7::pg_catalog.int8,
        given ->> 0, (given ->> 1)::pg_catalog.timestamptz, given ->> 2, given -> 3,
        CURRENT_USER::pg_catalog.text
    FROM pg_catalog.json_array_elements($8::pg_catalog.text::pg_catalog.json) AS given
    ON CONFLICT (id) DO NOTHING
    """,
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


async def enter(connection: Any, schema: str, operation: StoreOperation) -> None:
    """Add an operation to the log, in the open transaction.

    Args:
        schema: the quoted schema.
    """
    for values in entries_of([operation]):
        await connection.execute(OPERATIONS.begin.format(schema=schema), *values)
