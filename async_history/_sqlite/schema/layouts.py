"""The tables of a SQLite file with history records, in any layout of mem0."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from async_history._core.records.records import COLUMNS
from async_history._sqlite.schema.affinity import altering_columns
from async_history.errors import MigrationError

_TABLES: Final = ("old_history", "history_old", "memory_history", "history")
"""Tables that may hold records, the oldest first: those that interrupted migrations of mem0 0.0.10
and 0.1.100 left, mem0-ts's table, and mem0's own."""

_MEANINGS: Final = {
    "id": ("id",),
    "memory_id": ("memory_id",),
    "old_memory": ("old_memory", "prev_value", "previous_value"),
    "new_memory": ("new_memory", "new_value"),
    "event": ("event", "action"),
    "created_at": ("created_at", "timestamp"),
    "updated_at": ("updated_at", "timestamp"),
    "is_deleted": ("is_deleted",),
    "actor_id": ("actor_id", "participant_id"),
    "role": ("role",),
}
"""The current columns, with the names that each has had; the first that is not NULL counts. The
migration of mem0 0.0.10 copied `timestamp` to both times (commit 419dc6598,
mem0/memory/storage.py)."""

_NUMBERS: Final = ("is_deleted",)
_TIMES: Final = ("created_at", "updated_at")
"""A column of any type keeps a time: it does not look like a number."""
_TEXTS: Final = tuple(
    name for column, names in _MEANINGS.items() if column not in _NUMBERS + _TIMES for name in names
)

_LAYOUTS: Final = {
    frozenset(columns.split()): name
    for name, columns in {
        "mem0 0.0.2": "id memory_id prev_value new_value event timestamp is_deleted",
        "mem0 0.0.10": "id memory_id old_memory new_memory new_value event created_at updated_at"
        " is_deleted",
        "mem0's conversation branch": "id memory_id old_memory new_memory event created_at"
        " updated_at is_deleted conversation_id participant_id",
        "mem0 0.1.100 or later": " ".join(COLUMNS),
        "six columns": "id memory_id old_memory new_memory event created_at",
        "mem0-ts": "id memory_id previous_value new_value action created_at updated_at is_deleted",
    }.items()
}

_MESSAGE_TEXTS: Final = ("id", "session_scope", "role", "content", "name")
_MESSAGE_COLUMNS: Final = {*_MESSAGE_TEXTS, "created_at"}


@dataclass(frozen=True, slots=True)
class Source:
    """One table of history records. `columns` are lower-cased, `rowid` is a name for its rowid.

    `altering` are the columns that do not keep what they are given: see `affinity`.
    """

    table: str
    columns: tuple[str, ...]
    rowid: str
    id_is_rowid: bool
    id_is_indexed: bool
    altering: frozenset[str]

    @property
    def label(self) -> str:
        """The table's name and layout, for messages."""
        layout = _LAYOUTS.get(frozenset(self.columns), f"{len(self.columns)} columns")
        return f"{self.table} ({layout})"

    @property
    def is_current_layout(self) -> bool:
        """Whether the table has the layout of mem0 2.x."""
        return (
            self.table == "history"
            and set(self.columns) == set(COLUMNS)
            and self.id_is_indexed
            and not self.altering
        )

    def names(self, column: str) -> list[str]:
        """Return the columns of this table for the current `column`, in order of precedence."""
        return [name for name in _MEANINGS[column] if name in self.columns]

    @property
    def select(self) -> str:
        """A SELECT of `place`, the rowid, and of the current columns."""
        columns = ", ".join(f"{self._value(column)} AS {column}" for column in COLUMNS)
        return f"SELECT {self.rowid} AS place, {columns} FROM main.{self.table}"

    def _value(self, column: str) -> str:
        if column == "id":
            return self._id()
        kind = "INTEGER" if column in _NUMBERS else "TEXT"
        names = [
            f"CAST({name} AS {kind})" if name in self.altering else name
            for name in self.names(column)
        ]
        return f"coalesce({', '.join(names)})" if len(names) > 1 else names[0] if names else "NULL"

    def _id(self) -> str:
        text = "CAST(id AS TEXT)"
        if "event" not in self.columns:  # mem0-ts numbers records 1, 2, … in each file
            own = "'mem0-ts-' || id || '-' || coalesce(memory_id, '')"
            text = f"CASE typeof(id) WHEN 'integer' THEN {own} ELSE {text} END"
        return f"coalesce({text}, '{self.table}-row-' || {self.rowid})"


@dataclass(frozen=True, slots=True)
class HistoryTables:
    """A file's history tables: `sources` to take records from, and `empty` old ones."""

    sources: tuple[Source, ...]
    empty: tuple[Source, ...]

    @property
    def needs_rewriting(self) -> bool:
        """Whether the records must be rewritten to have the current layout."""
        return any(not source.is_current_layout for source in self.sources)

    @property
    def is_plain(self) -> bool:
        """Whether there is one table with unique ids, so that the rowids can stay."""
        return len(self.sources) == 1 and (
            self.sources[0].id_is_rowid or self.sources[0].id_is_indexed
        )

    @property
    def select(self) -> str:
        """A SELECT of `rowid` and the current columns over all sources, each id once.

        An id that occurs twice gets its earliest position and the values that are not NULL.
        """
        columns = ", ".join(COLUMNS)
        if not self.sources:
            nothing = ", ".join(f"NULL AS {column}" for column in COLUMNS)
            return f"SELECT NULL AS rowid, {nothing} WHERE 0"
        if self.is_plain:
            return f"SELECT place AS rowid, {columns} FROM ({self.sources[0].select})"
        merged = ", ".join(f"max({column}) AS {column}" for column in COLUMNS[1:])
        return f"""
            SELECT row_number() OVER (ORDER BY min(position)) AS rowid, id, {merged}
            FROM (
                SELECT row_number() OVER (ORDER BY source, place) AS position, {columns}
                FROM ({_union(self.sources)})
            )
            GROUP BY id
        """

    def conflict(self, connection: sqlite3.Connection) -> str | None:
        """Return an id that occurs twice with different values; None if there is none."""
        if self.is_plain or not self.sources:
            return None
        differs = " OR ".join(f"count(DISTINCT {column}) > 1" for column in COLUMNS[1:])
        row = connection.execute(
            f"""
            WITH record AS ({_union(self.sources)})
            SELECT id FROM record
            WHERE id IN (SELECT id FROM record GROUP BY id HAVING count(*) > 1)
            GROUP BY id HAVING {differs} LIMIT 1
            """
        ).fetchone()
        return None if row is None else str(row[0])

    def left_out_columns(self, connection: sqlite3.Connection) -> tuple[str, ...]:
        """Return the columns that the current layout lacks, and those that another column
        overrides."""
        left_out = []
        for source in self.sources:
            used = {name for names in _MEANINGS.values() for name in names}
            for column in COLUMNS[1:]:
                first, *others = source.names(column) or [""]
                used -= {name for name in others if _adds(connection, source, first, name)}
            left_out += [f"{source.table}.{name}" for name in source.columns if name not in used]
        return tuple(left_out)

    def left_out_objects(self, connection: sqlite3.Connection) -> tuple[str, ...]:
        """Return other programs' indexes and triggers, which are dropped with a replaced table."""
        tables = [source.table for source in self.sources]
        rows = connection.execute(
            f"""
            SELECT type || ' ' || name FROM main.sqlite_master
            WHERE type IN ('index', 'trigger') AND sql IS NOT NULL
            AND lower(tbl_name) IN ({", ".join("?" * len(tables))})
            AND name NOT LIKE 'async!_history!_%' ESCAPE '!' ORDER BY 1
            """,
            tables,
        )
        return tuple(name for (name,) in rows)


def find(connection: sqlite3.Connection) -> HistoryTables:
    """Return a file's history tables.

    Raises:
        MigrationError: a table has a name that mem0 uses, but not a layout of mem0.
    """
    _check_messages(connection)
    sources: list[Source] = []
    empty: list[Source] = []
    for table in _TABLES:
        source = _source(connection, table)
        if source is None:
            continue
        (filled,) = connection.execute(f"SELECT EXISTS (SELECT 1 FROM main.{table})").fetchone()
        (sources if filled or table == "history" else empty).append(source)
    return HistoryTables(tuple(sources), tuple(empty))


def keeps_values(connection: sqlite3.Connection) -> bool:
    """Return whether each column of `history` keeps what it is given: see `affinity`."""
    return not altering_columns(connection, "history", _TEXTS, _NUMBERS)


def migration_error(connection: sqlite3.Connection, problem: str, advice: str) -> MigrationError:
    """Return the error that names the file, the problem, and what to do about it."""
    (file,) = connection.execute(
        "SELECT file FROM pragma_database_list WHERE name = 'main'"
    ).fetchone()
    return MigrationError(
        f"{file or 'the database in memory'}: {problem}; {advice}. Nothing was changed."
    )


def _source(connection: sqlite3.Connection, table: str) -> Source | None:
    columns = _columns(connection, table)
    if columns is None:
        return None
    missing = [name for name in ("id", "memory_id") if name not in columns]
    if not {"event", "action"} & set(columns):
        missing.append("event")
    if missing:
        raise migration_error(
            connection,
            f"the table {table} has the columns {', '.join(columns)}, but no {', '.join(missing)}",
            f"it is not a history of mem0: rename {table}, or keep the history in another file",
        )
    rowid = next((name for name in ("rowid", "oid", "_rowid_") if name not in columns), None)
    # The documented test: https://www.sqlite.org/withoutrowid.html, section 7.
    if rowid is None or connection.execute(f"PRAGMA main.index_info({table})").fetchall():
        raise migration_error(
            connection,
            f"the table {table} has no rowid, so the order of its records is not known",
            f"copy it into an ordinary table in the right order, and name that {table}",
        )
    id_is_indexed = any(
        unique and not partial and _names(connection, "pragma_index_info", index) == ["id"]
        for index, unique, partial in connection.execute(
            "SELECT name, \"unique\", partial FROM pragma_index_list(?, 'main')", (table,)
        ).fetchall()
    )
    keys = _names(connection, "pragma_table_info", table, "pk > 0")
    id_is_rowid = keys == ["id"] and not id_is_indexed
    altering = altering_columns(connection, table, _TEXTS, _NUMBERS)
    return Source(table, columns, rowid, id_is_rowid, id_is_indexed, altering)


def _columns(connection: sqlite3.Connection, table: str) -> tuple[str, ...] | None:
    found = connection.execute(
        """
        SELECT type, sql FROM main.sqlite_master
        WHERE lower(name) = ? AND type IN ('table', 'view')
        """,
        (table,),
    ).fetchone()
    if found is None:
        return None
    if found[0] == "view" or found[1].upper().startswith("CREATE VIRTUAL"):
        kind = "view" if found[0] == "view" else "virtual table"
        raise migration_error(
            connection,
            f"{table} is a {kind}",
            f"rename it, or keep the history in another file: {table} must be an ordinary table",
        )
    return tuple(_names(connection, "pragma_table_info", table))


def _names(
    connection: sqlite3.Connection, pragma: str, of: str, condition: str = "true"
) -> list[str]:
    rows = connection.execute(
        f"SELECT lower(name) FROM {pragma}(?, 'main') WHERE {condition}",
        (of,),
    )
    return [name for (name,) in rows]


def _check_messages(connection: sqlite3.Connection) -> None:
    columns = _columns(connection, "messages")
    if columns is not None and set(columns) != _MESSAGE_COLUMNS:
        raise migration_error(
            connection,
            f"the table messages has the columns {', '.join(columns)}, not mem0's six",
            "rename it, or keep the history in another file",
        )
    altering = altering_columns(connection, "messages", _MESSAGE_TEXTS)
    if altering:
        raise migration_error(
            connection,
            f"columns of the table messages are not declared TEXT ({', '.join(sorted(altering))}), "
            "so that a text such as 007 would become a number",
            "rename the table: another is made",
        )


def _union(sources: Sequence[Source]) -> str:
    return " UNION ALL ".join(
        f"SELECT {number} AS source, * FROM ({source.select})"
        for number, source in enumerate(sources)
    )


def _adds(connection: sqlite3.Connection, source: Source, first: str, other: str) -> bool:
    """Return whether two columns with the same meaning have different values in a row."""
    (adds,) = connection.execute(
        f"""
        SELECT EXISTS (
            SELECT 1 FROM main.{source.table}
            WHERE {first} IS NOT NULL AND {other} IS NOT NULL AND {first} IS NOT {other}
        )
        """
    ).fetchone()
    return bool(adds)
