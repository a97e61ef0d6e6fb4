"""Changes to a file by other means than ours.

Rows, tables, triggers and side tables come from elsewhere than the index expects.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from async_history._sqlite.index.validity import HISTORY_TRIGGERS, INDEX_TABLES, ROWID_LIMIT

START = datetime(2026, 1, 1, tzinfo=UTC)
ROWS = 1_100
"""More than two spans, so that times are indexed too."""
TEN = (
    "id, memory_id, old_memory, new_memory, event, created_at, updated_at, is_deleted,"
    " actor_id, role"
)
ROW = f"""
INSERT OR REPLACE INTO history (rowid, {TEN}) VALUES (?, ?, ?, NULL, ?, 'ADD', ?, NULL, 0, ?, NULL)
"""
SOME_TABLES = tuple(table for table in INDEX_TABLES if table != "async_history_state")


def moment(number: int) -> datetime:
    return START + timedelta(minutes=number)


@contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA cell_size_check = ON")
        yield connection


Change = Callable[[Path, Path], None]
"""Change a file, given it and the folder that it came from."""


def dumped_and_restored(path: Path, made: Path) -> None:
    copy = path.with_name("restored.db")
    with raw(path) as source, raw(copy) as target:
        target.executescript("\n".join(source.iterdump()))
    replace(path, copy)


def dumped_with_other_names(path: Path, made: Path) -> None:
    """Between the two dumps no rowid changes, but the keys of the memories do."""
    dumped_and_restored(path, made)
    run("UPDATE history SET memory_id = 'm' || (8 - substr(memory_id, 2))")(path, made)
    dumped_and_restored(path, made)


def cloned(path: Path, made: Path) -> None:
    """As `.clone` does it: the schema first, then the rows of each table."""
    copy = path.with_name("cloned.db")
    with raw(path) as source, raw(copy) as target:
        objects = source.execute(
            "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL"
        ).fetchall()
        target.execute("BEGIN")
        for kind, name, sql in sorted(objects, key=lambda one: one[0] != "table"):
            if kind == "trigger":
                continue
            target.execute(sql)
            if kind == "table":
                rows = source.execute(f"SELECT * FROM {name}").fetchall()
                marks = ", ".join("?" * len(rows[0])) if rows else ""
                if rows:
                    target.executemany(f"INSERT INTO {name} VALUES ({marks})", rows)
        for kind, _, sql in objects:
            if kind == "trigger":
                target.execute(sql)
        target.execute("COMMIT")
    replace(path, copy)


def backed_up(path: Path, made: Path) -> None:
    copy = path.with_name("backup.db")
    with raw(path) as source, raw(copy) as target:
        source.backup(target)
    replace(path, copy)


def vacuumed_into(path: Path, made: Path) -> None:
    copy = path.with_name("small.db")
    with raw(path) as connection:
        connection.execute("VACUUM INTO ?", (str(copy),))
    replace(path, copy)


def replace(path: Path, copy: Path) -> None:
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    copy.replace(path)


def run(script: str) -> Change:
    def change(path: Path, made: Path) -> None:
        with raw(path) as connection:
            connection.execute("ATTACH ? AS older", (str(made / "older.db"),))
            connection.execute("ATTACH ? AS other", (str(made / "other.db"),))
            connection.executescript(script)

    change.__name__ = script.split("--")[-1].strip()
    return change


def rebuilt(path: Path, made: Path) -> None:
    """Change the table in the twelve steps of SQLite's documentation."""
    with raw(path) as connection:
        connection.execute("BEGIN")
        triggers = connection.execute(
            "SELECT sql FROM sqlite_master WHERE type = 'trigger' AND lower(tbl_name) = 'history'"
        ).fetchall()
        connection.execute(
            "CREATE TABLE new_history (id TEXT PRIMARY KEY, memory_id TEXT, old_memory TEXT,"
            " new_memory TEXT, event TEXT, created_at DATETIME, updated_at DATETIME,"
            " is_deleted INTEGER, actor_id TEXT, role TEXT)"
        )
        connection.execute(f"INSERT INTO new_history SELECT {TEN} FROM history ORDER BY id")
        connection.execute("DROP TABLE history")
        connection.execute("ALTER TABLE new_history RENAME TO history")
        for (sql,) in triggers:
            connection.execute(sql)
        connection.execute("COMMIT")


def written_between(path: Path, made: Path) -> None:
    """Write rows with given rowids: in a gap, before all others, over an existing row."""
    with raw(path) as connection:
        for rowid in (-5, 0, 77, 78, ROWS + 5):
            values = (rowid, f"new {rowid}", "m1", "secret", moment(3).isoformat(), "a1")
            connection.execute(ROW, values)


def written_at_the_ends(path: Path, made: Path) -> None:
    with raw(path) as connection:
        for rowid in (ROWID_LIMIT, (1 << 63) - 1, -(1 << 63)):
            values = (rowid, f"new {rowid}", "m1", "secret", moment(3).isoformat(), "a1")
            connection.execute(ROW, values)
        connection.execute(
            f"INSERT INTO history ({TEN}) SELECT 'at random', 'm2',"
            " NULL, 'secret', 'ADD', '2026-01-01', NULL, 0, 'a2', NULL"
        )


def side_table_restored(table: str, source: str) -> Change:
    return run(
        f"DELETE FROM main.{table}; INSERT INTO main.{table} SELECT * FROM {source}.{table}"
        f" -- {table} of {source}"
    )


OTHERS_ADD = (
    f"INSERT INTO history ({TEN}) SELECT id || ' again', {TEN[4:]}"
    " FROM history WHERE rowid % 50 = 0"
)
IN_PLACE: dict[str, Change] = {
    "vacuum": run("VACUUM"),
    "vacuum after removals": run("DELETE FROM history WHERE rowid % 3 = 0; VACUUM"),
    "rebuilt": rebuilt,
    "archived": run("ALTER TABLE history RENAME TO history_2025"),
    "archived, and back": run(
        "ALTER TABLE history RENAME TO away; DELETE FROM away WHERE rowid % 5 = 0;"
        "INSERT INTO away (id, memory_id, new_memory, event) VALUES ('n', 'm1', 'secret', 'ADD');"
        "ALTER TABLE away RENAME TO history"
    ),
    "another table under the name": run(
        "ALTER TABLE history RENAME TO away; CREATE TABLE history (id TEXT PRIMARY KEY, memory_id"
        " TEXT, old_memory TEXT, new_memory TEXT, event TEXT, created_at DATETIME, updated_at"
        " DATETIME, is_deleted INTEGER, actor_id TEXT, role TEXT);"
        "INSERT INTO history SELECT * FROM away WHERE rowid > 100 ORDER BY id"
    ),
    "dropped, made again with our trigger's name": run(
        "CREATE TABLE kept AS SELECT * FROM history ORDER BY id; DROP TABLE history;"
        "CREATE TABLE history (id TEXT PRIMARY KEY, memory_id TEXT, old_memory TEXT, new_memory"
        " TEXT, event TEXT, created_at DATETIME, updated_at DATETIME, is_deleted INTEGER,"
        " actor_id TEXT, role TEXT); INSERT INTO history SELECT * FROM kept;"
        + "".join(
            f"CREATE TRIGGER {name} AFTER DELETE ON history BEGIN SELECT 1; END;"
            for name in HISTORY_TRIGGERS
        )
    ),
    "others add": run(OTHERS_ADD),
    "newest go, others add": run(
        f"DELETE FROM history WHERE rowid > (SELECT max(rowid) - 300 FROM history); {OTHERS_ADD}"
    ),
    "newest replaced without a trigger": run(
        "REPLACE INTO history (rowid, id, memory_id, new_memory, event, actor_id)"
        " SELECT max(rowid), 'x', 'm3', 'secret', 'ADD', 'a2' FROM history"
    ),
    "newest gone without a trigger": run(
        "UPDATE OR REPLACE history SET id = (SELECT id FROM history ORDER BY rowid DESC LIMIT 1)"
        f" WHERE rowid = (SELECT min(rowid) FROM history); {OTHERS_ADD}"
    ),
    "written between": written_between,
    "restored between": run(
        f"INSERT OR IGNORE INTO history (rowid, {TEN}) SELECT rowid, {TEN} FROM older.history"
    ),
    "rows moved": run("UPDATE history SET rowid = rowid + 1000000"),
    "some rows moved": run("UPDATE history SET rowid = -rowid WHERE rowid % 7 = 3"),
    "changed": run(
        "UPDATE history SET memory_id = 'm1' WHERE rowid % 100 = 0;"
        "UPDATE history SET actor_id = 'a1' WHERE rowid % 90 = 0;"
        "UPDATE history SET created_at = '2020-01-01' WHERE rowid % 80 = 0;"
        "UPDATE history SET id = id || '+' WHERE rowid = (SELECT max(rowid) FROM history)"
    ),
    "emptied": run("DELETE FROM history"),
    "emptied, others add": run(
        f"DELETE FROM history; INSERT INTO history SELECT {TEN} FROM older.history"
    ),
}  # fmt: skip
"""Changes that every statement must notice, even while a manager has the file open."""
AT_OPENING: dict[str, Change] = {
    "dumped": dumped_and_restored,
    "dumped, with other names": dumped_with_other_names,
    "cloned": cloned,
    "backed up": backed_up,
    "vacuumed into another": vacuumed_into,
    "a trigger gone for a while": run(
        "DROP TRIGGER async_history_memory_renamed; DROP TRIGGER async_history_row_between;"
        "UPDATE history SET memory_id = 'm1' WHERE rowid % 100 = 0;"
    ),
    "our triggers on another table": run(
        "DROP TRIGGER async_history_last_deleted; CREATE TABLE t (x);"
        "CREATE TRIGGER async_history_last_deleted AFTER DELETE ON t BEGIN SELECT 1; END"
    ),
    "a view of a side table's name": run(
        "DROP TABLE async_history_strays; CREATE VIEW async_history_strays AS SELECT 1 AS position"
    ),
    "the state is gone": run("DELETE FROM async_history_state"),
    "no side tables": run("; ".join(f"DROP TABLE {table}" for table in INDEX_TABLES)),
    "state older": side_table_restored("async_history_state", "older"),
    "state of another file": side_table_restored("async_history_state", "other"),
    "all but the state older": run(
        "; ".join(
            f"DELETE FROM main.{table}; INSERT INTO main.{table} SELECT * FROM older.{table}"
            for table in SOME_TABLES
        )
    ),
    "all of another file": run(
        "; ".join(
            f"DELETE FROM main.{table}; INSERT INTO main.{table} SELECT * FROM other.{table}"
            for table in INDEX_TABLES
        )
    ),
    "written at the ends": written_at_the_ends,
    **{
        f"{table} {how}": change
        for table in SOME_TABLES
        if table != "async_history_strays"
        for how, change in {
            "older": side_table_restored(table, "older"),
            "of another file": side_table_restored(table, "other"),
            "emptied": run(f"DELETE FROM {table}"),
        }.items()
    },
}
CHANGES = IN_PLACE | AT_OPENING
