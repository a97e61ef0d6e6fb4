"""Files as each version of mem0 made them: the layout's SQL and rows, and their meaning today."""

import importlib.util
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

Row = tuple[object, ...]
NO: Row = (None, None)
"""Neither an actor nor a role."""

MESSAGES = """
CREATE TABLE messages (
    id TEXT PRIMARY KEY, session_scope TEXT, role TEXT, content TEXT, name TEXT,
    created_at DATETIME
);
"""


@dataclass(frozen=True)
class Layout:
    """One layout: its SQL (`{table}` for the name), its rows, and the rows in mem0's ten columns.

    The ids fall while the rowids grow, and no date grows with either: only the rowid has the order.
    """

    label: str
    sql: str
    rows: tuple[Row, ...]
    today: tuple[Row, ...]
    left_out: tuple[str, ...] = ()
    table: str = "history"

    def build(self, connection: sqlite3.Connection, table: str | None = None) -> None:
        """Create the table, with the rows, in their order."""
        table = table or self.table
        connection.execute(self.sql.format(table=table))
        insert(connection, table, self.rows)


def insert(connection: sqlite3.Connection, table: str, rows: Iterable[Row]) -> None:
    """Insert whole rows."""
    for row in rows:
        marks = ", ".join("?" * len(row))
        connection.execute(f"INSERT INTO {table} VALUES ({marks})", row)


TODAY = Layout(
    "mem0 0.1.100 or later",
    """CREATE TABLE {table} (
        id TEXT PRIMARY KEY, memory_id TEXT, old_memory TEXT, new_memory TEXT, event TEXT,
        created_at DATETIME, updated_at DATETIME, is_deleted INTEGER, actor_id TEXT, role TEXT
    )""",
    rows := (
        ("t3", "m1", None, "tea", "ADD", "2025-06-01T10:00:00-07:00", None, 0, "ann", "user"),
        ("t2", "m2", None, "ünï\n'x'", "ADD", "2025-05-01T10:00:00-07:00", None, 0, None, None),
        ("t1", "m1", "tea", None, "DELETE", None, None, 1, "bob", "assistant"),
    ),
    rows,
)
V0_0_2 = Layout(
    "mem0 0.0.2",
    """CREATE TABLE {table} (
        id TEXT PRIMARY KEY, memory_id TEXT, prev_value TEXT, new_value TEXT, event TEXT,
        timestamp DATETIME, is_deleted INTEGER
    )""",
    (
        ("a3", "m1", None, "likes tea", "ADD", "2024-07-13 09:00:00.000001", 0),
        ("a2", "m1", "likes tea", "likes coffee", "UPDATE", "2024-07-12 09:00:00.500000", 0),
        ("a1", "m1", "likes coffee", None, "DELETE", "2024-07-14 09:00:00.100000", 1),
    ),
    tuple(
        (*texts, time, time, deleted, None, None)
        for *texts, time, deleted in (
            ("a3", "m1", None, "likes tea", "ADD", "2024-07-13 09:00:00.000001", 0),
            ("a2", "m1", "likes tea", "likes coffee", "UPDATE", "2024-07-12 09:00:00.500000", 0),
            ("a1", "m1", "likes coffee", None, "DELETE", "2024-07-14 09:00:00.100000", 1),
        )
    ),
)
V0_0_10 = Layout(
    "mem0 0.0.10",
    """CREATE TABLE {table} (
        id TEXT PRIMARY KEY, memory_id TEXT, old_memory TEXT, new_memory TEXT, new_value TEXT,
        event TEXT, created_at DATETIME, updated_at DATETIME, is_deleted INTEGER
    )""",
    (
        ("b3", "m1", None, None, "cats", "ADD", "2024-08-02T01:00:00-07:00", None, 0),
        ("b2", "m1", "cats", "dogs", None, "UPDATE", "2024-08-02T01:00:00-07:00", "2024-08-01", 0),
        ("b1", "m2", None, "x", "x", "ADD", None, None, None),
    ),
    (
        ("b3", "m1", None, "cats", "ADD", "2024-08-02T01:00:00-07:00", None, 0, *NO),
        ("b2", "m1", "cats", "dogs", "UPDATE", "2024-08-02T01:00:00-07:00", "2024-08-01", 0, *NO),
        ("b1", "m2", None, "x", "ADD", None, None, None, None, None),
    ),
)
CONVERSATION = Layout(
    "mem0's conversation branch",
    """CREATE TABLE {table} (
        id TEXT PRIMARY KEY, memory_id TEXT, old_memory TEXT, new_memory TEXT, event TEXT,
        created_at DATETIME, updated_at DATETIME, is_deleted INTEGER DEFAULT 0,
        conversation_id TEXT, participant_id TEXT
    )""",
    (
        ("c2", "m1", None, "hi", "ADD", "2025-05-01T00:00:00Z", None, 0, "talk 7", "ann"),
        ("c1", "m1", "hi", "ho", "UPDATE", None, "2025-04-01T00:00:00Z", 0, None, None),
    ),
    (
        ("c2", "m1", None, "hi", "ADD", "2025-05-01T00:00:00Z", None, 0, "ann", None),
        ("c1", "m1", "hi", "ho", "UPDATE", None, "2025-04-01T00:00:00Z", 0, None, None),
    ),
    left_out=("history.conversation_id",),
)
SIX_COLUMNS = Layout(
    "six columns",
    """CREATE TABLE {table} (
        id TEXT PRIMARY KEY, memory_id TEXT, old_memory TEXT, new_memory TEXT, event TEXT,
        created_at DATETIME
    )""",
    (("d2", "m1", None, "n", "ADD", 2025), ("d1", "m1", "n", "o", "UPDATE", 1735689600.5)),
    (
        ("d2", "m1", None, "n", "ADD", 2025, None, None, None, None),
        ("d1", "m1", "n", "o", "UPDATE", 1735689600.5, None, None, None, None),
    ),
)
TS = Layout(
    "mem0-ts",
    """CREATE TABLE {table} (
        id INTEGER PRIMARY KEY AUTOINCREMENT, memory_id TEXT NOT NULL, previous_value TEXT,
        new_value TEXT, action TEXT NOT NULL, created_at TEXT, updated_at TEXT,
        is_deleted INTEGER DEFAULT 0
    )""",
    (
        (3, "m1", None, "sun", "ADD", "2025-02-02T00:00:00.000Z", None, 0),
        (9, "m1", "sun", "rain", "UPDATE", None, "2025-02-01T00:00:00.000Z", 0),
        (10, "m2", None, "wind", "ADD", "2025-01-02T00:00:00.000Z", None, 0),
    ),
    (
        ("mem0-ts-3-m1", "m1", None, "sun", "ADD", "2025-02-02T00:00:00.000Z", None, 0, *NO),
        ("mem0-ts-9-m1", "m1", "sun", "rain", "UPDATE", None, "2025-02-01T00:00:00.000Z", 0, *NO),
        ("mem0-ts-10-m2", "m2", None, "wind", "ADD", "2025-01-02T00:00:00.000Z", None, 0, *NO),
    ),
    table="memory_history",
)
TS_ON_SUPABASE = Layout(
    "mem0-ts",
    """CREATE TABLE {table} (
        id text primary key, memory_id text not null, previous_value text, new_value text,
        action text not null, created_at timestamptz, updated_at timestamptz, is_deleted integer
    )""",
    (("e2", "m1", None, "up", "ADD", "2025-03-01 00:00:00+00", None, 0),),
    (("e2", "m1", None, "up", "ADD", "2025-03-01 00:00:00+00", None, 0, None, None),),
    table="memory_history",
)
ANY_TABLE = Layout(
    "4 columns",
    'CREATE TABLE {table} ("ID" TEXT, Memory_Id TEXT, event TEXT, "rowid" TEXT)',
    (("f2", "m1", "ADD", "x"), (None, "m1", "MERGE", "y"), (None, "m2", "ADD", "z")),
    (
        ("f2", "m1", None, None, "ADD", None, None, None, None, None),
        ("history-row-2", "m1", None, None, "MERGE", None, None, None, None, None),
        ("history-row-3", "m2", None, None, "ADD", None, None, None, None, None),
    ),
    left_out=("history.rowid",),
)

OLD_LAYOUTS = {
    "0.0.2": V0_0_2,
    "0.0.10": V0_0_10,
    "conversation": CONVERSATION,
    "six": SIX_COLUMNS,
    "ts": TS,
    "supabase": TS_ON_SUPABASE,
    "any": ANY_TABLE,
}


def build(path: Path, script: str = "", *layouts: Layout, **tables: Layout) -> Path:
    """Make a file from a script, layouts under their own names, and layouts under given ones."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(script)
        for layout in layouts:
            layout.build(connection)
        for table, layout in tables.items():
            layout.build(connection, table)
    return path


def plain_mem0() -> ModuleType:
    """Return mem0's own `memory/storage.py`, loaded alone: importing the package starts threads."""
    package = importlib.util.find_spec("mem0")
    assert package is not None
    assert package.submodule_search_locations is not None
    file = Path(package.submodule_search_locations[0]) / "memory" / "storage.py"
    spec = importlib.util.spec_from_file_location("plain_mem0_storage", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
