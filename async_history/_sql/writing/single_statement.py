"""A batch of new records as one statement, with its numbers and its commit.

MariaDB executes a block of statements as one statement. A transaction of separate statements needs
a round trip for each. A single task waits for all of them; with many tasks, each answer also waits
for the event loop. The numbers follow the writer's own last batch. If another process has written
since, nothing is written.

The block of a single record is prepared: the server would parse it for longer than it executes it.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from itertools import chain
from typing import Any, Final

from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from async_history._core.encryption.key_statements import MOST_USES
from async_history._core.ledger.leaves import Bundle
from async_history._sql.connecting import driver
from async_history._sql.connecting.driver import PreparedStatements
from async_history._sql.tables import Tables
from async_history._sql.writing.inserts import Insert, Inserts, leaves_row
from async_history._sql.writing.known import Span
from async_history._sql.writing.numbered import NumberedRecords

_MOST_BYTES: Final = 4 << 20
"""The largest block. The server parses all of it before it executes it."""
_MOST_KEPT: Final = 64
"""Most blocks whose SQL is kept. Those of single records differ in a few numbers."""
_BLOCK: Final = """
BEGIN NOT ATOMIC
START TRANSACTION;
UPDATE {state} SET last = %s WHERE id = 1 AND version = %s AND last = %s{keys};
IF ROW_COUNT() = 1 THEN {inserts}; COMMIT; ELSE ROLLBACK; END IF;
END
"""
_KEYS_ARE_THERE: Final = (
    " AND (SELECT COUNT(*) FROM {table} WHERE id IN ({ids}) AND uses < {most}) = {count}"
)
_SPAN_VALUES: Final = (
    "(span, first_time, last_time, events, has_undated) VALUES (%s, %s, %s, %s, %s)"
)


def takes_blocks(dialect: Dialect) -> bool:
    """Return whether a connected database executes a block of statements as one."""
    return getattr(dialect, "is_mariadb", False)


class SingleStatement:
    """The write of new records in one statement.

    Args:
        statement_bytes: the most bytes of a statement; None: unlimited.
        prepared: the prepared statements, if the driver has them.
        committing: see `Connections.committing`.
    """

    def __init__(
        self,
        tables: Tables,
        dialect: Dialect,
        inserts: Inserts,
        statement_bytes: int | None,
        prepared: PreparedStatements | None,
        committing: AbstractContextManager[None],
    ) -> None:
        name = dialect.identifier_preparer.format_table
        self._state = name(tables.state)
        self._data_keys = name(tables.data_keys)
        self._replace_span = f"REPLACE INTO {name(tables.spans)}"
        self._inserts = inserts
        self._most_bytes = min(statement_bytes or _MOST_BYTES, _MOST_BYTES)
        self._prepared = prepared
        self._committing = committing
        self._block = lru_cache(_MOST_KEPT)(self._new_block)

    def takes(self, size_bytes: int, leaves: Sequence[Bundle]) -> bool:
        """Return whether records of `size_bytes`, with their leaves, fit one statement."""
        for bundle in leaves:
            size_bytes += 2 * (len(bundle.hashes) + len(bundle.names.encode()))
        return size_bytes <= self._most_bytes

    async def commit(
        self,
        connection: AsyncConnection,
        last: int,
        version: int,
        records: NumberedRecords,
        spans: Mapping[int, Span],
        key_ids: Sequence[str],
        leaves: Sequence[Bundle],
    ) -> bool:
        """Write and commit records whose numbers follow `last`.

        Args:
            spans: the spans to write, by number.
            key_ids: data keys that must be in the store and not be retired.
            leaves: the leaves of the records, if the store has a ledger.

        Returns:
            False if `last` or `version` has changed, or a key is missing or retired. Then nothing
            was written.
        """
        insert = self._inserts.of(records)
        values: list[Any] = [last + len(records.rows), version, last, *key_ids]
        values += chain.from_iterable(insert.values(records.rows))
        values += chain.from_iterable(records.marks)
        for number, span in spans.items():
            values += (number, span.first_time, span.last_time, span.events, int(span.has_undated))
        for bundle in leaves:
            values += self._inserts.leaves.values([leaves_row(bundle)])[0]
        count = len(records.rows)
        block = self._block(
            insert, count, len(records.marks), len(spans), len(key_ids), len(leaves)
        )
        execute = driver.execute
        if self._prepared is not None and count == 1 and not spans:
            execute = self._prepared.execute
        try:
            with self._committing:
                return await execute(connection, block, values) > 0
        except DBAPIError as error:
            if not error.connection_invalidated:
                await connection.begin()  # the server's transaction is open: callers roll back
            raise

    def _new_block(
        self, insert: Insert, rows: int, marks: int, spans: int, keys: int, leaves: int
    ) -> str:
        """Return the block that adds so many rows to each table and needs so many data keys."""
        inserts = [insert.of_rows(rows)]
        if marks:
            inserts.append(self._inserts.marks.of_rows(marks))
        inserts += [f"{self._replace_span} {_SPAN_VALUES}"] * spans
        inserts += [self._inserts.leaves.sql] * leaves
        return _BLOCK.format(
            state=self._state, keys=self._keys_are_there(keys), inserts="; ".join(inserts)
        )

    def _keys_are_there(self, count: int) -> str:
        """Return the condition that so many data keys are in the store and not retired."""
        if not count:
            return ""
        ids = ", ".join(["%s"] * count)
        return _KEYS_ARE_THERE.format(table=self._data_keys, ids=ids, most=MOST_USES, count=count)
