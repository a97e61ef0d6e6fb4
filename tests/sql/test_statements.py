"""Tables and statements for databases without a server in the tests: they are only compiled."""

import dataclasses
import inspect
import io
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.engine import Dialect, make_url
from sqlalchemy.schema import CreateIndex, CreateTable

from async_history import InvalidInput, open_history
from async_history._core.filters import new_filter
from async_history._core.ledger.statements import LedgerStatements
from async_history._sql.filters import Range, Search
from async_history._sql.inserts import Inserts
from async_history._sql.ledger_sql import statements_in
from async_history._sql.manager import sql_url
from async_history._sql.names import NAME_BYTES, key_of, long_names, whole_names
from async_history._sql.tables import tables_in
from async_history.errors import StorageCorrupt
from async_history.sql import metadata
from tests.support.questions import START

pytestmark = pytest.mark.once

DIALECTS = ("mysql", "mariadb", "postgresql", "sqlite", "oracle", "mssql")
_KEY_BYTES = {"mysql": 3072, "mariadb": 3072, "oracle": 6398, "mssql": 1700}


def dialect_of(name: str) -> Dialect:
    driver = {"oracle": "oracle+oracledb"}.get(name, name)
    return make_url(f"{driver}://").get_dialect()()


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("schema", [None, 'it\'s "mine"'])
def test_tables_and_statements_compile_for_every_dialect(name: str, schema: str | None) -> None:
    dialect = dialect_of(name)
    tables = tables_in(schema)
    written = io.StringIO()
    for table in (*tables.metadata.sorted_tables, *tables.ledger_metadata.sorted_tables):
        ddl = str(CreateTable(table).compile(dialect=dialect))
        written.write(ddl)
        if name in ("mysql", "mariadb"):
            assert "utf8mb4" in ddl
            assert "InnoDB" in ddl
        for index in table.indexes:
            written.write(str(CreateIndex(index).compile(dialect=dialect)))
            size = sum(NAME_BYTES if c.name != "seq" else 8 for c in index.columns)
            assert size * (4 if name == "oracle" else 1) <= _KEY_BYTES.get(name, size * 4)
    is_binary = name in ("mysql", "mariadb", "mssql")
    assert is_binary == ("memory_id VARBINARY(255)" in written.getvalue())
    inserts = Inserts(tables, dialect)
    assert len(inserts.plain.order) == 12
    assert len(inserts.full.order) == 19
    for asked in (
        {"memory_id": ["a", "b"], "text": "x"},
        {"event": "DELETE", "actor_id": "ann"},
        {"cause": {"run_id": "r"}, "owner": (("user_id", "ann"),)},
    ):
        given: dict[str, Any] = {
            **dict.fromkeys(("memory_id", "actor_id", "role", "event", "text", "since", "until")),
            **asked,
        }
        search = Search(new_filter(**given), tables, dialect)
        for statement in (
            search.page(Range(1, 2), 1, 10),
            search.count(Range(1, 2), tables.history.c.seq),
        ):
            assert str(statement.compile(dialect=dialect))
        assert str(search.spans().compile(dialect=dialect))


@pytest.mark.parametrize("asked", [{}, {"memory_id": "m"}, {"actor_id": "ann"}])
def test_an_index_is_read_in_few_ranges(asked: dict[str, Any]) -> None:
    """Each range is a statement. Without an index, ranges limit how much is read."""
    names = ("memory_id", "actor_id", "role", "event", "text", "until")
    given: dict[str, Any] = {**dict.fromkeys(names), "since": START, **asked}
    dialect = dialect_of("mariadb")
    for order, after in (("oldest", 0), ("newest", 1 << 30)):
        search = Search(new_filter(**given, order=order), tables_in(None), dialect)  # type: ignore[arg-type]
        few = search.ranges([0, 1, 3], after)
        assert {(one.first, one.last) for one in few} == {(0, 8191), (12288, 16383)}
        many = search.ranges(range(0, 40, 2), after)
        assert len(many) == (1 if asked else 20)
        assert min(one.first or 0 for one in many) == 0
        assert max(one.last or 0 for one in many) == 39 * 4096 - 1


@pytest.mark.parametrize("name", DIALECTS)
async def test_the_ledgers_statements_compile_for_every_dialect(name: str) -> None:
    dialect = dialect_of(name)
    executed: list[str] = []

    async def fetch(statement: Any, values: Any = None) -> list[tuple[int]]:
        executed.append(str(statement.compile(dialect=dialect)))
        return [(7,)] if "count(" in executed[-1].lower() else []

    lists = {"ids": '["x"]', "memory_ids": '["x"]', "keys": "[1]", "places": "[1]"}
    given = {**lists, "pairs": "[[1, 2]]"}
    for each in dataclasses.fields(LedgerStatements):
        statement = getattr(statements_in(tables_in(None)), each.name)
        if statement is not None:
            names = list(inspect.signature(statement).parameters)[1:]
            await statement(fetch, *(given.get(one, 1) for one in names))
    assert len(executed) > 25


def test_the_metadata_is_for_a_programs_own_migrations() -> None:
    """Alembic accepts it as `target_metadata`."""
    assert {table.name for table in metadata.sorted_tables} >= {
        "async_history_records",
        "async_history_state",
    }
    assert str(select(metadata.tables["async_history_state"]))


def test_names_of_any_length_have_different_keys() -> None:
    names = ["", "a", "a ", "A", "ä" * 127, "ä" * 128, "x" * 255, "x" * 256, "x" * 999, "\x1f"]
    names += ["🍵" * 64, "🍵" * 63]
    keys = [key_of(name) for name in names]
    assert len(set(keys)) == len(names)
    assert all(len(key.encode()) <= NAME_BYTES for key in keys)
    whole = key_of("x" * 999)
    assert key_of(whole) != whole, "no name is taken for another's key"
    assert long_names({"id": "a", "role": None}) is None


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("mysql://host/db", "mysql+asyncmy"),
        ("mariadb://host/db", "mariadb+asyncmy"),
        ("mariadb+asyncmy://host/db", "mariadb+asyncmy"),
    ],
)
def test_a_url_may_leave_out_the_driver(url: str, driver: str) -> None:
    assert sql_url(url).drivername == driver
    assert open_history(url).backend.store_name == ("mysql", "host", "", "db", "", "")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("mysql+pymysql://host/db", "not an asyncio driver"),
        ("nothing+else://host/db", "not an asyncio driver"),
        ("mysql+aiomysql://host/db", "not installed"),
        ("oracle+oracledb://host/db", r"oracle\+oracledb is not installed"),
        ("oracle://host/db", r"oracle\+oracledb is not installed"),
        ("mssql+aioodbc://host/db", r"mssql\+aioodbc is not installed"),
        ("mssql://host/db", r"mssql\+aioodbc is not installed"),
        ("mysql+asyncmy://ann:ge@heim@host/db", "percent-encode"),
    ],
)
def test_urls_without_a_dialect_are_refused(url: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason) as refused:
        open_history(url)
    assert "heim" not in str(refused.value)
    with pytest.raises(InvalidInput, match="no option"):
        open_history("mysql+asyncmy://host/db", journal="wal")


def test_long_names_are_read_whole_or_called_damaged() -> None:
    columns, long = ("id", "role"), "n" * 300
    row = (key_of(long), "user")
    stored = long_names({"id": long, "role": "user"})
    assert stored is not None
    assert whole_names(row, columns, stored) == [long, "user"]
    for damaged in ("", "x", "7", "[]", '"a"', "null"):
        with pytest.raises(StorageCorrupt, match="long_names of the row with id"):
            whole_names(row, columns, damaged)
