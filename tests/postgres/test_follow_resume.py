"""Where a follower that missed many records resumes: it skips none, and does not read all.

A transaction gets its number before its first `seq`, so new records come after those seen. Here
sessions stop between the two, or do it in the other order.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final

import asyncpg
import pytest

from async_history import open_history
from async_history._postgres.reading.cursors import FollowPosition, Snapshot, position_from_cursor
from async_history.postgres import PostgresHistoryManager
from tests.support.followed_pages import texts_by_pages
from tests.support.postgres_faults import until
from tests.support.postgres_schemas import schema_of, version

pytestmark = [pytest.mark.postgres, pytest.mark.versions, pytest.mark.once]

_LIMIT: Final = 5
_LATER: Final = [f"later {n}" for n in range(4 * _LIMIT)]
_TAKE_NUMBER: Final = "SELECT pg_current_xact_id()::text::bigint"
_COLUMNS: Final = ("id", "memory_id", "new_memory", "event", "is_deleted")
_ROW: Final = ("slow", "m", "slow", "ADD", False)
_VALUES: Final = "'slow', 'm', 'slow', 'ADD', false"
_STOPS_BETWEEN: Final = """
CREATE FUNCTION {schema}.slow_number() RETURNS xid8 LANGUAGE plpgsql AS $$ BEGIN
    IF current_setting('test.is_slow', true) = 'yes' THEN
        PERFORM pg_advisory_xact_lock(hashtext('{schema}'));
    END IF;
    RETURN pg_current_xact_id();
END $$;
ALTER TABLE {schema}.history ALTER xact SET DEFAULT {schema}.slow_number();
CREATE VIEW {schema}.theirs AS
    SELECT id, memory_id, new_memory, event, is_deleted FROM {schema}.history;
"""
"""A session with `test.is_slow` has its `seq`, and waits before it gets its number."""
_TAKES_NONE: Final = """
DROP TRIGGER history_xact_before_seq ON {schema}.history;
CREATE TRIGGER history_xact_before_seq BEFORE INSERT ON {schema}.history
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.history_xact_before_seq();
ALTER TABLE {schema}.history ENABLE ALWAYS TRIGGER history_xact_before_seq
"""
_INSERT_AT: Final = """
INSERT INTO {schema}.history (seq, id, memory_id, new_memory, event, is_deleted)
OVERRIDING SYSTEM VALUE VALUES ($1, 'held', 'm', 'held', 'ADD', false)
"""
_NEXT_SEQ: Final = "SELECT nextval(pg_get_serial_sequence('{schema}.history', 'seq'))"


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[PostgresHistoryManager]:
    async with open_history(url) as history:
        assert isinstance(history, PostgresHistoryManager)
        yield history


async def end_of(history: PostgresHistoryManager) -> FollowPosition:
    cursor = await history.end_cursor()
    assert cursor is not None
    return position_from_cursor(cursor)


async def _copy(connection: Any, schema: str) -> None:
    await connection.copy_records_to_table(
        "history", schema_name=schema, records=[_ROW], columns=_COLUMNS
    )


async def _in_a_savepoint(connection: Any, schema: str) -> None:
    async with connection.transaction(), connection.transaction():
        await _run(connection, schema, "INSERT INTO {table} ({columns}) VALUES ({values})")


async def _run(connection: Any, schema: str, *statements: str) -> None:
    for sql in statements:
        await connection.execute(
            sql.format(
                schema=schema,
                table=f"{schema}.history",
                columns=", ".join(_COLUMNS),
                values=_VALUES,
            )
        )


_WAYS: Final = {
    "values": ["INSERT INTO {table} ({columns}) VALUES ({values})"],
    "select": ["INSERT INTO {table} ({columns}) SELECT {values} FROM generate_series(1, 1)"],
    "expression": [
        "WITH added AS (INSERT INTO {table} ({columns}) SELECT {values} RETURNING 1) "
        "SELECT count(*) FROM added"
    ],
    "conflict": ["INSERT INTO {table} ({columns}) VALUES ({values}) ON CONFLICT DO NOTHING"],
    "view": ["INSERT INTO {schema}.theirs VALUES ({values})"],
    "function": ["DO $$ BEGIN INSERT INTO {table} ({columns}) VALUES ({values}); END $$"],
    "replica": [
        "SET session_replication_role = replica",
        "INSERT INTO {table} ({columns}) VALUES ({values})",
    ],
}


async def _stopped_between(
    history: PostgresHistoryManager, url: str, connect: Any, how: str, *, takes_none: bool
) -> list[str | None]:
    """Stop an inserting session between its `seq` and its row, and let others write.

    Returns:
        What a follower gets that resumes from a cursor of that time once the session has ended.
    """
    schema = schema_of(url)
    owner, slow = await connect(), await connect()
    await _run(owner, schema, _STOPS_BETWEEN, *([_TAKES_NONE] if takes_none else []))
    await history.add_history("m", None, "before", "ADD")
    await slow.execute("SET test.is_slow = yes")
    async with owner.transaction():
        await owner.execute(f"SELECT pg_advisory_xact_lock(hashtext('{schema}'))")
        match how:
            case "copy":
                inserting = asyncio.ensure_future(_copy(slow, schema))
            case "savepoint":
                inserting = asyncio.ensure_future(_in_a_savepoint(slow, schema))
            case _:
                inserting = asyncio.ensure_future(_run(slow, schema, *_WAYS[how]))
        await until(partial(_waits, owner, slow))
        await history.add_history("m", None, "seen", "ADD")
        position = await end_of(history)
        assert position.witness is not None
        assert position.witness.next_xact is not None
        for text in _LATER:
            await history.add_history("m", None, text, "ADD")
    await inserting
    return await texts_by_pages(history, str(position), _LIMIT)


async def _waits(owner: Any, slow: Any) -> bool:
    """Return whether a session waits and has taken its `seq`."""
    return bool(
        await owner.fetchval(
            "SELECT count(*) FROM pg_locks"
            " WHERE pid = $1 AND locktype = 'advisory' AND NOT granted",
            slow.get_server_pid(),
        )
    )


@pytest.mark.parametrize("how", [*_WAYS, "copy", "savepoint"])
async def test_a_session_stops_with_its_seq(
    how: str, new_schema: Callable[[], str], connect: Any
) -> None:
    """Whatever its statement, it has its number by then."""
    url = new_schema()
    async with opened(url) as history:
        found = await _stopped_between(history, url, connect, how, takes_none=False)
    assert found == ["slow", *_LATER]


async def test_numbers_have_to_come_first(new_schema: Callable[[], str], connect: Any) -> None:
    """The reason for the trigger: without the number, the same session's record is skipped."""
    url = new_schema()
    async with opened(url) as history:
        found = await _stopped_between(history, url, connect, "values", takes_none=True)
    assert found == _LATER


async def test_a_number_above_all_ended_transactions(
    new_schema: Callable[[], str], connect: Any
) -> None:
    """A snapshot's xmax is below it, although the number and its `seq` were taken before."""
    url = new_schema()
    insert = (
        f"INSERT INTO {schema_of(url)}.history (id, memory_id, new_memory, event, is_deleted)"
        " VALUES ($1, 'm', $1, 'ADD', false)"
    )
    async with opened(url) as history:
        earlier, later = await connect(), await connect()
        ending, open_ = earlier.transaction(), later.transaction()
        await ending.start()
        await open_.start()
        numbers = [await one.fetchval(_TAKE_NUMBER) for one in (earlier, later)]
        assert numbers == sorted(numbers)
        await later.execute(insert, "above")
        await earlier.execute(insert, "seen")
        await ending.commit()
        position = await end_of(history)
        assert position.witness is not None
        assert position.done.xmax <= numbers[1] < (position.witness.next_xact or 0)
        for text in _LATER:
            await history.add_history("m", None, text, "ADD")
        await open_.commit()
        assert await texts_by_pages(history, str(position), _LIMIT) == ["above", *_LATER]


_CHANGES: Final = {
    "no trigger": "DROP TRIGGER history_xact_before_seq ON {schema}.history",
    "a disabled trigger": "ALTER TABLE {schema}.history DISABLE TRIGGER history_xact_before_seq",
    "a trigger that replicas leave out": (
        "ALTER TABLE {schema}.history ENABLE TRIGGER history_xact_before_seq"
    ),
    "several values a session": "ALTER TABLE {schema}.history ALTER seq SET CACHE 9",
    "values that come again": "ALTER TABLE {schema}.history ALTER seq SET CYCLE",
    "no witness": "DELETE FROM {schema}.history WHERE new_memory = 'seen'",
}


@pytest.mark.parametrize(
    ("change", "when"),
    [
        *((change, "before") for change in _CHANGES if change != "no witness"),
        *((change, "later") for change in _CHANGES),
        ("nothing", "in an earlier version"),
    ],
)
async def test_no_earlier_record_can_be_left_out(
    change: str, when: str, new_schema: Callable[[], str], connect: Any
) -> None:
    """A record with an earlier `seq` and a later number is found."""
    url = new_schema()
    schema, owner = schema_of(url), await connect()
    async with opened(url) as history:
        await history.add_history("m", None, "before", "ADD")
        held = await owner.fetchval(_NEXT_SEQ.format(schema=schema))
        if when == "before":
            await owner.execute(_CHANGES[change].format(schema=schema))
        await history.add_history("m", None, "seen", "ADD")
        position = await end_of(history)
        assert position.witness is not None
        assert (position.witness.next_xact is None) == (when == "before")
        if when == "in an earlier version":
            position = replace(position, witness=replace(position.witness, next_xact=None))
        for text in _LATER:
            await history.add_history("m", None, text, "ADD")
        await owner.execute(_INSERT_AT.format(schema=schema), held)
        if when == "later":
            await owner.execute(_CHANGES[change].format(schema=schema))
        assert await texts_by_pages(history, str(position), _LIMIT) == ["held", *_LATER]


async def test_a_history_of_version_10(new_schema: Callable[[], str], connect: Any) -> None:
    """A follower that runs during the migration continues, and misses nothing."""
    url = new_schema()
    schema, owner = schema_of(url), await connect()
    with version(10):
        async with opened(url) as history:
            await history.add_history("m", None, "seen", "ADD")
            held = await owner.fetchval(_NEXT_SEQ.format(schema=schema))
            await history.add_history("m", None, "seen too", "ADD")
            position = await end_of(history)
            await owner.execute(_INSERT_AT.format(schema=schema), held)
    async with opened(url) as history:
        for text in _LATER:
            await history.add_history("m", None, text, "ADD")
        assert await texts_by_pages(history, str(position), _LIMIT) == ["held", *_LATER]
        assert (await end_of(history)).witness != position.witness
        trigger = await owner.fetchval(
            "SELECT tgenabled FROM pg_trigger WHERE tgrelid = to_regclass($1)",
            f"{schema}.history",
        )
        assert trigger == b"A"


async def _read_as_text(connection: Any) -> None:
    await connection.set_type_codec(
        "int8", encoder=str, decoder=str, schema="pg_catalog", format="text"
    )


@pytest.mark.parametrize("is_searched", [False, True])
async def test_a_users_pool_that_reads_numbers_as_text(
    is_searched: bool, new_schema: Callable[[], str], postgres: str
) -> None:
    """Cursors within a window still hold numbers."""
    async with (
        asyncpg.create_pool(postgres, init=_read_as_text, min_size=2, max_size=2) as pool,
        PostgresHistoryManager(pool=pool, schema=schema_of(new_schema())) as history,
    ):
        await history.add_history("m", None, "seen", "ADD")
        position = await end_of(history)
        assert position.witness is not None
        if is_searched:
            position = replace(position, witness=replace(position.witness, next_xact=None))
        for text in _LATER:
            await history.add_history("m", None, text, "ADD")
        assert await texts_by_pages(history, str(position), _LIMIT) == _LATER


@pytest.mark.parametrize("epoch", [0, 5])
@pytest.mark.parametrize("low", [3, 17, (1 << 31) + 2, (1 << 32) - 1])
@pytest.mark.parametrize("given", [0, 1, 40])
def test_the_next_number_from_an_age(epoch: int, low: int, given: int) -> None:
    """The age has 32 bits with a sign, while the count of numbers only grows."""
    xmax = (epoch << 32) + low
    age = (xmax + given - 3 + (1 << 31)) % (1 << 32) - (1 << 31)
    assert Snapshot(xmax).next_xact(age) == xmax + given
