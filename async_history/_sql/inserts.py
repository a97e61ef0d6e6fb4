"""The INSERT statements of records."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import insert
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.asyncio import AsyncConnection

from async_history._sql.dialects import is_mysql
from async_history._sql.rows import ALL_COLUMNS, PLAIN_COLUMNS
from async_history._sql.tables import BINARY_DIALECTS, Name, Tables


class Inserts:
    """The INSERT statements of records, compiled once for the driver's own `executemany`.

    SQLAlchemy's work for each row would take three times as long as the driver's.
    """

    def __init__(self, tables: Tables, dialect: Dialect) -> None:
        self._encodes = dialect.name in BINARY_DIALECTS and not is_mysql(dialect)
        self.tables = tables
        self.plain = self._compiled(dialect, PLAIN_COLUMNS)
        self.full = self._compiled(dialect, ALL_COLUMNS)

    def _compiled(self, dialect: Dialect, columns: Sequence[str]) -> tuple[str, list[int]]:
        """Return the SQL, and the places of its parameters in a row."""
        statement: Any = insert(self.tables.history)
        compiled = statement.compile(dialect=dialect, column_keys=list(columns))
        order = list(compiled.positiontup or columns)
        return str(compiled), [columns.index(name) for name in order]

    async def add(
        self, connection: AsyncConnection, rows: Sequence[tuple[Any, ...]], *, are_plain: bool
    ) -> None:
        """Add rows, in order."""
        sql, order = self.plain if are_plain else self.full
        columns = PLAIN_COLUMNS if are_plain else ALL_COLUMNS
        if self._encodes:
            is_name = [isinstance(self.tables.history.c[column].type, Name) for column in columns]
            rows = [
                tuple(
                    value.encode() if name and value is not None else value
                    for value, name in zip(row, is_name, strict=True)
                )
                for row in rows
            ]
        if not connection.dialect.positional:
            named = [dict(zip(columns, row, strict=True)) for row in rows]
            await connection.exec_driver_sql(sql, named)
            return
        if order != list(range(len(columns))):
            rows = [tuple(row[place] for place in order) for row in rows]
        await connection.exec_driver_sql(sql, list(rows))
