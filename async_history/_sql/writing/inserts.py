"""The INSERT statements of new records."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Table, func, insert, select
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.asyncio import AsyncConnection

from async_history._core.ledger.leaves import Bundle
from async_history._sql.columns import BINARY_DIALECTS, Name, hashes_text
from async_history._sql.connecting.driver import PreparedStatements
from async_history._sql.dialects import is_mysql
from async_history._sql.errors import RowsLeftOut
from async_history._sql.rows import ALL_COLUMNS, PLAIN_COLUMNS
from async_history._sql.tables import Tables
from async_history._sql.writing.numbered import NumberedRecords

Rows = Sequence[tuple[Any, ...]]

MARK_COLUMNS: Final = ("mark", "seq")
_INSERT: Final = "INSERT INTO {table} ({columns}) VALUES ({placeholders})"
_LEAST_BULK: Final = 64
"""Fewest records in bulk, which takes four round trips. A block of statements takes one."""


def leaves_row(bundle: Bundle) -> tuple[Any, ...]:
    """Return the row of a bundle of leaves for `Inserts.leaves`."""
    hashes = hashes_text(bundle.hashes)
    return bundle.kind, bundle.size, hashes, int(bundle.is_keyed), bundle.names


class Insert:
    """An INSERT statement, compiled once for the driver's own `executemany`.

    SQLAlchemy would take three times as long for each row.

    Attributes:
        sql: the statement. It ends with the row of parameters.
        order: the positions of its parameters in a row.
    """

    def __init__(self, table: Table, dialect: Dialect, columns: Sequence[str]) -> None:
        statement: Any = insert(table)
        compiled = statement.compile(dialect=dialect, column_keys=list(columns))
        self._columns = columns
        self._is_positional = dialect.positional
        self._are_bytes = [
            dialect.name in BINARY_DIALECTS
            and not is_mysql(dialect)
            and isinstance(table.c[column].type, Name)
            for column in columns
        ]
        self._has_bytes = any(self._are_bytes)
        self.sql = str(compiled)
        self.order = [columns.index(name) for name in compiled.positiontup or columns]
        self._is_in_order = self.order == list(range(len(columns)))

    def of_rows(self, count: int) -> str:
        """Return the statement with so many rows of parameters."""
        begin, values, row = self.sql.rpartition(" VALUES ")
        return f"{begin}{values}{', '.join([row] * count)}"

    def values(self, rows: Rows) -> Rows:
        """Return rows as parameters of the statement."""
        if self._has_bytes:
            rows = [
                tuple(
                    value.encode() if is_bytes and value is not None else value
                    for value, is_bytes in zip(row, self._are_bytes, strict=True)
                )
                for row in rows
            ]
        if not self._is_in_order:
            rows = [tuple(row[index] for index in self.order) for row in rows]
        return rows

    async def add(self, connection: AsyncConnection, rows: Rows) -> None:
        """Add rows, in order."""
        if self._is_positional:
            await connection.exec_driver_sql(self.sql, list(self.values(rows)))
        else:
            named = [dict(zip(self._columns, row, strict=True)) for row in self.values(rows)]
            await connection.exec_driver_sql(self.sql, named)


class Inserts:
    """The INSERT statements of new records, with or without details, and of marks and leaves."""

    def __init__(self, tables: Tables, dialect: Dialect) -> None:
        self.plain = Insert(tables.history, dialect, PLAIN_COLUMNS)
        self.full = Insert(tables.history, dialect, ALL_COLUMNS)
        self.marks = Insert(tables.marks, dialect, MARK_COLUMNS)
        self.leaves = Insert(tables.ledger, dialect, Bundle._fields)
        self._seq = tables.history.c.seq
        self._may_leave_out = not is_mysql(dialect)  # on MySQL a trigger can only fail

    def of(self, records: NumberedRecords) -> Insert:
        """Return the statement that adds these records."""
        return self.plain if records.are_plain else self.full

    async def add(self, connection: AsyncConnection, records: NumberedRecords) -> None:
        """Add records and their marks.

        Raises:
            RowsLeftOut: some records were not inserted; the caller rolls back.
        """
        await self.of(records).add(connection, records.rows)
        if self._may_leave_out:
            await self._require_all(connection, records.rows)
        if records.marks:
            await self.marks.add(connection, records.marks)

    async def _require_all(self, connection: AsyncConnection, rows: Rows) -> None:
        """Check that the table has all new rows, whose numbers are consecutive."""
        (first, *_), (last, *_) = rows[0], rows[-1]
        there = select(func.count()).where(self._seq.between(first, last))
        count = (await connection.execute(there)).scalar_one()
        if count < len(rows):
            raise RowsLeftOut(f"a trigger or rule left out {len(rows) - count} of {len(rows)} rows")


class BulkInserts:
    """INSERT statements of new records and marks that send all rows of a batch in one message.

    Args:
        prepared: the prepared statements of the writing connection.
        statement_bytes: the most bytes of a message; None: unlimited.
    """

    def __init__(
        self,
        tables: Tables,
        dialect: Dialect,
        prepared: PreparedStatements,
        statement_bytes: int | None,
    ) -> None:
        name = dialect.identifier_preparer.format_table
        self._history, self._marks = name(tables.history), name(tables.marks)
        self._prepared = prepared
        self._most_bytes = statement_bytes

    def takes(self, count: int, size_bytes: int) -> bool:
        """Return whether so many records, of `size_bytes`, are worth it and fit one message."""
        fits = self._most_bytes is None or size_bytes <= self._most_bytes
        return fits and count >= _LEAST_BULK

    async def add(self, connection: AsyncConnection, records: NumberedRecords) -> None:
        """Add records and their marks."""
        columns = PLAIN_COLUMNS if records.are_plain else ALL_COLUMNS
        # A message has the type of each column, and so needs a value in each.
        values = {
            name: column
            for name, column in zip(columns, zip(*records.rows, strict=True), strict=True)
            if column.count(None) < len(column)
        }
        rows = list(zip(*values.values(), strict=True))
        await self._add(connection, self._history, list(values), rows)
        if records.marks:
            await self._add(connection, self._marks, MARK_COLUMNS, records.marks)

    async def _add(
        self, connection: AsyncConnection, table: str, columns: Sequence[str], rows: Rows
    ) -> None:
        placeholders = ", ".join(["%s"] * len(columns))
        sql = _INSERT.format(table=table, columns=", ".join(columns), placeholders=placeholders)
        await self._prepared.add(connection, sql, rows)
