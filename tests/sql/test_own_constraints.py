"""What the database's owner adds to the tables: it refuses records; errors show no recorded text.

The engine is the program's own, and shows parameters in SQLAlchemy's errors.
"""

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from async_history import HistoryManager, StorageLocked, StorageRefused
from async_history._sql.errors import storage_error
from async_history.sql import SqlHistoryManager

pytestmark = pytest.mark.once

TABLE: Final = "async_history_records"
TEXT: Final = 'geheim\' for key "wort" hier'
UNIQUE: Final = f"CREATE UNIQUE INDEX own ON {TABLE} (role)"
CHECK: Final = f"ALTER TABLE {TABLE} ADD CONSTRAINT own CHECK (role <> 'bad')"
OF_MARIADB: Final = {
    CHECK: "own",
    UNIQUE: "own",
    f"CREATE UNIQUE INDEX own ON {TABLE} (new_memory(50))": "own",
    f"CREATE TRIGGER own BEFORE INSERT ON {TABLE} FOR EACH ROW "
    "SET NEW.is_deleted = NEW.new_memory": "is_deleted",
    f"CREATE TRIGGER own BEFORE INSERT ON {TABLE} FOR EACH ROW "
    "SET NEW.role = CAST(NEW.new_memory AS INT)": "INTEGER",
}
OF_POSTGRES: Final = {
    CHECK: "own",
    UNIQUE: "own",
    f"CREATE UNIQUE INDEX own ON {TABLE} (new_memory)": "own",
    f"ALTER TABLE {TABLE} ADD CONSTRAINT own UNIQUE (new_memory) DEFERRABLE INITIALLY DEFERRED": (
        "own"
    ),
    f"CREATE INDEX own ON {TABLE} ((new_memory::int8))": "bigint",
    f"CREATE INDEX own ON {TABLE} ((new_memory::json ->> 'a'))": "json",
}
OF_SQLITE: Final = {
    UNIQUE: f"{TABLE}.role",
    f"CREATE UNIQUE INDEX own ON {TABLE} (new_memory)": f"{TABLE}.new_memory",
    f"CREATE UNIQUE INDEX own ON {TABLE} (lower(new_memory))": "own",
    f"CREATE INDEX own ON {TABLE} (json_extract(new_memory, '$.a'))": "JSON",
    f"CREATE TRIGGER own BEFORE INSERT ON {TABLE} WHEN new.role = 'bad' "
    "BEGIN SELECT RAISE(ABORT, 'own words'); END": "own words",
}
FOREIGN: Final = f"INSERT INTO {TABLE} (seq, id, memory_id, event, is_deleted) VALUES"
"""A record that another program has added without the lock on `state`."""
COLUMNS: Final = {
    "seq": f"{FOREIGN} (1, 'foreign', 'm', 'ADD', 0)",
    "id": f"{FOREIGN} (9, 'first', 'm', 'ADD', 0)",
}
CALLS: dict[str, Callable[[HistoryManager], Awaitable[object]]] = {
    "add": lambda history: history.add_history("m", None, TEXT, "ADD", role="bad"),
    "batch": lambda history: history.batch_add_history(
        [{"memory_id": "m", "event": "ADD", "new_memory": TEXT, "role": "bad"}] * 2
    ),
    "update": lambda history: history.update_history("first", TEXT, role="bad"),
}


async def require_hidden(
    engine: AsyncEngine, statement: str, name: str, call: str, **options: Any
) -> None:
    async with SqlHistoryManager(engine=engine, **options) as history:
        await history.add_history("first", None, "1", "ADD")
        if "UNIQUE" in statement:  # it refuses a record like this one
            await history.add_history("another", None, TEXT, "ADD", role="bad")
        async with engine.begin() as connection:
            await connection.exec_driver_sql(statement)
        refused, _ = await asyncio.gather(
            CALLS[call](history),
            history.add_history("other", None, "0", "ADD"),
            return_exceptions=True,
        )
        assert len(await history.get_history("other")) == 1
    assert isinstance(refused, StorageRefused)
    assert name in str(refused)
    shown = "".join(traceback.format_exception(refused))
    assert not [part for part in ("geheim", "wort", "hier") if part in shown], shown


async def errors_of_our_keys(engine: AsyncEngine, *renaming: str, **options: Any) -> list[object]:
    """Return the errors' types for a record whose number, or whose id, is taken."""
    schema = options.get("schema")
    async with SqlHistoryManager(engine=engine, **options) as history:
        await history.add_history("m", None, TEXT, "ADD", id="first")
    async with engine.begin() as connection:
        for statement in renaming:
            await connection.exec_driver_sql(statement)
    kinds: list[object] = []
    for statement in COLUMNS.values():
        own = statement.replace(TABLE, f'"{schema}".{TABLE}') if schema else statement
        async with engine.connect() as connection:
            with pytest.raises(IntegrityError) as caught:
                await connection.exec_driver_sql(own)
        kinds.append(type(storage_error(caught.value, "here")))
    return kinds


@pytest.mark.mariadb
async def test_keys_of_ours_in_mariadb(
    new_database: Callable[[], URL], engines: Callable[[str], AsyncEngine]
) -> None:
    """Each primary key has the same name there."""
    engine = engines(new_database().render_as_string(hide_password=False))
    assert await errors_of_our_keys(engine) == [StorageLocked, StorageLocked]
    renamed = f"ALTER TABLE {TABLE} RENAME INDEX {TABLE}_id TO renamed"
    engine = engines(new_database().render_as_string(hide_password=False))
    assert await errors_of_our_keys(engine, renamed) == [StorageLocked, StorageRefused]


@pytest.mark.postgres
async def test_keys_of_ours_in_postgresql(
    new_schema: Callable[[], str], postgres: str, engines: Callable[[str], AsyncEngine]
) -> None:
    plain = make_url(postgres).set(drivername="postgresql+asyncpg")
    engine = engines(plain.render_as_string(hide_password=False))
    schema, other = [str(make_url(new_schema()).query["schema"]) for _ in range(2)]
    assert await errors_of_our_keys(engine, schema=schema) == [StorageLocked, StorageLocked]
    renaming = [
        f'ALTER TABLE "{other}".{TABLE} RENAME CONSTRAINT {TABLE}_pkey TO renamed',
        f'ALTER INDEX "{other}".{TABLE}_id RENAME TO renamed_too',
    ]
    kinds = await errors_of_our_keys(engine, *renaming, schema=other)
    assert kinds == [StorageRefused, StorageRefused]


async def test_keys_of_ours_in_sqlite(
    tmp_path: Path, engines: Callable[[str], AsyncEngine]
) -> None:
    """Errors name their columns there."""
    engine = engines(f"sqlite+aiosqlite:///{tmp_path / 'history.db'}")
    renaming = [
        f"DROP INDEX {TABLE}_id",
        f"CREATE UNIQUE INDEX renamed ON {TABLE} (id)",
    ]
    kinds = await errors_of_our_keys(engine, *renaming)
    assert kinds == [StorageLocked, StorageLocked]


@pytest.mark.mariadb
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("statement", OF_MARIADB)
async def test_in_mariadb(
    statement: str,
    call: str,
    new_database: Callable[[], URL],
    engines: Callable[[str], AsyncEngine],
) -> None:
    engine = engines(new_database().render_as_string(hide_password=False))
    await require_hidden(engine, statement, OF_MARIADB[statement], call)


@pytest.mark.postgres
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("statement", OF_POSTGRES)
async def test_in_postgresql(
    statement: str,
    call: str,
    new_schema: Callable[[], str],
    postgres: str,
    engines: Callable[[str], AsyncEngine],
) -> None:
    schema = str(make_url(new_schema()).query["schema"])
    plain = make_url(postgres).set(drivername="postgresql+asyncpg")
    engine = engines(plain.render_as_string(hide_password=False))
    own = statement.replace(TABLE, f'"{schema}".{TABLE}')
    await require_hidden(engine, own, OF_POSTGRES[statement], call, schema=schema)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("statement", OF_SQLITE)
async def test_in_sqlite(
    statement: str, call: str, tmp_path: Path, engines: Callable[[str], AsyncEngine]
) -> None:
    engine = engines(f"sqlite+aiosqlite:///{tmp_path / 'history.db'}")
    await require_hidden(engine, statement, OF_SQLITE[statement], call)
