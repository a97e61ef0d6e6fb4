"""A large history on PostgreSQL in a minute: the server copies a small one.

Each copy has other ids, memories, users and hashes of causes, so that every index has as many
different keys as if the records had been written one by one.
"""

from typing import Any, Final

from async_history import HistoryManager
from benchmarks._owners import fill
from benchmarks._postgres_peers import connected

_BASE_ROWS: Final = 30_000
_HASHES: Final = 1 << 32
_INDEXES: Final = """
SELECT indexrelid::regclass::text AS name, pg_get_indexdef(indexrelid) AS made
FROM pg_index WHERE indrelid = $1::regclass AND NOT indisprimary
"""
_COLUMNS: Final = """
SELECT attname FROM pg_attribute
WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped AND attidentity = ''
ORDER BY attnum
"""
_OF_COPY: Final = {
    "id": "copy || id",
    "memory_id": "md5(copy || memory_id)::uuid::text",
    "user_id": "user_id || ' ' || copy",
    "cause_request_id": f"(cause_request_id + copy::bigint * 2654435761) % {_HASHES}",
    "xact": "pg_current_xact_id()",
}
"""The columns that each copy has for itself; `copy` is its number as text."""


async def fill_on_server(url: str, schema: str, history: HistoryManager, rows: int) -> None:
    """Write records of `rows` / 100 users, as `fill` does: the first ones, then copies of them."""
    base = min(rows, _BASE_ROWS)
    await fill(history, base)
    copies = rows // base - 1
    if not copies:
        return
    async with connected(url) as connection:
        await connection.execute("SET maintenance_work_mem TO '256MB'")
        for table in (f"{schema}.owners", f"{schema}.history"):
            await _copy(connection, table, copies)
        await connection.execute(f"VACUUM ANALYZE {schema}.history, {schema}.owners")
        await connection.execute("CHECKPOINT")


async def _copy(connection: Any, table: str, copies: int) -> None:
    names = [name for (name,) in await connection.fetch(_COLUMNS, table)]
    values = [_OF_COPY.get(name, name) for name in names]
    copied = (
        f"INSERT INTO {table} ({', '.join(names)}) SELECT {', '.join(values)}"
        " FROM base CROSS JOIN (SELECT $1::text AS copy) AS named"
    )
    made = await connection.fetch(_INDEXES, table)
    async with connection.transaction():
        await connection.execute(f"CREATE TEMP TABLE base ON COMMIT DROP AS SELECT * FROM {table}")
        for name, _ in made:
            await connection.execute(f"DROP INDEX {name}")
        await connection.executemany(copied, [(f"{copy:04}",) for copy in range(1, copies + 1)])
        for _, statement in made:
            await connection.execute(statement)
