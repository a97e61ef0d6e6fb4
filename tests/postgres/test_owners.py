"""Owners on PostgreSQL: given by several at once, given later, during writes, and forgotten."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest

from async_history import (
    HistoryManager,
    HistoryRecord,
    Owner,
    OwnerConflict,
    StorageDenied,
    StorageLocked,
    StorageRefused,
    check_history,
    open_history,
)
from async_history._core.records.records import fields_in_order
from async_history._core.writing.new_submissions import UncheckedRecords, new_text
from async_history._postgres.detail_columns import cause_hash
from async_history._postgres.writing.owners import KnownOwners
from async_history.postgres import PostgresHistoryManager
from tests.support.postgres_batches import commit_on
from tests.support.postgres_roles import ROLE_PASSWORD, as_role
from tests.support.postgres_schemas import schema_of, until, version
from tests.support.postgres_server import with_query

pytestmark = [pytest.mark.postgres, pytest.mark.versions, pytest.mark.once]

ALICE, BOB = {"user_id": "alice"}, {"user_id": "bob"}


@pytest.fixture
def url(new_schema: Callable[[], str]) -> str:
    return new_schema()


async def owner_of(history: HistoryManager, memory_id: str) -> Owner | None:
    """Return the one owner of all records of a memory."""
    records = await history.get_history(memory_id)
    (owner,) = {record.owner for record in records}
    of_user: dict[str, Any] = {} if owner is None else owner.as_dict()
    if of_user:
        found = [r async for r in history.query_history(**of_user, memory_id=memory_id)]
        assert found == records
        assert await history.count_history(**of_user, memory_id=memory_id) == len(records)
    return owner


async def require_sound(url: str) -> None:
    assert (await check_history(url)).problems == ()


async def until_waits(connection: Any, schema: str) -> None:
    """Wait until a session waits for a lock on a schema's tables or their rows."""
    await until(
        connection,
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND query LIKE '%' || $1 || '%')",
        schema,
    )


async def test_two_managers_give_owners_at_the_same_time(url: str) -> None:
    """To new memories, and to memories with records, in a store without owners: one owner each."""
    async with open_history(url) as one, open_history(url) as other:
        names = [f"m{n}" for n in range(90)]
        for name in names[::3]:
            await one.add_history(name, None, "x", "ADD")

        async def give(history: HistoryManager, owner: dict[str, str] | None, step: int) -> Any:
            return await asyncio.gather(
                *(
                    history.add_history(name, None, "y", "UPDATE", owner=owner)
                    for name in names[::step]
                ),
                return_exceptions=True,
            )

        done = await asyncio.gather(
            give(one, ALICE, 1), give(other, BOB, -1), give(one, None, -1), give(other, None, 1)
        )
        by_alice, by_bob = done[0], done[1][::-1]
        for name, first, second in zip(names, by_alice, by_bob, strict=True):
            (refused,) = (r for r in (first, second) if isinstance(r, Exception))
            assert isinstance(refused, OwnerConflict)
            (won,) = (r for r in (first, second) if isinstance(r, HistoryRecord))
            for history in (one, other):
                assert await owner_of(history, name) == won.owner
            assert len(await one.get_history(name)) == 3 + (name in names[::3])
        for each in done[2:]:
            assert all(isinstance(record, HistoryRecord) for record in each)
    await require_sound(url)


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
@pytest.mark.parametrize("is_first", [True, False], ids=["first of the store", "others there"])
@pytest.mark.parametrize("has_records", [True, False], ids=["with records", "new"])
async def test_owners_given_in_open_transactions(
    url: str, connect: Any, *, isolation: str, is_first: bool, has_records: bool
) -> None:
    """Others wait. Whether they are refused depends on the end of the transaction, at any isolation
    level."""
    url = with_query(url, default_transaction_isolation=isolation)
    async with PostgresHistoryManager(url) as one, open_history(url) as other:
        if not is_first:
            await one.add_history("else", None, "x", "ADD", owner=BOB)
        for outcome in ("commit", "rollback"):
            if has_records:
                await one.add_history(outcome, None, "x", "ADD")
            connection, watching = await connect(), await connect()
            transaction = connection.transaction()
            await transaction.start()
            added = [{"memory_id": outcome, "event": "UPDATE", "owner": ALICE}]
            await one.add_in_transaction(connection, added)
            giving = [
                asyncio.ensure_future(history.add_history(outcome, "x", "y", "UPDATE", owner=owner))
                for history, owner in ((other, BOB), (one, None))
            ]
            await until_waits(watching, schema_of(url))
            assert not any(task.done() for task in giving)
            await getattr(transaction, outcome)()
            if outcome == "commit":
                with pytest.raises(OwnerConflict):
                    await giving[0]
                assert (await giving[1]).owner == Owner(user_id="alice")
                assert await owner_of(one, outcome) == Owner(user_id="alice")
            else:
                await asyncio.gather(*giving)
                assert await owner_of(one, outcome) == Owner(user_id="bob")
    await require_sound(url)


async def test_two_open_transactions_give_one_memory_an_owner(url: str, connect: Any) -> None:
    async with PostgresHistoryManager(url) as history:
        await history.add_history("else", None, "x", "ADD", owner=BOB)
        first, second, watching = [await connect() for _ in range(3)]
        given = [[{"memory_id": "m", "event": "ADD", "owner": one}] for one in (ALICE, BOB)]
        begun = first.transaction()
        await begun.start()
        await history.add_in_transaction(first, given[0])

        async def add_second() -> Sequence[HistoryRecord]:
            async with second.transaction():
                return await history.add_in_transaction(second, given[1])

        task = asyncio.ensure_future(add_second())
        await until_waits(watching, schema_of(url))
        await begun.commit()
        with pytest.raises(OwnerConflict):
            await task
        assert await owner_of(history, "m") == Owner(user_id="alice")


@pytest.mark.parametrize("is_first", [True, False], ids=["first of the store", "others there"])
async def test_two_open_transactions_give_owners_late(
    url: str, connect: Any, *, is_first: bool
) -> None:
    """The second one waits until the first one ends, however long that takes."""
    async with PostgresHistoryManager(url) as history:
        if not is_first:
            await history.add_history("else", None, "x", "ADD", owner=BOB)
        for name in ("m", "n"):
            await history.add_history(name, None, "x", "ADD")
        first, second, watching = [await connect() for _ in range(3)]
        begun = first.transaction()
        await begun.start()
        await history.add_in_transaction(
            first, [{"memory_id": "m", "event": "UPDATE", "owner": ALICE}]
        )

        async def add_second() -> None:
            late = [{"memory_id": name, "event": "UPDATE", "owner": BOB} for name in ("n", "m")]
            async with second.transaction():
                await history.add_in_transaction(second, late[:1])
                with pytest.raises(OwnerConflict):
                    await history.add_in_transaction(second, late[1:])

        task = asyncio.ensure_future(add_second())
        waits = (
            "SELECT EXISTS (SELECT FROM pg_stat_activity"
            " WHERE pid = $1::integer AND wait_event = 'advisory')"
        )
        waiting = asyncio.ensure_future(until(watching, waits, second.get_server_pid()))
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        assert not task.done()
        assert await waiting
        await begun.commit()
        await task
        assert await owner_of(history, "m") == Owner(user_id="alice")
        assert await owner_of(history, "n") == Owner(user_id="bob")
    await require_sound(url)


async def test_a_snapshot_from_before_an_owner_was_given(url: str, connect: Any) -> None:
    """A transaction that does not see the owner writes no record without it."""
    async with PostgresHistoryManager(url) as history:
        for name in ("m", "n"):
            await history.add_history(name, None, "x", "ADD")
            connection = await connect()
            transaction = connection.transaction(isolation="repeatable_read")
            await transaction.start()
            await connection.execute("SELECT 1")
            await history.add_history(name, None, "y", "UPDATE", owner=ALICE)
            with pytest.raises(StorageLocked, match="serialize"):
                await history.add_in_transaction(connection, [{"memory_id": name, "event": "ADD"}])
            await transaction.rollback()
        await history.add_history("late", None, "x", "ADD")
        connection = await connect()
        transaction = connection.transaction(isolation="serializable")
        await transaction.start()
        late = [{"memory_id": "late", "event": "UPDATE", "owner": ALICE}]
        with pytest.raises(StorageRefused, match="READ COMMITTED"):
            await history.add_in_transaction(connection, late)
        await transaction.rollback()
        assert len(await history.get_history("m")) == 2
    await require_sound(url)


async def test_late_owners_during_writes_and_with_a_follower(url: str) -> None:
    """Each record gets its memory's owner, and a follower each record once."""
    names = [f"m{n}" for n in range(40)]
    async with open_history(url) as one, open_history(url) as other, open_history(url) as giving:
        await one.batch_add_history([{"memory_id": name, "event": "ADD"} for name in names])
        is_over = asyncio.Event()
        found: list[str] = []
        follower = one.follow(poll_interval_s=0.01)

        async def write(history: HistoryManager) -> None:
            while not is_over.is_set():
                await asyncio.gather(
                    *(history.add_history(name, None, "y", "UPDATE") for name in names)
                )

        async def follow() -> None:
            while not is_over.is_set():
                found.extend([r.id for r in await follower.next_records(timeout_s=0.1)])

        tasks = [asyncio.ensure_future(task) for task in (write(one), write(other), follow())]
        for at, name in enumerate(names):
            owner = {"user_id": f"u{at % 3}"}
            assert (await giving.add_history(name, None, "z", "UPDATE", owner=owner)).owner
        is_over.set()
        await asyncio.gather(*tasks)
        there = [record.id async for record in one.query_history()]
        while len(found) < len(there):
            found += [record.id for record in await follower.next_records()]
        assert sorted(found) == sorted(there)
        for at, name in enumerate(names):
            assert await owner_of(one, name) == Owner(user_id=f"u{at % 3}")
        for manager in (one, other):
            for name in names:
                assert (await manager.add_history(name, None, "y", "UPDATE")).owner is not None
    await require_sound(url)


async def test_owners_that_another_process_removed_are_not_remembered(url: str) -> None:
    """Neither a memory's owner after a removal or a reset, nor that a store has no owners."""
    async with open_history(url) as one, open_history(url) as other:
        for remove in (prune_all, HistoryManager.reset, prune_all):
            for history in (one, other):
                await history.add_history("m", None, "x", "ADD", owner=ALICE)
            await remove(one)
            record = await other.add_history("m", None, "x", "UPDATE")
            assert record.owner is None
            assert await owner_of(one, "m") is None
            with pytest.raises(OwnerConflict):
                await asyncio.gather(
                    other.add_history("m", None, "x", "UPDATE", owner=BOB),
                    other.add_history("m", None, "x", "UPDATE", owner=ALICE),
                )
            assert await owner_of(one, "m") == Owner(user_id="bob")
            await prune_all(other)
            assert await one.get_history("m") == []
    await require_sound(url)


@pytest.mark.parametrize("is_new_schema", [True, False], ids=["new schema", "restored rows"])
async def test_owners_of_other_tables_are_not_remembered(
    url: str, connect: Any, *, is_new_schema: bool
) -> None:
    """A schema that is dropped and made again, or restored, can have the number of the cache."""
    raw, schema = await connect(), schema_of(url)
    async with open_history(url) as history:
        await history.add_history("first", None, "tea", "ADD", owner=ALICE)
        number = await raw.fetchval(f"SELECT number FROM {schema}.owners_state")
        await history.add_history("m", None, "tea", "ADD", owner=ALICE)
        if is_new_schema:
            await raw.execute(f"DROP SCHEMA {schema} CASCADE")
        else:
            tables = f"{schema}.history, {schema}.owners, {schema}.owners_state"
            await raw.execute(
                f"CREATE TABLE {schema}.saved AS SELECT * FROM {schema}.owners_state; "
                f"TRUNCATE {tables}; "
                f"INSERT INTO {schema}.owners_state SELECT * FROM {schema}.saved"
            )
        async with open_history(url) as other:
            await other.add_history("m", None, "tea", "ADD", owner=BOB)
        assert await raw.fetchval(f"SELECT number FROM {schema}.owners_state") == number
        for adding in (1, 2):
            changes = [{"memory_id": "m", "new_memory": "mate", "event": "UPDATE"}] * adding
            added = await history.batch_add_history(changes)
            assert [record.owner for record in added] == [Owner(user_id="bob")] * adding
    await require_sound(url)


async def prune_all(history: HistoryManager) -> None:
    await history.add_history("kept", None, "x", "ADD", owner=BOB)
    await history.prune(older_than=datetime.now(UTC) + timedelta(days=1), keep_last=0)


async def test_an_owner_that_only_records_have_is_kept(url: str, connect: Any) -> None:
    """As after a race of a removal and a writer."""
    async with open_history(url) as history:
        for name in ("m", "n", "o"):
            await history.add_history(name, None, "x", "ADD", owner=ALICE)
        owner = await connect()
        await owner.execute(f"DELETE FROM {schema_of(url)}.owners")
        await owner.execute(f"UPDATE {schema_of(url)}.owners_state SET number = 7, last = 7")
        assert (await history.add_history("m", "x", "y", "UPDATE")).owner == Owner(user_id="alice")
        with pytest.raises(OwnerConflict):
            await history.add_history("n", "x", "y", "ADD", owner=BOB)
        assert (await history.add_history("o", "x", "y", "ADD", owner=ALICE)).owner
        for name in ("m", "n", "o"):
            assert await owner_of(history, name) == Owner(user_id="alice")


async def commit(
    connection: Any, url: str, known: KnownOwners, *given: dict[str, Any]
) -> list[HistoryRecord]:
    """Commit records as one batch of several submissions; return them."""
    batch = [await UncheckedRecords([one], None).check() for one in given]
    assert await commit_on(connection, schema_of(url), batch, known=known) == {}
    return [record for submission in batch for record in submission.records]


async def test_only_a_few_owners_are_remembered(url: str, connect: Any) -> None:
    """The writer looks up the others."""
    async with open_history(url):
        pass
    connection, known = await connect(), KnownOwners(4)
    for owned in ({"owner": ALICE}, {}, {"owner": ALICE}, {}):
        batch = [{"memory_id": f"m{n}", "event": "UPDATE", **owned} for n in range(30)]
        written = await commit(connection, url, known, *batch)
        assert {record.owner for record in written} == {Owner(user_id="alice")}
        assert len(known.unknown(map(fields_in_order, written))) >= 26
    await require_sound(url)


async def test_a_batch_with_owners_is_one_statement(url: str, connect: Any) -> None:
    """For new memories, for remembered ones, and with every detail."""
    async with open_history(url) as history:
        await history.add_history("first", None, "x", "ADD", owner=BOB)
    connection = await connect()
    sent: list[str] = []
    connection.add_query_logger(lambda record: sent.append(record.query))
    known = KnownOwners()

    async def statements_of(*given: dict[str, Any]) -> list[str]:
        sent.clear()
        await commit(connection, url, known, *given)
        await asyncio.sleep(0)  # the driver calls its loggers later
        return [statement.split()[0] for statement in sent]

    def each(**details: Any) -> list[dict[str, Any]]:
        return [{"memory_id": f"m{n}", **details} for n in range(20)]

    cause = dict.fromkeys(("request_id", "trace_id", "run_id"), "x")
    odd = {"request_id": '"\\', "why": '"request_id":"x"'}
    assert len(await statements_of(*each(event="ADD"))) > 1, (
        "that there are owners is not known yet"
    )
    assert await statements_of(*each(event="ADD", context={"a": 1}, cause=cause)) == ["WITH"]
    assert await statements_of(*each(event="UPDATE")) == ["WITH"]
    assert await statements_of(*each(event="UPDATE", cause=odd)) == ["WITH"]
    new = [{"memory_id": f"n{n}", "event": "ADD", "owner": ALICE} for n in range(3)]
    assert await statements_of(*new, *new, *each(event="UPDATE")) == ["WITH"]
    known.learn(0, {}, None)
    assert len(await statements_of(*each(event="UPDATE"))) > 1
    assert await statements_of(*each(event="UPDATE")) == ["WITH"]
    async with open_history(url) as history:
        for value, count in (("x", 20), ('"\\', 20), ("why", 0)):
            assert await history.count_history(cause={"request_id": value}) == count
            found = [record async for record in history.query_history(cause={"request_id": value})]
            assert len(found) == count


async def test_an_update_reads_only_what_it_needs(url: str, connect: Any) -> None:
    """Ids, owners and erased names only where there may be some that are not known."""
    async with open_history(url) as history:
        await history.add_history("first", None, "x", "ADD")
    connection = await connect()
    sent: list[str] = []
    connection.add_query_logger(lambda record: sent.append(record.query))
    known = KnownOwners()
    texts = count()

    async def tables_read(*, is_repeated: bool = False, names: str = "m", **more: Any) -> list[str]:
        """Update memories; return the table that each SELECT reads first."""
        batch = [
            new_text(
                f"{names}{n}", str(next(texts)), actor_id=None, role=None, context=None, **more
            )
            for n in range(20)
        ]
        sent.clear()
        refused = await commit_on(
            connection, schema_of(url), batch, known=known, is_repeated=is_repeated
        )
        assert refused == {}
        await asyncio.sleep(0)  # the driver calls its loggers later
        reads = [one for one in sent if one.split()[0] == "SELECT" and schema_of(url) in one]
        return [one.split(f'"{schema_of(url)}".')[1].split()[0] for one in reads]

    assert await tables_read() == ["history", "owners_state"]
    assert await tables_read(is_repeated=True) == ["history", "history", "owners_state"]
    await tables_read(owner=ALICE)
    await tables_read()
    assert await tables_read() == ["history", "owners_state"]
    assert await tables_read(owner=ALICE) == ["history", "owners_state"]
    assert await tables_read(names="n") == ["history", "owners_state", "history"], "new memories"
    async with open_history(url) as history:
        await history.erase(user_id="bob", reason="asked")
    assert await tables_read() == ["history", "owners_state", "owners_state", "owners_state"]
    assert await tables_read() == ["history", "owners_state", "owners_state"], "erased names"
    odd = "\x1f\x1e, "  # what separates names in a parameter
    await tables_read(names=odd)
    await tables_read(names=odd)
    async with open_history(url) as history:
        for n in range(20):
            first, second = await history.get_history(f"{odd}{n}")
            assert second.old_memory == first.new_memory
    await require_sound(url)


async def test_a_role_that_may_not_give_owners_late(url: str, connect: Any) -> None:
    """Its submission is refused, and its neighbours are written."""
    schema, owner = schema_of(url), await connect()
    async with open_history(url) as history:
        await history.add_history("m", None, "x", "ADD")
    await owner.execute(
        f"""
        CREATE ROLE writer LOGIN PASSWORD '{ROLE_PASSWORD}';
        GRANT USAGE ON SCHEMA {schema} TO writer;
        GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO writer;
        GRANT INSERT ON {schema}.history, {schema}.owners TO writer;
        """
    )
    try:
        async with open_history(as_role(url, "writer")) as history:
            results = await asyncio.gather(
                *(
                    history.add_history("m", None, "y", "UPDATE", owner=ALICE if n == 5 else None)
                    for n in range(9)
                ),
                return_exceptions=True,
            )
            assert [isinstance(result, StorageDenied) for result in results] == [
                n == 5 for n in range(9)
            ]
            async with open_history(url) as allowed:
                await allowed.add_history("m", None, "y", "UPDATE", owner=ALICE)
            assert (await history.add_history("n", None, "y", "ADD", owner=BOB)).owner
            assert (await history.add_history("m", None, "y", "UPDATE")).owner
    finally:
        await owner.execute("DROP OWNED BY writer; DROP ROLE writer")


@pytest.mark.parametrize("named", [{"memory_ids": ["m"]}, {"user_id": "secret-owner"}])
async def test_erased_texts_are_not_in_the_files(
    url: str, connect: Any, named: dict[str, Any]
) -> None:
    """VACUUM leaves them in the free space of pages, including those of indexes."""
    schema, owner = schema_of(url), await connect()

    async def files() -> bytes:
        await owner.execute("CHECKPOINT")
        rows = await owner.fetch(
            "SELECT pg_read_binary_file(pg_relation_filepath(pg_class.oid)) FROM pg_class"
            " WHERE relkind IN ('r', 'i', 't') AND (relnamespace = to_regnamespace($1) OR oid IN ("
            " SELECT reltoastrelid FROM pg_class WHERE relnamespace = to_regnamespace($1)))",
            schema,
        )
        return b"".join(content for (content,) in rows)

    async with open_history(url) as history:
        secret: dict[str, Any] = {
            "context": {"k": "secret-context"},
            "cause": {"request_id": "secret-cause"},
        }
        for n in range(9):
            await history.add_history(
                "m", None, f"secret-text {n}", "UPDATE", owner=OWNED, **secret
            )
            await history.add_history("n", None, "kept", "UPDATE", owner=BOB)
        await history.save_messages([{"content": "secret-message"}], "user_id=secret-owner")
        scopes = ["user_id=secret-owner"]
        assert [word for word in WORDS if word not in await files()] == []
        report = await history.erase(**named, session_scopes=scopes, reason="asked")
        assert b"secret-text" in await files()
        assert any("vacuum='full'" in sentence for sentence in report.remains)
        report = await history.erase(**named, session_scopes=scopes, reason="again", vacuum="full")
        assert len(report.remains) == 1
        left = [word for word in WORDS if word in await files()]
        assert left == ([b"secret-owner"] if "memory_ids" in named else [])
        assert await history.count_history(text="kept") == 9


OWNED = {"user_id": "secret-owner"}
WORDS = (
    *(b"secret-text", b"secret-context", b"secret-cause", b"secret-message", b"secret-owner"),
    cause_hash("secret-cause").to_bytes(8, "little"),
)


async def test_grants_on_the_history_apply_to_owners_too(url: str, connect: Any) -> None:
    """A migration keeps the rights of earlier roles."""
    owner, schema = await connect(), schema_of(url)
    with version(6):
        async with open_history(url):
            pass
    await owner.execute(
        f"CREATE ROLE writer LOGIN PASSWORD '{ROLE_PASSWORD}';"
        f" GRANT USAGE ON SCHEMA {schema} TO writer;"
        f" GRANT SELECT ON {schema}.migrations TO writer;"
        f" GRANT SELECT, INSERT, UPDATE ON {schema}.history TO writer"
    )
    try:
        async with open_history(url):
            pass
        async with open_history(as_role(url, "writer")) as history:
            await history.add_history("m", None, "x", "ADD")
            assert (await history.add_history("m", None, "x", "UPDATE", owner=ALICE)).owner
    finally:
        await owner.execute("DROP OWNED BY writer; DROP ROLE writer")
