"""Tables and statements for databases without a server in the tests: they are only compiled."""

import dataclasses
import inspect
import io
import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest
from asyncmy.errors import OperationalError
from sqlalchemy import delete, func, insert, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateIndex, CreateTable

from async_history import InvalidInput, open_history
from async_history._core.ledger.statements import LedgerStatements
from async_history._core.reading.filters import new_filter
from async_history._core.records.owners import SCOPES
from async_history._sql.columns import Name
from async_history._sql.dialects import claim, part_of, position, size_query
from async_history._sql.errors import (
    is_connection_lost,
    is_refusal,
    may_work_later,
    storage_error,
)
from async_history._sql.key_statements import count_clear
from async_history._sql.ledger_sql import statements_in
from async_history._sql.manager import sql_url
from async_history._sql.names import NAME_BYTES, key_of, long_names, whole_names
from async_history._sql.reading.filters import Range, Search
from async_history._sql.rows import ALL_COLUMNS, PLAIN_COLUMNS
from async_history._sql.tables import tables_in
from async_history._sql.writing.inserts import Insert, Inserts
from async_history.errors import (
    StorageCorrupt,
    StorageDenied,
    StorageError,
    StorageLocked,
    StorageUnreachable,
)
from async_history.sql import metadata
from tests.support.questions import START
from tests.support.sql_dialects import DIALECTS, StatementChecks, dialect_of

pytestmark = pytest.mark.once

_KEY_BYTES = {"mysql": 3072, "mariadb": 3072, "oracle": 6398, "mssql": 1700}
_NAME_CHARACTERS = 30
"""The longest name of a table or index in Oracle before 12.2."""


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("schema", [None, 'it\'s "mine"'])
def test_tables_and_statements_compile_for_every_dialect(name: str, schema: str | None) -> None:
    dialect = dialect_of(name)
    tables = tables_in(schema)
    written = io.StringIO()
    for table in (*tables.metadata.sorted_tables, *tables.ledger_metadata.sorted_tables):
        ddl = str(CreateTable(table).compile(dialect=dialect))
        written.write(ddl)
        names = [table.name, *(index.name or "" for index in table.indexes), *table.c.keys()]
        assert [one for one in names if len(one) > _NAME_CHARACTERS] == []
        if name == "mssql":
            assert "TEXT" not in ddl
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
async def test_dialect_specific_statements_compile_for_their_databases(name: str) -> None:
    """The statements on the tests' own databases are compiled for the others as they run."""
    dialect, tables = dialect_of(name), tables_in("mine")
    checks = StatementChecks([dialect])
    history = tables.history.c
    many = [f"m{n}" for n in range(100)]
    given: dict[str, Any] = {
        "memory_id": many,
        "actor_id": "ann",
        "role": "user",
        "event": "ADD",
        "text": "tea",
        "since": START,
        "until": START,
        "cause": {"run_id": "r"},
        "owner": tuple((scope, "x") for scope in SCOPES),
    }
    for order in ("oldest", "newest"):
        search = Search(new_filter(**given, order=order), tables, dialect)
        checks.check(search.page(Range(1, 2), 1, 10))
        checks.check(search.count(Range(1, 2), history.seq))
    key = part_of(dialect, history.cause, position(dialect, history.cause, "x"), 8)
    checks.check(select(history.seq).where(key.in_(select(tables.data_keys.c.id))))
    assert ("dbms_lob" in str(key.compile(dialect=dialect))) == (name == "oracle")
    checks.check(count_clear(dialect, tables))

    async def execute(statement: Any) -> Any:
        checks.check(statement)
        return SimpleNamespace(rowcount=1, lastrowid=9, scalar=lambda: 9, scalar_one=lambda: 9)

    connection: Any = SimpleNamespace(dialect=dialect, execute=execute)
    assert await claim(connection, tables, 2, version=0, least=0) == 7
    size = size_query(dialect, tables, has_ledger=True)
    assert size is None or str(size.compile(dialect=dialect))
    assert checks.faults == []


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("columns", [PLAIN_COLUMNS, ALL_COLUMNS], ids=["plain", "full"])
def test_rows_are_converted_as_the_driver_needs_them(name: str, columns: Sequence[str]) -> None:
    """SQLAlchemy converts neither values nor parameter names of such a statement."""
    dialect, tables = dialect_of(name), tables_in(None)
    added = Insert(tables.history, dialect, columns)
    (row,) = added.values([tuple(columns)])
    for column, value in zip(columns, row, strict=True):
        is_name = isinstance(tables.history.c[column].type, Name)
        assert value == (column.encode() if name == "mssql" and is_name else column)
    if not dialect.positional:
        assert set(re.findall(r"(?<!:)(?::|%\()(\w+)", added.sql)) == set(columns)


_TABLE = tables_in(None).history
_WRONG: dict[str, Any] = {
    "IN of 1,001 values": select(_TABLE.c.seq).where(_TABLE.c.seq.in_(range(1_001))),
    "2,101 parameters": select(_TABLE.c.seq).where(
        *(_TABLE.c.seq.in_(range(n, n + 700)) for n in range(3)), _TABLE.c.seq > 1
    ),
    "requires an order_by": select(_TABLE.c.seq).offset(1).limit(1),
    "a long text is compared": delete(_TABLE).where(_TABLE.c.cause == "x"),
    "a long text is sorted": select(_TABLE.c.seq).order_by(_TABLE.c.cause.desc()),
    "a condition is selected": select(_TABLE.c.seq > 1),
    "distinct long texts": select(_TABLE.c.cause).distinct(),
    "an empty text": select(_TABLE.c.seq).where(func.coalesce(_TABLE.c.role, "") != "x"),
    "multirow inserts": insert(_TABLE).values([{"seq": 1}, {"seq": 2}]),
}


@pytest.mark.parametrize("fault", _WRONG)
def test_statements_that_a_database_refuses_are_found(fault: str) -> None:
    checks = StatementChecks()
    checks.check(_WRONG[fault])
    assert checks.faults
    assert all(fault in one for one in checks.faults)


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
        ("oracle+oracledb_async://host/db", r"oracle\+oracledb is not installed"),
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
    other = key_of(f"{long}x")
    assert whole_names((other, "user"), columns, stored) == [other, "user"]
    for damaged in ("", "x", "7", "[]", '"a"', "null"):
        with pytest.raises(StorageCorrupt, match="long_names of the row with id"):
            whole_names(row, columns, damaged)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (3101, StorageLocked),  # group replication rolled back
        *((number, StorageUnreachable) for number in (3024, 3032, 3168, 3169)),
        *((number, StorageDenied) for number in (1820, 1862, 3159)),
    ],
)
def test_errors_that_only_mysql_has(number: int, kind: type[StorageError]) -> None:
    error = OperationalError(number, "said so")
    assert type(storage_error(error, "it")) is kind
    assert may_work_later(error) == (kind is not StorageDenied)
    assert is_connection_lost(error) == (kind is StorageUnreachable)


def test_prepared_statements_that_a_pooler_lost() -> None:
    for kind in (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError):
        error = DBAPIError("SELECT 1", (), kind("a name"))
        assert "behind a pooler" in str(storage_error(error, "it"))


def test_a_driver_that_is_installed_but_lacks_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ImportError("no pq wrapper available")

    dialect = make_url("mysql+asyncmy://h/d").get_dialect()
    monkeypatch.setattr(dialect, "import_dbapi", fail)
    with pytest.raises(InvalidInput, match="can't be imported: no pq wrapper"):
        open_history("mysql://h/d")


@pytest.mark.parametrize("number", [1026, 1180])
def test_an_error_while_mysql_commits_leaves_the_outcome_open(number: int) -> None:
    error = DBAPIError("COMMIT", (), OperationalError(number, "Got error 28 during COMMIT"))
    assert type(storage_error(error, "it")) is StorageError
    assert is_connection_lost(error)
    assert not is_refusal(error)
