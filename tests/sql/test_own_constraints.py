"""What the database's owner adds to the tables: errors of it show no recorded text.

The engine is the program's own, and shows parameters in SQLAlchemy's errors.
"""

import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from async_history import HistoryManager, StorageRefused
from async_history.sql import SqlHistoryManager

pytestmark = pytest.mark.once

TABLE: Final = "async_history_records"
TEXT: Final = 'geheim\' for key "wort" hier'
CHECK: Final = f"ALTER TABLE {TABLE} ADD CONSTRAINT own CHECK (role <> 'bad')"
OF_MARIADB: Final = {
    CHECK: "own",
    f"CREATE TRIGGER own BEFORE INSERT ON {TABLE} FOR EACH ROW "
    "SET NEW.is_deleted = NEW.new_memory": "is_deleted",
    f"CREATE TRIGGER own BEFORE INSERT ON {TABLE} FOR EACH ROW "
    "SET NEW.role = CAST(NEW.new_memory AS INT)": "INTEGER",
}
OF_POSTGRES: Final = {
    CHECK: "own",
    f"CREATE INDEX own ON {TABLE} ((new_memory::int8))": "bigint",
    f"CREATE INDEX own ON {TABLE} ((new_memory::json ->> 'a'))": "json",
}
OF_SQLITE: Final = {
    f"CREATE INDEX own ON {TABLE} (json_extract(new_memory, '$.a'))": "JSON",
    f"CREATE TRIGGER own BEFORE INSERT ON {TABLE} WHEN new.role = 'bad' "
    "BEGIN SELECT RAISE(ABORT, 'own words'); END": "own words",
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
        async with engine.begin() as connection:
            await connection.exec_driver_sql(statement)
        with pytest.raises(StorageRefused) as caught:
            await CALLS[call](history)
    assert name in str(caught.value)
    shown = "".join(traceback.format_exception(caught.value))
    assert not [part for part in ("geheim", "wort", "hier") if part in shown], shown


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
