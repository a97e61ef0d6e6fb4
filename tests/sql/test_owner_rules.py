"""Triggers of a database's owner that leave rows out: a row that is not stored is not acked."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from async_history import HistoryManager, open_history
from async_history.sql import SqlHistoryManager
from tests.support.outcomes import outcome

pytestmark = pytest.mark.once

IN_SQLITE = (
    "CREATE TRIGGER no_records BEFORE INSERT ON async_history_records WHEN new.memory_id = 'bad'"
    " BEGIN SELECT RAISE(IGNORE); END",
    "CREATE TRIGGER no_messages BEFORE INSERT ON async_history_messages WHEN new.content = 'bad'"
    " BEGIN SELECT RAISE(IGNORE); END",
)
IN_POSTGRES = (
    "CREATE FUNCTION {schema}.no_record() RETURNS trigger LANGUAGE plpgsql AS $$"
    " BEGIN IF new.memory_id = 'bad' THEN RETURN NULL; END IF; RETURN new; END $$",
    "CREATE TRIGGER no_records BEFORE INSERT ON {schema}.async_history_records"
    " FOR EACH ROW EXECUTE FUNCTION {schema}.no_record()",
    "CREATE RULE no_messages AS ON INSERT TO {schema}.async_history_messages"
    " WHERE new.content = 'bad' DO INSTEAD NOTHING",
)
DEFERRED = {
    "sqlite": (
        "CREATE TABLE known (memory_id TEXT PRIMARY KEY)",
        "CREATE TABLE seen (memory_id TEXT REFERENCES known DEFERRABLE INITIALLY DEFERRED)",
        "CREATE TRIGGER see AFTER INSERT ON async_history_records WHEN new.memory_id = 'bad'"
        " BEGIN INSERT INTO seen VALUES (new.memory_id); END",
    ),
    "postgresql": (
        "CREATE FUNCTION {schema}.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF new.memory_id = 'bad' THEN RAISE 'not this one' USING ERRCODE = '{code}'; END IF;"
        " RETURN NULL; END $$",
        "CREATE CONSTRAINT TRIGGER refuses AFTER INSERT ON {schema}.async_history_records"
        " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION {schema}.refuse()",
    ),
}
"""What refuses a record only when its transaction is committed."""
OF_STATE = {
    "sqlite": (
        "CREATE TRIGGER keep BEFORE UPDATE ON async_history_state"
        " BEGIN SELECT RAISE(ABORT, 'not this one'); END",
    ),
    "postgresql": (
        "CREATE FUNCTION {schema}.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE 'not this one'; END $$",
        "CREATE TRIGGER keep BEFORE UPDATE ON {schema}.async_history_state"
        " FOR EACH ROW EXECUTE FUNCTION {schema}.refuse()",
    ),
}
"""What refuses every batch, before its commit."""


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def ruled(
    request: pytest.FixtureRequest, tmp_path: Path, engines: Callable[[str], AsyncEngine]
) -> tuple[HistoryManager, AsyncEngine, Sequence[str]]:
    """A history, its database, and triggers that leave rows out."""
    if request.param == "sqlite":
        engine = engines(f"sqlite+aiosqlite:///{tmp_path / 'history.db'}")
        event.listen(engine.sync_engine, "connect", check_foreign_keys)
        return open_history(engine=engine), engine, IN_SQLITE
    schema = str(make_url(request.getfixturevalue("new_schema")()).query["schema"])
    plain = make_url(request.getfixturevalue("postgres")).set(drivername="postgresql+asyncpg")
    rules = [rule.format(schema=f'"{schema}"') for rule in IN_POSTGRES]
    return (
        SqlHistoryManager(plain, schema=schema),
        engines(plain.render_as_string(hide_password=False)),
        rules,
    )


def check_foreign_keys(connection: Any, _: object) -> None:
    connection.execute("PRAGMA foreign_keys = ON")


@pytest.mark.parametrize("is_named", [False, True])
async def test_a_row_that_is_left_out_is_refused(
    ruled: tuple[HistoryManager, AsyncEngine, Sequence[str]], is_named: bool
) -> None:
    def record(memory_id: str, number: int) -> dict[str, Any]:
        named = {"id": f"{memory_id} {number}"} if is_named else {}
        return {"memory_id": memory_id, "new_memory": "x", "event": "ADD", **named}

    opening, engine, rules = ruled
    async with opening as history:
        async with engine.begin() as owner:
            for rule in rules:
                await owner.execute(text(rule))
        assert await outcome(history.batch_add_history([record("bad", 0)])) == "StorageRefused"
        torn = [record("g", 1), record("bad", 1), record("g", 2)]
        assert await outcome(history.batch_add_history(torn)) == "StorageRefused"
        assert await history.count_history() == 0
        calls = [[record("n", 1)], [record("bad", 2)], [record("n", 2)]]
        outcomes = await asyncio.gather(*(outcome(history.batch_add_history(c)) for c in calls))
        assert outcomes == ["ok", "StorageRefused", "ok"]
        assert [one.memory_id async for one in history.query_history()] == ["n", "n"]

        messages = [{"content": "good"}, {"content": "bad"}]
        assert await outcome(history.save_messages(messages, "s")) == "StorageRefused"
        assert await outcome(history.save_messages([{"content": "good"}], "s")) == "ok"
        assert [one.content for one in await history.get_last_messages("s")] == ["good"]


@pytest.mark.parametrize("code", ["P0001", "AB001"])
async def test_a_call_that_is_refused_at_the_commit_does_not_fail_the_others(
    ruled: tuple[HistoryManager, AsyncEngine, Sequence[str]], code: str
) -> None:
    opening, engine, rules = ruled
    schema = rules[0].partition("no_record()")[0].rpartition(" ")[2].rstrip(".")
    names = [f"m{number}" for number in range(20)]
    names[7] = "bad"
    async with opening as history:
        await history.add_history("m", None, "x", "ADD")
        async with engine.begin() as owner:
            for rule in DEFERRED[engine.dialect.name]:
                await owner.execute(text(rule.format(schema=schema, code=code)))
        calls = [outcome(history.add_history(name, None, "x", "ADD")) for name in names]
        outcomes = await asyncio.gather(*calls)
        assert outcomes == ["ok"] * 7 + ["StorageRefused"] + ["ok"] * 12
        written = [one.memory_id async for one in history.query_history()]
        assert written == ["m", *names[:7], *names[8:]]


async def test_a_batch_that_is_refused_as_a_whole_is_not_written_in_parts(
    ruled: tuple[HistoryManager, AsyncEngine, Sequence[str]],
) -> None:
    opening, engine, rules = ruled
    schema = rules[0].partition("no_record()")[0].rpartition(" ")[2].rstrip(".")
    begun: list[object] = []
    async with opening as history:
        await history.add_history("m", None, "x", "ADD")
        async with engine.begin() as owner:
            for rule in OF_STATE[engine.dialect.name]:
                await owner.execute(text(rule.format(schema=schema)))
        event.listen(engine.sync_engine, "begin", begun.append)
        calls = [outcome(history.add_history("m", None, "x", "ADD")) for _ in range(20)]
        outcomes = await asyncio.gather(*calls)
    assert outcomes == ["StorageRefused"] * 20
    assert len(begun) < 20
