"""Encrypting in place on MariaDB: what is left in its files, and connections cut at each step."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import pytest
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import create_async_engine

from async_history import HistoryManager, Owner
from async_history._core.encryption.key_statements import owner_digest
from async_history._core.encryption.stored_texts import TextLimits
from async_history.errors import StorageRefused
from async_history.sql import SqlHistoryManager
from tests.sql.encrypted import opened
from tests.subprocesses.proxy import MariaDBProxy
from tests.support.encrypted_stores import (
    FEW_ERASED,
    all_of,
    changes,
    contents,
    fill,
    key_ids,
    record_for,
    require_forgotten,
    require_readable,
    stopped_by_a_cut,
    until_turned_off,
)
from tests.support.keys import ring
from tests.support.limits import limited
from tests.support.look_alikes import LOOK_SEALED, fill_with_look_alikes, turn_on_and_off
from tests.support.mariadb_server import MariaDBServer, run_sql
from tests.support.parts import Places, in_parts
from tests.support.patience import LONG_S

pytestmark = [pytest.mark.mariadb, pytest.mark.once]

_WORD: Final = "WordInClear"
_DETAILS: Final[Any] = {"context": {"why": _WORD}, "cause": {"run_id": _WORD, "why": _WORD}}
_MARKS: Final = "SELECT mark, seq FROM async_history_marks ORDER BY mark, seq"
_KEPT: Final = "SELECT DISTINCT new_memory FROM async_history_records"


@pytest.fixture
def url(new_database: Callable[[], URL]) -> URL:
    return new_database()


async def test_text_left_in_clear_is_only_where_the_report_says() -> None:
    server = MariaDBServer(**{"log-bin": "binlog", "innodb-doublewrite": "ON"}).create().start()
    tables = {f"async_history_{name}.ibd" for name in ("records", "messages")}
    try:
        run_sql(server.url(), "CREATE DATABASE h")
        url = server.url("h")
        async with SqlHistoryManager(url) as history:
            await history.batch_add_history(
                [
                    {"memory_id": f"m{n}", "new_memory": f"{_WORD} {'x' * 100 * n}", "event": "ADD"}
                    | _DETAILS
                    for n in range(100)
                ]
            )
            await history.save_messages([{"role": "user", "content": _WORD}], "s")
        async with opened(url) as history:
            report = await history.encryption.encrypt()
            assert (report.records, report.messages, report.clear) == (100, 1, 0)
        said = " ".join(report.remains)
        (command,) = re.findall(r"OPTIMIZE TABLE [^)]+", said)
        run_sql(url, command)
        left = server.files_with(_WORD.encode())
        assert not tables & left
        logs = {"ib_logfile0", "ibdata1"} & left
        assert all(name in said for name in logs)
        assert any(name.startswith("binlog.") for name in left)
        assert "binary log of rows has those of the encryption" in said
        others = {name for name in left - logs if not name.startswith("binlog.")}
        assert others <= {"undo001", "undo002", "undo003"}
    finally:
        server.remove()


async def test_records_encrypted_in_place_are_found_by_their_causes(
    url: URL,
) -> None:
    """Owners and names that are too long for a column stay unchanged."""
    long = "n" * 300
    record: Any = _DETAILS | {"actor_id": long, "owner": {"user_id": long}}
    async with SqlHistoryManager(url) as history:
        await history.add_history(long, None, _WORD, "ADD", **record)
        await history.add_history("m", None, _WORD, "ADD", **_DETAILS)
        await history.save_messages([{"role": "user", "content": _WORD}], long)
        before, marks = await all_of(history), run_sql(url, _MARKS)
    async with opened(url) as history:
        assert await history.count_history(cause={"run_id": _WORD}) == 2
        await history.encryption.encrypt()
        assert await history.count_history(cause={"run_id": _WORD}) == 2
        assert await history.count_history(user_id=long) == 1
        assert await all_of(history) == before
        assert [one.content for one in await history.get_last_messages(long)] == [_WORD]
        assert run_sql(url, "SELECT is_whole, clear_until FROM async_history_encryption") == [
            (1, 0)
        ]
        sealed = run_sql(url, _MARKS)
        assert len(sealed) == len(marks)
        assert sealed != marks
        await history.encryption.replace_data_keys()
        assert run_sql(url, _MARKS) == sealed
        assert (await history.check()).problems == ()
        await history.encryption.decrypt()
    assert run_sql(url, _MARKS) == marks


async def test_a_retired_key_is_not_used_by_a_single_statement(url: URL) -> None:
    async with opened(url) as history, opened(url) as other:
        for number in range(3):  # the third is one statement, as the next would be
            await history.add_history("m", None, str(number), "ADD")
        texts: Any = other.store
        await texts.encryption.texts.in_transaction(lambda one: one.retire_keys())
        await history.add_history("m", None, "later", "ADD")
        assert len((await key_ids(other))["used"]) == 2
        assert (await other.get_history("m"))[-1].new_memory == "later"


async def test_a_trigger_that_keeps_texts_raises(url: URL) -> None:
    """Before keys are removed that those texts need."""
    async with opened(url) as history:
        records = await fill(history)
        for table, texts in (("messages", ("content",)), ("records", ("new_memory", "cause"))):
            for text in texts:
                run_sql(
                    url,
                    f"CREATE TRIGGER keeps BEFORE UPDATE ON async_history_{table} FOR EACH ROW "
                    f"SET NEW.{text} = OLD.{text}",
                )
                for call in (history.encryption.replace_data_keys, history.encryption.decrypt):
                    with pytest.raises(StorageRefused, match=f"async_history_{table} keeps texts"):
                        await call()
                assert await all_of(history) == records
                assert await contents(history) == ["hello"] * 2
                run_sql(url, "DROP TRIGGER keeps")
                await history.encryption.encrypt()
        await history.encryption.decrypt()
    assert not [one for (one,) in run_sql(url, _KEPT) if one.startswith("ahs1:")]


async def test_a_text_that_is_too_large_once_encrypted_stops_it(url: URL) -> None:
    async with SqlHistoryManager(url) as history:
        await history.add_history("m", None, "x" * 900_000, "ADD")
        await history.add_history("m", None, _WORD, "ADD")
    run_sql(url, "SET GLOBAL max_allowed_packet = 1048576")
    try:
        async with opened(url) as history:
            with pytest.raises(StorageRefused, match=r"max_allowed_packet, and call this again"):
                await history.encryption.encrypt()
            assert len(await history.get_history("m")) == 2
    finally:
        run_sql(url, "SET GLOBAL max_allowed_packet = 134217728")
    async with opened(url) as history:
        assert (await history.encryption.encrypt()).records == 2


async def test_an_interrupted_encryption_continues_where_it_stopped(url: URL) -> None:
    async with SqlHistoryManager(url) as history:
        await history.batch_add_history(changes(12))
    async with limited(opened(url), texts=TextLimits(rows=5)) as history:
        texts: Any = history.store
        await texts.encryption.texts.in_transaction(lambda one: one.turn_on())
        done: Any = await texts.encryption.texts.in_transaction(
            lambda one: one.clear_records(None, 5)
        )
        assert [row.id for row in done.rows] == ["11", "10", "09", "08", "07"]
        assert run_sql(url, "SELECT clear_until FROM async_history_encryption") == [(7,)]
        assert (await history.encryption.encrypt()).records == 12


async def test_a_clear_record_on_its_way_while_encryption_is_turned_on_again(url: URL) -> None:
    """Its transaction has locked the row of `state`, so nothing is turned on before it ends."""
    engine = create_async_engine(url)
    late = [{"memory_id": "m", "event": "ADD", "new_memory": text} for text in LOOK_SEALED]
    waiting = "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
    async with asyncio.timeout(LONG_S), opened(url) as clear, opened(url) as other:
        await until_turned_off(clear)
        async with engine.begin() as connection:
            await clear.add_in_transaction(connection, late)
            encrypting = asyncio.ensure_future(other.encryption.encrypt())
            while not encrypting.done() and not run_sql(url, waiting)[0][0]:
                # InnoDB refreshes its locks only after 0.1 s without a query.
                await asyncio.wait([encrypting], timeout=0.2)
            async with opened(url) as third:
                assert await third.get_history("m") == []
            assert not encrypting.done()
        await encrypting
        async with opened(url) as third:
            assert [one.new_memory for one in await third.get_history("m")] == list(LOOK_SEALED)
    await engine.dispose()


@pytest.mark.faults
@in_parts(307, nightly=4)
@pytest.mark.parametrize("call", ["encrypt", "replace_data_keys", "decrypt"])
async def test_changes_of_keys_cut_off_at_each_packet_and_called_again(
    own_server: MariaDBServer, new_own_database: Callable[[], URL], call: str, places: Places
) -> None:
    few = TextLimits(rows=5)
    url = new_own_database()

    async def begin() -> list[Any]:
        """Fill the history as the call needs it; return the records."""
        async with SqlHistoryManager(url) as history:
            if not await all_of(history):
                await fill(history, 12)
            records = await all_of(history)
        if call != "encrypt":
            async with opened(url) as history:
                await history.encryption.encrypt()
        return records

    async with MariaDBProxy(own_server.socket) as proxy:
        through = url.set(query={"unix_socket": str(proxy.socket)})
        for place in places:
            records = await begin()
            async with limited(SqlHistoryManager(through, keys=ring("one")), texts=few) as cut:
                before = proxy.cuts
                proxy.cut_after(place)
                calls: Callable[[], Awaitable[Any]] = getattr(cut.encryption, call)
                await stopped_by_a_cut(calls, proxy, before)
            async with opened(url) as history:
                assert await all_of(history) == records
                assert await contents(history) == ["hello"] * 2
                assert await history.count_history(cause={"run_id": "r"}) == 6
                await getattr(history.encryption, call)()
                if call != "decrypt":
                    assert (await history.encryption.encrypt()).records == 0
                    assert len((await key_ids(history))["there"]) == 2
                    await history.encryption.decrypt()
            async with SqlHistoryManager(url) as history:
                assert await all_of(history) == records
                assert await contents(history) == ["hello"] * 2
                assert (await history.check()).problems == ()
            if proxy.cuts == before:
                break
    assert place >= places.stride


@pytest.mark.faults
@in_parts(61, nightly=2)
async def test_a_rotation_cut_off_at_each_packet_and_called_again(
    own_server: MariaDBServer, new_own_database: Callable[[], URL], places: Places
) -> None:
    url = new_own_database()
    async with SqlHistoryManager(url, keys=ring("0")) as history:
        records = await fill(history)
    async with MariaDBProxy(own_server.socket) as proxy:
        through = url.set(query={"unix_socket": str(proxy.socket)})
        for number, place in enumerate(places, 1):
            new = ring(str(number), str(number - 1))
            async with SqlHistoryManager(through, keys=new) as cut:
                before = proxy.cuts
                proxy.cut_after(place)
                await stopped_by_a_cut(cut.encryption.rotate_keys, proxy, before)
            async with SqlHistoryManager(url, keys=new) as history:
                assert await all_of(history) == records
                await history.encryption.rotate_keys()
            async with SqlHistoryManager(url, keys=ring(str(number))) as history:
                assert await all_of(history) == records
                assert await contents(history) == ["hello"] * 2
                assert await history.count_history(cause={"run_id": "r"}) == 6
            assert len(run_sql(url, "SELECT id FROM async_history_wrapping_keys")) == 1
            if proxy.cuts == before:
                break
    assert place >= places.stride


@pytest.mark.faults
@in_parts(211, nightly=8)
async def test_an_erasure_of_an_owner_cut_off_at_each_packet_and_called_again(
    own_server: MariaDBServer, new_own_database: Callable[[], URL], places: Places
) -> None:
    url = new_own_database()

    def keys_of(name: str) -> int:
        digest = owner_digest(Owner(user_id=name))
        return len(run_sql(url, f"SELECT id FROM async_history_data_keys WHERE owner = '{digest}'"))

    async with (
        MariaDBProxy(own_server.socket) as proxy,
        SqlHistoryManager(url, keys=ring("one")) as history,
    ):
        through = url.set(query={"unix_socket": str(proxy.socket)})
        await fill(history)
        for number, place in enumerate(places):
            name = f"owner {number}"
            await record_for(history, name)
            assert keys_of(name) == 1
            opened = SqlHistoryManager(through, keys=ring("one"))
            async with limited(opened, erase=FEW_ERASED) as cut:
                before = proxy.cuts
                proxy.cut_after(place)
                erase = partial(cut.erase, user_id=name, reason="asked", vacuum=False)
                await stopped_by_a_cut(erase, proxy, before)
            async with SqlHistoryManager(url, keys=ring("one")) as fresh:  # no key in memory
                await require_readable(fresh, name)
            await history.erase(user_id=name, reason="asked", vacuum=False)
            await require_forgotten(history, name)
            assert keys_of(name) == 0
            assert await contents(history) == ["hello"] * 2
            if proxy.cuts == before:
                break
        assert (await history.check()).problems == ()
    assert place >= places.stride


@pytest.mark.faults
@in_parts(2503, nightly=64)
async def test_texts_that_look_encrypted_stay_when_cut_off_at_each_packet(
    own_server: MariaDBServer, new_own_database: Callable[[], URL], places: Places
) -> None:
    """From the first opening with keys to the end of the decryption."""
    url = new_own_database()

    def open_with_keys(url: URL) -> HistoryManager:
        return limited(SqlHistoryManager(url, keys=ring("one")), texts=TextLimits(rows=5))

    async with SqlHistoryManager(url) as history:
        await fill_with_look_alikes(history)
    async with MariaDBProxy(own_server.socket) as proxy:
        through = url.set(query={"unix_socket": str(proxy.socket)})
        for place in places:
            before = proxy.cuts
            proxy.cut_after(place)
            opened = partial(open_with_keys, through), partial(SqlHistoryManager, through)
            await stopped_by_a_cut(partial(turn_on_and_off, *opened), proxy, before)
            await turn_on_and_off(partial(open_with_keys, url), partial(SqlHistoryManager, url))
            if proxy.cuts == before:
                break
    assert place >= places.stride
