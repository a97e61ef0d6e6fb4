"""An error of the server for a batch is raised only for the submissions that cause it."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from async_history import (
    HistoryManager,
    StorageDenied,
    StorageError,
    StorageReadOnly,
    StorageRefused,
    open_history,
)
from async_history._core.writing.commit_function import CommitTry, OutcomeUnknown
from async_history._core.writing.late_tries import LateTries
from async_history._postgres.connecting.work_limit import CutOff
from async_history._postgres.schema import quoted
from async_history._postgres.writing.late_tries import note, shares_of
from tests.support.postgres_server import with_query

pytestmark = [pytest.mark.postgres, pytest.mark.once]

_CALLS = 20
_TRIGGER = """
CREATE TABLE {{schema}}.secret ();
CREATE FUNCTION {{schema}}.rule() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.memory_id = 'bad' THEN {} END IF; RETURN NEW;
END $$;
CREATE TRIGGER rule {{when}} INSERT ON {{schema}}.history
FOR EACH ROW EXECUTE FUNCTION {{schema}}.rule();
"""
_DEFERRED = """
CREATE FUNCTION {schema}.rule() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.memory_id = 'bad' THEN RAISE 'not this one' USING ERRCODE = 'AB001'; END IF; RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER rule AFTER INSERT ON {schema}.history DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION {schema}.rule();
"""


def _raising(state: str, when: str = "BEFORE") -> str:
    sql = _TRIGGER.format(f"RAISE 'not this one' USING ERRCODE = '{state}';")
    return sql.replace("{when}", when)


def _running(sql: str) -> str:
    return _TRIGGER.format(sql).replace("{when}", "AFTER")


RULES = {
    "deferred foreign key": """
        CREATE TABLE {schema}.memories (id text COLLATE "C" PRIMARY KEY);
        INSERT INTO {schema}.memories SELECT 'm' || n FROM generate_series(0, 100) n;
        GRANT SELECT ON {schema}.memories TO PUBLIC;
        ALTER TABLE {schema}.history ADD FOREIGN KEY (memory_id) REFERENCES {schema}.memories
        DEFERRABLE INITIALLY DEFERRED""",
    "deferred unique": """
        ALTER TABLE {schema}.history ADD UNIQUE (new_memory) DEFERRABLE INITIALLY DEFERRED""",
    "deferred trigger": _DEFERRED,
    "policy": """
        ALTER TABLE {schema}.history ENABLE ROW LEVEL SECURITY;
        CREATE POLICY r ON {schema}.history FOR SELECT USING (true);
        CREATE POLICY w ON {schema}.history FOR INSERT WITH CHECK (memory_id <> 'bad')""",
    "check that fails": """
        ALTER TABLE {schema}.history ADD CHECK (1 / (memory_id <> 'bad')::integer = 1)""",
    "rule": """
        CREATE RULE rule AS ON INSERT TO {schema}.history WHERE NEW.memory_id = 'bad'
        DO INSTEAD NOTHING""",
    "right of a trigger": _running("PERFORM * FROM {schema}.secret;"),
    "table of a trigger": _running("PERFORM * FROM {schema}.nothing;"),
}
STATES = ("AB001", "08006", "57P01", "53100", "42501", "42P01", "XX001", "0A000")

Open = Callable[..., HistoryManager]


@pytest.fixture
async def owner(postgres: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(postgres)
    yield connection
    await connection.close()


@pytest.fixture
async def role(owner: Any) -> AsyncIterator[str]:
    role = f"agent_{secrets.token_hex(4)}"
    await owner.execute(f"CREATE ROLE {role}")
    yield role
    await owner.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.fixture
async def open_(new_schema: Callable[[], str], owner: Any, role: str) -> Open:
    """Opens a history as a role that owns nothing and that policies apply to."""
    url = new_schema()
    async with open_history(url):
        pass
    await owner.execute(
        f"""GRANT USAGE ON SCHEMA {_schema(url)} TO {role};
        GRANT SELECT, INSERT, DELETE ON ALL TABLES IN SCHEMA {_schema(url)} TO {role}"""
    )
    return lambda **options: open_history(with_query(url, role=role), **options)


def _schema(url: str) -> str:
    return parse_qs(urlsplit(url).query)["schema"][0]


async def _make(owner: Any, history: HistoryManager, sql: str) -> None:
    schema = quoted(history.backend.schema_name)  # type: ignore[attr-defined]
    await owner.execute(sql.replace("{schema}", schema))


def _records(calls: int, *, named: bool, good: str = "m{}") -> list[dict[str, Any]]:
    """Return one record for each call; the seventh is bad."""
    records = [
        {"memory_id": good.format(n), "new_memory": f"text {n}", "event": "ADD"}
        for n in range(calls)
    ]
    records[7] |= {"memory_id": "bad", "new_memory": "text 6"}
    if named:
        for n in range(0, calls, 2):
            records[n]["id"] = f"id {n}"
    return records


async def _outcomes(calls: list[Awaitable[object]]) -> list[str]:
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    return [type(one).__name__ if isinstance(one, Exception) else "ok" for one in outcomes]


async def _require_neighbours(history: HistoryManager, *, named: bool) -> None:
    """Record, and check that only the bad submission is refused."""
    records = _records(_CALLS, named=named)
    outcomes = await _outcomes([history.batch_add_history([record]) for record in records])
    refused = outcomes.pop(7)
    assert set(outcomes) == {"ok"}
    assert refused in ("StorageRefused", "StorageDenied", "StorageMissing")
    assert await history.count_history() == _CALLS - 1
    writer = (await history.stats()).writer
    assert writer is not None
    assert writer.failed_batches == 0


@pytest.mark.parametrize("rule", RULES)
async def test_a_bad_submission_is_refused_and_its_neighbours_are_written(
    rule: str, open_: Open, owner: Any
) -> None:
    async with open_(retry_timeout_s=60) as history:
        await _make(owner, history, RULES[rule])
        for named in (False, True):
            await _require_neighbours(history, named=named)
            await _make(owner, history, "TRUNCATE {schema}.history")


@pytest.mark.parametrize("when", ["BEFORE", "AFTER"])
async def test_a_submission_for_which_a_trigger_raises_is_refused(
    when: str, open_: Open, owner: Any
) -> None:
    async with open_(retry_timeout_s=60) as history:
        for state in STATES:
            await _make(owner, history, _raising(state, when))
            await _require_neighbours(history, named=when == "AFTER")
            await _make(
                owner,
                history,
                "TRUNCATE {schema}.history; DROP TABLE {schema}.secret;"
                " DROP FUNCTION {schema}.rule CASCADE",
            )


@pytest.mark.parametrize("rule", [_DEFERRED, _raising("AB001")], ids=["deferred", "at once"])
async def test_a_bad_submission_through_a_pooler(
    rule: str, new_schema: Callable[[], str], pooled: str, owner: Any
) -> None:
    url = with_query(pooled, schema=_schema(new_schema()))
    async with open_history(url) as history:
        await _make(owner, history, rule)
        records = _records(_CALLS, named=False)
        outcomes = await _outcomes([history.batch_add_history([record]) for record in records])
        assert outcomes == ["ok"] * 7 + ["StorageRefused"] + ["ok"] * 12


async def test_a_lone_submission_gets_the_same_error(open_: Open, owner: Any) -> None:
    for state in ("AB001", "08006", "P0001", "42501"):
        async with open_() as history:
            await _make(owner, history, _raising(state))
            with pytest.raises(StorageRefused, match="not this one"):
                await history.add_history("bad", None, "x", "ADD")
            await history.add_history("good", None, "x", "ADD")
            await _make(owner, history, "DROP FUNCTION {schema}.rule CASCADE")
            await _make(owner, history, "DROP TABLE {schema}.secret")


async def test_bad_messages_are_found_too(open_: Open, owner: Any) -> None:
    async with open_() as history:
        sql = _raising("AB001").replace("history", "messages")
        await _make(owner, history, sql.replace("memory_id", "session_scope"))
        calls: list[Awaitable[object]] = [
            history.save_messages([{"role": "user", "content": "x"}], scope)
            for scope in ("a", "bad", "b")
        ]
        assert await _outcomes(calls) == ["ok", "StorageRefused", "ok"]


async def test_a_transient_error_of_one_does_not_fail_the_others(open_: Open, owner: Any) -> None:
    """One of them raises a serialization failure each time."""
    async with open_(retry_timeout_s=10) as history:
        await _make(owner, history, _raising("40001"))
        statements = _Statements(history)
        records = _records(_CALLS, named=False)
        outcomes = await _outcomes([history.batch_add_history([record]) for record in records])
        assert outcomes == ["ok"] * 7 + ["StorageLocked"] + ["ok"] * 12
        # A slow server still has time for each statement.
        assert statements.with_short_lock_waits
        assert not statements.short


async def test_a_lock_that_one_waits_for_does_not_fail_the_others(open_: Open, owner: Any) -> None:
    async with open_(retry_timeout_s=10) as history:
        await _make(
            owner,
            history,
            RULES["deferred foreign key"].replace("INITIALLY DEFERRED", "")
            + "; INSERT INTO {schema}.memories VALUES ('bad')",
        )
        records = _records(_CALLS, named=False)
        async with owner.transaction():
            await _make(owner, history, "DELETE FROM {schema}.memories WHERE id = 'bad'")
            outcomes = await _outcomes([history.batch_add_history([record]) for record in records])
        assert outcomes == ["ok"] * 7 + ["StorageLocked"] + ["ok"] * 12


async def test_a_statement_that_does_not_end_does_not_fail_the_others(
    open_: Open, owner: Any
) -> None:
    """One of them has a trigger that takes an hour. Two managers wait at the same time."""
    async with open_(retry_timeout_s=30) as first, open_(retry_timeout_s=30) as second:
        await _make(owner, first, _running("PERFORM pg_catalog.pg_sleep(3600);"))

        async def record(history: HistoryManager, *, named: bool) -> None:
            statements = _Statements(history)
            records = _records(_CALLS, named=named)
            outcomes = await _outcomes([history.batch_add_history([one]) for one in records])
            assert outcomes == ["ok"] * 7 + ["StorageUnreachable"] + ["ok"] * 12
            assert statements.short

        await asyncio.gather(record(first, named=False), record(second, named=True))


@pytest.mark.parametrize(
    ("error", "is_too_long"),
    [(CutOff("no answer"), True), (OutcomeUnknown("the connection was lost"), False)],
)
def test_statements_are_limited_after_a_try_that_was_cut_off(
    error: OutcomeUnknown, is_too_long: bool
) -> None:
    tries = LateTries(1.0)
    this, other = (CommitTry(True, float(begun), lambda: None) for begun in range(2))
    note(tries, this, error)
    assert (shares_of(tries, this).statements is not None) == is_too_long
    assert shares_of(tries, other).statements is None


@pytest.mark.parametrize(
    ("sql", "error"),
    [
        ("REVOKE INSERT ON {schema}.history FROM {role}", StorageDenied),
        ("ALTER DATABASE {database} SET default_transaction_read_only = on", StorageReadOnly),
    ],
)
async def test_an_error_of_the_whole_batch_is_not_tried_for_each(
    sql: str, error: type[StorageError], open_: Open, owner: Any, role: str
) -> None:
    database = await owner.fetchval("SELECT current_database()")
    async with open_(retry_timeout_s=2) as history:
        await history.add_history("m", None, "x", "ADD")
    await _make(owner, history, sql.replace("{role}", role).replace("{database}", database))
    try:
        async with open_(retry_timeout_s=2) as history:
            statements = _Statements(history)
            records = _records(200, named=False)
            calls = [history.batch_add_history([record]) for record in records]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(one) for one in outcomes} == {error}
            assert statements.savepoints == 0 or error is not StorageDenied
            assert statements.savepoints < 200
    finally:
        await owner.execute(f"ALTER DATABASE {database} RESET default_transaction_read_only")


async def test_an_error_that_a_trigger_raises_each_time_is_not_tried_for_each(
    open_: Open, owner: Any
) -> None:
    async with open_() as history:
        await _make(owner, history, RULES["right of a trigger"].replace("= 'bad'", "<> ''"))
        statements = _Statements(history)
        records = _records(400, named=False)
        calls = [history.batch_add_history([record]) for record in records]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(one) for one in outcomes} == {StorageDenied}
        assert 0 < statements.savepoints < 50


class _Statements:
    """Counts the savepoints that a history's writer sets, and its transactions with short limits
    of lock waits and of statements."""

    def __init__(self, history: HistoryManager) -> None:
        self.savepoints = self.with_short_lock_waits = self.short = 0
        connections: Any = history.store.connections  # type: ignore[attr-defined]
        write = connections.write

        async def write_counted(work: Callable[..., Awaitable[Any]], *limits: Any) -> Any:
            async def counted(connection: Any, settings: Any) -> Any:
                connection.add_query_logger(self._count)
                try:
                    return await work(connection, settings)
                finally:
                    connection.remove_query_logger(self._count)

            return await write(counted, *limits)

        connections.write = write_counted

    def _count(self, record: Any) -> None:
        self.savepoints += record.query.startswith("SAVEPOINT")
        self.with_short_lock_waits += "SET LOCAL lock_timeout" in record.query
        self.short += "SET LOCAL statement_timeout" in record.query


@pytest.mark.parametrize("within", ["queue", "transaction"])
async def test_a_call_that_is_too_large_for_a_message_is_not_sent(
    within: str, open_: Open, owner: Any
) -> None:
    """More than 1 GiB in four texts. The others of its batch are written."""
    text = "x" * (260 * 1024 * 1024)
    large = [{"memory_id": "m", "new_memory": text, "event": "ADD"}] * 4
    async with open_() as history:
        await history.add_history("m", None, "tea", "ADD")
        if within == "queue":
            outcomes = await _outcomes(
                [
                    history.add_history("m", None, "tea", "ADD"),
                    history.batch_add_history(large),
                    history.add_history("m", None, "tea", "ADD"),
                ]
            )
            assert outcomes == ["ok", "StorageRefused", "ok"]
            return
        async with owner.transaction():
            with pytest.raises(StorageRefused, match="in several calls"):
                await history.add_in_transaction(owner, large)
            assert await owner.fetchval("SELECT 1") == 1
