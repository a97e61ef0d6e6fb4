"""Distribution of the tables over the nodes of a Citus cluster.

A memory's history stays on one node, and so does a session scope's buffer: each unique key of a
distributed table must contain its distribution column
(https://docs.citusdata.com/en/stable/develop/api_udf.html).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from async_history._postgres.connecting.bounds import lift_limits
from async_history._postgres.connecting.connect import connected
from async_history._postgres.connecting.pooler import is_pooled
from async_history._postgres.connecting.table_locks import retry_while_locked
from async_history._postgres.connecting.url import server_url
from async_history._postgres.schema import in_schema, quoted
from async_history._postgres.schema.migrations import (
    SWITCH_WITHIN_S,
    has_citus,
    is_distributed,
    migrate,
)
from async_history.errors import MigrationError

COLUMNS: Final[Mapping[str, str]] = {
    "history": "memory_id",
    "owners": "memory_id",
    "messages": "session_scope",
}
"""The distribution column of each table."""

AS_SHARDS: Final = """
DROP TRIGGER IF EXISTS history_xact_before_seq ON {schema}.history;
ALTER TABLE {schema}.history DROP CONSTRAINT history_pkey,
    ADD CONSTRAINT history_pkey PRIMARY KEY (id, memory_id)
"""
"""Makes `history` a table that Citus can distribute: its keys contain the distribution column, and
it has no triggers. (Its own trigger is for followers, which a distributed history can't have.)"""
_DISTRIBUTE: Final = """
SELECT pg_catalog.create_distributed_table($1::pg_catalog.regclass, $2, colocate_with => $3)
"""
_COPY_TO_ALL: Final = "SELECT pg_catalog.create_reference_table($1::pg_catalog.regclass)"
"""For the one row of `owners_state`, which the statements of each node lock."""


async def distribute(
    url: str, schema: str, *, switch_within_s: float = SWITCH_WITHIN_S
) -> list[str]:
    """Distribute the tables, and return the names of those that were not yet; safe to run again.

    Existing rows are moved, while writers wait. It waits for the locks of the tables a tenth of a
    second at a time, because others wait meanwhile.

    Args:
        switch_within_s: seconds to try to get these locks.

    Raises:
        MigrationError: the database has no Citus extension; nothing was changed.
        StorageLocked: others keep a table locked; no table was distributed.
        StorageError: the server can't be reached, or refuses this.
    """
    async with connected(server_url(url)) as connection:
        if not await is_pooled(connection):
            await lift_limits(connection)
        return await _distribute(connection, schema, switch_within_s)


async def _distribute(connection: Any, schema: str, switch_within_s: float) -> list[str]:
    if not await has_citus(connection):
        raise MigrationError(
            "this database has no Citus extension: one server keeps the whole history. To spread "
            "it, use a Citus cluster and CREATE EXTENSION citus; nothing was changed"
        )
    await migrate(connection, schema)
    return await retry_while_locked(
        connection,
        partial(_distribute_tables, connection, schema),
        within_s=switch_within_s,
        if_locked=f"other transactions keep the tables of schema {schema!r} locked, so that they "
        "can't be distributed; no table was. End them (pg_stat_activity), and distribute again",
    )


async def _distribute_tables(connection: Any, schema: str) -> list[str]:
    distributed: list[str] = []
    for table, column in COLUMNS.items():
        if not await is_distributed(connection, schema, table):
            if table == "history":
                await connection.execute(in_schema(AS_SHARDS, quoted(schema)))
            colocated_with = f"{quoted(schema)}.history" if table == "owners" else "none"
            name = f"{quoted(schema)}.{table}"
            await connection.execute(_DISTRIBUTE, name, column, colocated_with)
            distributed.append(table)
    if not await is_distributed(connection, schema, "owners_state"):
        await connection.execute(_COPY_TO_ALL, f"{quoted(schema)}.owners_state")
    return distributed
