"""Checks of what an administrator of MySQL or MariaDB may have changed on the tables.

Without transactions a batch could be half written. In another character set or type, texts would be
altered, cut or compared in other ways.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from sqlalchemy import Table, bindparam, text
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.schema import CreateColumn

from async_history._sql.dialects import is_mysql
from async_history._sql.tables import Tables
from async_history.errors import MigrationError

_SETTINGS: Final = text("""
SELECT table_name, engine, NULL, NULL, NULL, NULL
FROM information_schema.tables
WHERE table_schema = coalesce(:schema, DATABASE()) AND table_name IN :names
UNION ALL
SELECT table_name, NULL, column_name, data_type, character_maximum_length, collation_name
FROM information_schema.columns
WHERE table_schema = coalesce(:schema, DATABASE()) AND table_name IN :names
""").bindparams(bindparam("names", expanding=True), bindparam("schema"))
"""It is not a join, for which MariaDB would open each of the server's tables."""
_TRANSACTIONAL: Final = text(
    "SELECT engine FROM information_schema.engines WHERE transactions = 'YES'"
)
_USUAL_ENGINE: Final = "InnoDB"
_TEXTS: Final = re.compile(r"(varbinary|varchar|longtext)(?:\((\d+)\))?", re.IGNORECASE)
"""A type that holds texts or names, and its length."""
_CHARACTERS: Final = "utf8mb4_"
_BY_BYTES: Final = "_bin"
_MOST_NAMED: Final = 3
"""Most changes that a message names."""


class _Column(NamedTuple):
    """The type of a column on the server."""

    kind: str
    length: int | None
    collation: str | None

    def holds(self, kind: str, length: int | None) -> bool:
        """Return whether it holds all texts of a type, and compares them byte by byte."""
        if self.kind.lower() != kind.lower() or (self.length or 0) < (length or 0):
            return False
        if self.collation is None:  # bytes
            return True
        return self.collation.startswith(_CHARACTERS) and self.collation.endswith(_BY_BYTES)


async def check_tables(
    connection: AsyncConnection, tables: Tables, where: str, *, has_ledger: bool
) -> None:
    """Check the engines and the columns of the tables, on MySQL and MariaDB.

    Raises:
        MigrationError: with these, records would be half written, altered or mixed up.
    """
    if not is_mysql(connection.dialect):
        return
    checked = [*tables.metadata.sorted_tables]
    if has_ledger:
        checked += tables.ledger_metadata.sorted_tables
    names = {"names": [table.name for table in checked], "schema": tables.metadata.schema}
    engines: dict[str, str] = {}
    columns: dict[tuple[str, str], _Column] = {}
    for table, engine, column, *of_column in await connection.execute(_SETTINGS, names):
        if column is None:
            engines[table] = engine or _USUAL_ENGINE  # a view has none
        else:
            columns[table, column] = _Column(*of_column)
    wrong = [
        *await _without_transactions(connection, checked, engines),
        *_changed_columns(connection.dialect, checked, columns),
    ]
    if wrong:
        more = f"; and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
        raise MigrationError(
            f"{where} has changed tables, in which records could be half written, altered or mixed "
            f"up: {'; '.join(wrong[:_MOST_NAMED])}{more}"
        )


async def _without_transactions(
    connection: AsyncConnection, checked: Sequence[Table], engines: Mapping[str, str]
) -> list[str]:
    """Return the tables whose engine has no transactions, and the statements that change it."""
    if set(engines.values()) <= {_USUAL_ENGINE}:
        return []
    fit = {engine for (engine,) in await connection.execute(_TRANSACTIONAL)}
    quoted = connection.dialect.identifier_preparer.format_table
    return [
        f"{table.name} has the engine {engines[table.name]}, which has no transactions: "
        f"ALTER TABLE {quoted(table)} ENGINE={_USUAL_ENGINE}"
        for table in checked
        if engines.get(table.name, _USUAL_ENGINE) not in fit
    ]


def _changed_columns(
    dialect: Dialect, checked: Sequence[Table], columns: Mapping[tuple[str, str], _Column]
) -> Iterator[str]:
    """Yield the columns that can't hold all texts, and the statements that change them."""
    for table in checked:
        for column in table.columns:
            kind = _TEXTS.search(column.type.compile(dialect))
            if kind is None:
                continue
            length = None if kind[2] is None else int(kind[2])
            there = columns.get((table.name, column.name))
            if there is None or there.holds(kind[1], length):
                continue
            declared = CreateColumn(column).compile(dialect=dialect)
            quoted = dialect.identifier_preparer.format_table(table)
            yield (
                f"{table.name}.{column.name} is {there.kind} {there.collation or ''}: "
                f"ALTER TABLE {quoted} MODIFY {declared}"
            )
