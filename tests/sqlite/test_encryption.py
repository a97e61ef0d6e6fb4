"""Encrypted files: nothing in clear, nothing moved or damaged is read, and what keys decide."""

import asyncio
import base64
import contextlib
import copy
import pickle
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mem0.memory.storage import SQLiteManager

from async_history import HistoryManager, JsonLines, copy_history, dump_lines, open_history
from async_history._core.encryption.data_keys import LEASE
from async_history._core.encryption.key_service import CheckedService
from async_history._core.encryption.key_statements import MOST_USES
from async_history._core.encryption.sealing import (
    BEGIN,
    END,
    USES,
    DataKey,
    new_nonce,
    new_nonces,
)
from async_history.blocking import BlockingHistoryManager
from async_history.encryption import KeyRing
from async_history.errors import (
    InvalidInput,
    KeyMissing,
    MigrationError,
    StorageCorrupt,
    StorageRefused,
    StorageUnreachable,
)
from tests.support.keys import master, ring
from tests.support.patience import LONG_S

pytestmark = pytest.mark.once

ANN: Any = {"user_id": "ann"}
BOB: Any = {"user_id": "bob", "agent_id": "helper"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.db"


def open_file(path: Path, *names: str, **options: Any) -> HistoryManager:
    return open_history(path, keys=ring(*(names or ("one",))), **options)


@contextlib.contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


async def texts(history: HistoryManager, memory_id: str) -> list[str | None]:
    return [record.new_memory for record in await history.get_history(memory_id)]


def words_in(folder: Path, *words: str) -> set[str]:
    """Return the words that any file of a folder has."""
    found = b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file())
    return {word for word in words if word.encode() in found}


class TestStoredTexts:
    async def test_no_text_is_in_any_file_in_clear(self, path: Path) -> None:
        words = ("OldWord", "NewWord", "ContextWord", "CauseWord", "RunWord", "ContentWord")
        async with open_file(path) as history:
            details: dict[str, Any] = {
                "context": {"ContextWord": "ContextWord"},
                "cause": {"why": "CauseWord", "run_id": "RunWord"},
            }
            await history.add_history("lone", "OldWord", "NewWord", "UPDATE")
            await history.update_history("m", "OldWord", owner=ANN, **details)
            await history.update_history("m", "NewWord", **details)
            several = [
                history.add_history(f"m{n}", "OldWord", "NewWord", "UPDATE", **details)
                for n in range(40)
            ]
            await asyncio.gather(*several)
            await history.batch_add_history(
                [{"memory_id": "b", "new_memory": "NewWord", "event": "ADD"} for _ in range(600)]
            )
            await history.save_messages([{"role": "user", "content": "ContentWord"}], "user_id=ann")
            await history.rollback(to=datetime.now(UTC) - timedelta(days=1), memory_ids=["m"])
            await history.prune(older_than=timedelta(0), keep_last=1)
            await history.encryption.rotate_keys()
            assert words_in(path.parent, *words) == set(), "also the log"
            await history.erase(**ANN, reason="asked")
            await history.backup(path.parent / "backup.db")
        assert words_in(path.parent, *words) == set()
        assert words_in(path.parent, "lone", "user") == {"lone", "user"}, "it looks"

    async def test_columns_in_clear_are_those_of_the_documentation(self, path: Path) -> None:
        """Ids, events, times, actors, roles, owners, scopes, names; and which causes are equal."""
        given: dict[str, Any] = {
            "created_at": "2026-01-02T03:04:05+00:00",
            "actor_id": "AnActor",
            "role": "ARole",
            "owner": {"user_id": "AnOwner"},
            "cause": {"run_id": "r"},
        }
        async with open_file(path, journal="delete") as history:
            for name in ("OneId", "OtherId"):
                await history.add_history("AMemory", None, "tea", "ADD", id=name, **given)
            await history.save_messages([{"content": "tea", "name": "AName"}], "AScope")
            await history.erase(memory_ids=["none"], reason="AReason")
        clear = ["OneId", "AMemory", "ADD", "2026-01-02T03:04:05", "AnActor", "ARole", "AnOwner"]
        clear += ["AName", "AScope", "AReason"]
        assert words_in(path.parent, *clear) == set(clear)
        with raw(path) as connection:
            causes = connection.execute("SELECT cause FROM async_history_details").fetchall()
        tokens = [cause.partition('"sealed"')[0] for (cause,) in causes]
        assert tokens[0] == tokens[1]
        assert "run_id" in tokens[0]
        assert causes[0] != causes[1]

    async def test_plain_mem0_sees_marked_texts_and_what_it_writes_is_counted(
        self, path: Path
    ) -> None:
        async with open_file(path) as history:
            await history.add_history("m", None, "tea", "ADD")
        plain = SQLiteManager(str(path))
        (seen,) = plain.get_history("m")
        plain.add_history("m", "tea", "in clear", "UPDATE")
        plain.close()
        assert seen["new_memory"].startswith(BEGIN)
        assert seen["new_memory"].endswith(END)
        async with open_file(path) as history:
            assert sorted(map(str, await texts(history, "m"))) == ["in clear", "tea"]
            warnings = (await history.stats()).warnings
            (clear,) = [one for one in warnings if one.code == "clear-records"]
            assert clear.startswith("1 record has texts in clear")
            await history.reset()
            await history.add_history("m", None, "again", "ADD")
            codes = [one.code for one in (await history.stats()).warnings]
            assert "clear-records" not in codes

    @settings(max_examples=30, deadline=None)
    @given(
        st.lists(
            st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])).map(
                lambda text: f"{BEGIN}{text}" if len(text) % 3 == 0 else text
            )
        )
    )
    def test_every_text_comes_back(self, given: list[str]) -> None:
        async def round_trip() -> None:
            async with open_history("memory://", keys=ring("one")) as history:
                follower = history.follow()
                followed = []
                for text in given:
                    told = asyncio.ensure_future(anext(follower))
                    await asyncio.sleep(0)  # it waits as the record is committed
                    await history.add_history("m", None, text, "ADD", context={"text": text})
                    followed.append(await told)
                records = await history.get_history("m")
                assert [record.new_memory for record in records] == given
                assert [record.context for record in records] == [{"text": one} for one in given]
                assert followed == records

        asyncio.run(round_trip())

    async def test_a_key_is_replaced_before_it_was_used_too_often(self, path: Path) -> None:
        async with open_file(path) as history:
            await history.add_history("m", None, "first", "ADD")
        with raw(path) as connection:
            changed = "UPDATE async_history_data_keys SET uses = ? WHERE owner = ''"
            connection.execute(changed, (MOST_USES - LEASE,))
        for _ in range(2):
            async with open_file(path) as history:
                await history.add_history("m", None, "later", "ADD")
        async with open_file(path) as history:
            assert await texts(history, "m") == ["first", "later", "later"]
        with raw(path) as connection:
            uses = connection.execute(
                "SELECT uses FROM async_history_data_keys WHERE owner = '' ORDER BY uses"
            ).fetchall()
        assert uses == [(2 * LEASE,), (MOST_USES - LEASE,)]


class TestTampering:
    async def filled(self, path: Path) -> None:
        async with open_file(path) as history:
            for name in ("a", "b"):
                await history.add_history(
                    "m",
                    f"old {name}",
                    f"new {name}",
                    "UPDATE",
                    id=name,
                    context={"kind": "drink"},
                    cause={"run_id": "run", "why": name},
                )
            await history.save_messages([{"role": "user", "content": "hello"}], "scope")

    async def test_each_damaged_byte_of_a_text_is_found(self, path: Path) -> None:
        await self.filled(path)
        values = [
            ("history", "old_memory"),
            ("history", "new_memory"),
            ("async_history_details", "context"),
            ("async_history_details", "cause"),
        ]
        harmless = tried = 0
        async with open_file(path) as history:
            expected = await history.get_history("m")
            for table, column in values:
                with raw(path) as connection:
                    set_ = f"UPDATE {table} SET {column} = ? WHERE id = 'a'"
                    select = f"SELECT {column} FROM {table} WHERE id = 'a'"
                    ((stored,),) = connection.execute(select).fetchall()
                    for place, before in enumerate(stored):
                        tried += 1
                        changed = chr(ord(before) ^ 1)
                        connection.execute(set_, (stored[:place] + changed + stored[place + 1 :],))
                        try:
                            assert await history.get_history("m") == expected, (column, place)
                        except (StorageCorrupt, KeyMissing):
                            continue
                        harmless += 1
                    connection.execute(set_, (stored,))
            assert await history.get_history("m") == expected
        assert tried > 300
        # Some bits of base64's last character mean nothing.
        assert harmless <= len(values)

    async def read(self, path: Path) -> None:
        async with open_file(path) as history:
            await history.get_history("m")
            await history.get_last_messages("scope")

    async def test_each_damaged_byte_of_the_keys_is_found(self, path: Path) -> None:
        await self.filled(path)
        tables = {
            "async_history_wrapping_keys": ("id", "master", "wrapped"),
            "async_history_data_keys": ("id", "wrapping_key", "wrapped"),
        }
        for table, columns in tables.items():
            for column in columns:
                with raw(path) as connection:
                    select = f"SELECT rowid, {column} FROM {table}".replace("rowid", "id")
                    stored = connection.execute(select).fetchall()
                    for key_id, value in stored:
                        for place in (0, len(value) // 2, len(value) - 3):
                            changed = (
                                value[:place] + chr(ord(value[place]) ^ 1) + value[place + 1 :]
                            )
                            set_ = f"UPDATE {table} SET {column} = ? WHERE id = ?"
                            connection.execute(set_, (changed, key_id))
                            with pytest.raises((StorageCorrupt, KeyMissing)):
                                await self.read(path)
                            found = changed if column == "id" else key_id
                            connection.execute(set_, (value, found))

    @pytest.mark.parametrize(
        "moved",
        [
            "UPDATE history SET new_memory = (SELECT new_memory FROM history WHERE id = 'b')",
            "UPDATE history SET old_memory = new_memory",
            "UPDATE async_history_details SET cause = (SELECT cause FROM async_history_details"
            " WHERE id = 'b')",
            "UPDATE async_history_details SET context = (SELECT context FROM async_history_details"
            " WHERE id = 'b')",
            "UPDATE history SET id = 'c' WHERE id = 'b'",
            "UPDATE history SET id = x'62' WHERE id = 'b'",
        ],
    )
    async def test_what_was_moved_is_refused(self, path: Path, moved: str) -> None:
        await self.filled(path)
        async with open_file(path) as history:
            with raw(path) as connection:
                connection.execute(moved)
            with pytest.raises(StorageCorrupt, match=r"of ([abc]|b'b') does not open"):
                await history.get_history("m")
            await history.add_history("other", None, "tea", "ADD")
            assert await texts(history, "other") == ["tea"]

    async def test_a_message_that_was_moved_is_refused(self, path: Path) -> None:
        await self.filled(path)
        async with open_file(path) as history:
            with raw(path) as connection:
                connection.execute("UPDATE messages SET session_scope = 'another'")
            with pytest.raises(StorageCorrupt, match="content of"):
                await history.get_last_messages("another")


class TestErasing:
    async def test_a_forgotten_owners_keys_are_destroyed(self, path: Path) -> None:
        """The backup of before has them still, until its master key is gone."""
        backup = path.parent / "backup.db"
        async with open_file(path, "old") as history:
            await history.add_history("m", None, "tea", "ADD", owner=ANN)
            await history.add_history("n", None, "mate", "ADD", owner=BOB)
            await history.backup(backup)
            report = await history.erase(**ANN, reason="asked")
            assert any("data keys of what was erased" in one for one in report.remains)
            again = await history.erase(**ANN, reason="asked")
            assert not any("data keys" in one for one in again.remains)
            assert await texts(history, "n") == ["mate"]
        with raw(path) as connection:
            owners = connection.execute(
                "SELECT count(user_id) FROM async_history_data_keys"
            ).fetchall()
        assert owners == [(1,)], "bob's"
        async with open_file(backup, "old") as history:
            assert await texts(history, "m") == ["tea"], "as the report says"
        async with open_file(path, "new", "old") as history:
            assert (await history.encryption.rotate_keys()).master_key == "new"
        with pytest.raises(KeyMissing, match="'old'") as missing:
            await open_file(backup, "new")
        assert missing.value.name == "old"
        async with open_file(path, "new") as history:
            assert await texts(history, "n") == ["mate"]
        # The rows of before, in the store of today: no key of today opens them.
        with raw(path) as connection:
            connection.execute("ATTACH ? AS backup", (str(backup),))
            connection.execute(
                "UPDATE history SET new_memory = (SELECT new_memory FROM backup.history AS before"
                " WHERE before.id = history.id) WHERE memory_id = 'm'"
            )
        async with open_file(path, "new") as history:
            with pytest.raises(KeyMissing, match="destroyed"):
                await history.get_history("m")
            assert await texts(history, "n") == ["mate"]

    async def test_other_erasures_destroy_no_key(self, path: Path) -> None:
        """A text from before its memory had an owner keeps the common key."""
        async with open_file(path) as history:
            await history.add_history("m", None, "before", "ADD", id="1")
            await history.add_history("m", "before", "after", "UPDATE", id="2", owner=ANN)
            with raw(path) as connection:
                (before, after), keys = self.stored(connection)
            assert before.split(":")[1] != after.split(":")[1]
            for asked in ({"record_ids": ["1"]}, {"memory_ids": ["m"]}, {"actor_id": "bo"}):
                report = await history.erase(**asked, reason="asked")
                assert not any("data keys" in one for one in report.remains)
            with raw(path) as connection:
                assert self.stored(connection) == ([None, None], keys)
            await history.erase(**ANN, reason="asked")
            with raw(path) as connection:
                put_back = "UPDATE history SET new_memory = ? WHERE id = ?"
                connection.execute(put_back, (before, "1"))
                assert (await history.get_history("m"))[0].new_memory == "before"
                connection.execute(put_back, (after, "2"))
            with pytest.raises(KeyMissing, match="destroyed"):
                await history.get_history("m")

    def stored(self, connection: sqlite3.Connection) -> tuple[list[Any], list[Any]]:
        """Return the texts of a file as they are stored, and its data keys."""
        texts = connection.execute("SELECT new_memory FROM history ORDER BY rowid").fetchall()
        keys = connection.execute("SELECT id, wrapped FROM async_history_data_keys").fetchall()
        return [text for (text,) in texts], keys

    async def test_what_a_rule_of_the_file_refused_took_no_key_along(self, path: Path) -> None:
        async with open_file(path) as history:
            with raw(path) as connection:
                connection.execute(
                    "CREATE TRIGGER own BEFORE INSERT ON history WHEN new.memory_id = 'never'"
                    " BEGIN SELECT RAISE(ROLLBACK, 'not here'); END"
                )
            with pytest.raises(StorageRefused):
                await history.add_history("never", None, "x", "ADD", owner=ANN)
            await history.add_history("m", None, "tea", "ADD", owner=ANN)
        async with open_file(path) as history:
            assert await texts(history, "m") == ["tea"]


class TestQueries:
    async def test_causes_of_before_are_found_too(self, path: Path) -> None:
        async with open_history(path) as history:
            await history.add_history("m", None, "a", "ADD", cause={"run_id": "r"})
        async with open_file(path) as history:
            await history.add_history("m", None, "b", "ADD", cause={"run_id": "r", "why": "w"})
            await history.add_history("m", None, "c", "ADD", cause={"run_id": "other"})

            async def found(**asked: Any) -> list[str | None]:
                return [one.new_memory async for one in history.query_history(**asked)]

            assert await found(cause={"run_id": "r"}) == ["a", "b"]
            assert await found(cause={"run_id": "r", "why": "w"}) == ["b"]
            assert await found(text="c", page_size=1) == ["c"]
            assert await history.count_history(cause={"run_id": "r"}) == 2
            assert await history.count_history(text="a", event="ADD") == 1

    async def test_a_cursor_of_a_page_of_a_text_goes_on(self, path: Path) -> None:
        async with open_file(path) as history:
            for number in range(30):
                await history.add_history("m", None, f"{number} {number % 10}", "ADD")
            asked: dict[str, Any] = {"text": " 7", "page_size": 4}
            (first,) = [page async for page in history.query_history(**asked, limit=1).pages()]
            rest = history.query_history(**asked, after=first.cursor)
            assert [one.new_memory for one in first.records] == ["7 7"]
            assert [one.new_memory async for one in rest] == ["17 7", "27 7"]


class TestRotation:
    async def test_an_interrupted_rotation_is_completed_by_calling_it_again(
        self, path: Path
    ) -> None:
        class Interrupted(Exception): ...

        def interrupt(done: int, total: int) -> None:
            seen.append((done, total))
            if len(seen) == 1:
                raise Interrupted

        seen: list[tuple[int, int]] = []
        names = [f"m{number}" for number in range(400)]
        async with open_file(path, "old") as history:
            await asyncio.gather(
                *[history.add_history(n, None, n, "ADD", owner={"user_id": n}) for n in names]
            )
        async with open_file(path, "new", "old") as history:
            with pytest.raises(Interrupted):
                await history.encryption.rotate_keys(on_progress=interrupt)
            assert [await texts(history, name) for name in names[:5]] == [[n] for n in names[:5]]
        async with open_file(path, "new") as history:
            readable, lacking = 0, set[str]()
            for name in names:
                try:
                    assert await texts(history, name) == [name]
                    readable += 1
                except KeyMissing as error:
                    lacking.add(error.name)
            assert 0 < readable < len(names)
            assert lacking == {"old"}
            await history.add_history("n", None, "also now", "ADD", owner=ANN)
            with pytest.raises(KeyMissing, match="'old'"):
                await history.encryption.rotate_keys()
        async with open_file(path, "new", "old") as history:
            rotation = await history.encryption.rotate_keys(on_progress=interrupt)
            assert (rotation.master_key, rotation.data_keys) == ("new", len(names) + 1)
            assert seen[-1] == (len(names) + 1, len(names) + 1)
        async with open_file(path, "new") as history:
            for name in names:
                assert await texts(history, name) == [name]
            await history.encryption.rotate_keys()
        with raw(path) as connection:
            keys = connection.execute("SELECT master FROM async_history_wrapping_keys").fetchall()
        assert keys == [("new",)]

    async def test_rotating_keys_rewrites_no_record(self, path: Path) -> None:
        async with open_file(path, "new", "old") as history:
            await history.add_history("m", None, "tea", "ADD", owner=ANN, context={"why": "tea"})
            rows = "SELECT * FROM history, async_history_details"
            with raw(path) as connection:
                before = connection.execute(rows).fetchall()
                await history.encryption.rotate_keys()
                assert connection.execute(rows).fetchall() == before

    async def test_others_go_on_while_keys_are_rotated(self, path: Path) -> None:
        async with (
            open_file(path, "old") as behind,
            open_file(path, "old", "new") as other,
            open_file(path, "new", "old") as history,
        ):
            for manager in (history, behind, other):
                await manager.add_history("m", None, "before", "ADD", owner=ANN)
            await history.encryption.rotate_keys()
            await other.add_history("n", None, "after", "ADD", owner=BOB)
            assert await texts(other, "n") == ["after"]
            assert await texts(behind, "m") == ["before"] * 3, "its keys are in memory"
            with pytest.raises(KeyMissing, match="'new'"):
                await behind.add_history("o", None, "x", "ADD", owner={"user_id": "new"})
            with pytest.raises(KeyMissing, match="'new'"):
                await behind.get_history("n")


async def _cancelled(_: bytes) -> bytes:
    connecting = asyncio.ensure_future(asyncio.Event().wait())
    connecting.cancel()
    await connecting
    raise AssertionError


async def _hanging(_: bytes) -> bytes:
    await asyncio.Event().wait()
    raise AssertionError


class Service:
    """A master key in a service, which counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fails = False

    async def wrap(self, key: bytes) -> bytes:
        self.asked.append("wrap")
        return bytes(byte ^ 0x55 for byte in key)

    async def unwrap(self, wrapped: bytes) -> bytes:
        self.asked.append("unwrap")
        if self.fails:
            raise OSError("no network")
        return bytes(byte ^ 0x55 for byte in wrapped)


class TestKeyRing:
    async def test_a_key_in_a_service(self, path: Path) -> None:
        service = Service()
        keys = KeyRing({"kms": service})
        async with open_history(path, keys=keys) as history:
            for number in range(20):
                owner = {"user_id": str(number)}
                await history.add_history(f"m{number}", None, "tea", "ADD", owner=owner)
        async with open_history(path, keys=keys) as history:
            assert await texts(history, "m0") == ["tea"]
        assert service.asked == ["wrap", "unwrap", "unwrap"], "not for each owner"
        service.fails = True
        with pytest.raises(StorageUnreachable, match="'kms' did not unwrap a key: no network"):
            await open_history(path, keys=keys)

    @pytest.mark.parametrize(
        ("wrapped", "unwrapped"),
        [
            *((answer, None) for answer in (b"", "text", None)),
            *((b"wrapped", answer) for answer in (b"", b"x" * 31, b"x" * 32, "x" * 32, None)),
        ],
    )
    async def test_a_service_that_cannot_unwrap_turns_nothing_on(
        self, path: Path, wrapped: Any, unwrapped: Any
    ) -> None:
        service: Any = Service()

        async def wrap(_: bytes) -> Any:
            return wrapped

        async def unwrap(_: bytes) -> Any:
            return unwrapped

        service.wrap, service.unwrap = wrap, unwrap
        async with open_history(path) as history:
            await history.add_history("m", None, "tea", "ADD")
        with pytest.raises(StorageUnreachable, match=r"'kms' (did not|unwraps another)"):
            await open_history(path, keys=KeyRing({"kms": service}))
        async with open_history(path) as history:
            assert await texts(history, "m") == ["tea"]

    @pytest.mark.parametrize(
        ("encode", "decode"),
        [
            (bytes, bytes),
            (base64.b64encode, base64.b64decode),
            (base64.urlsafe_b64encode, base64.urlsafe_b64decode),
            (lambda key: base64.b64encode(key + b"tag"), lambda text: base64.b64decode(text)[:32]),
            (lambda key: key.hex().encode(), lambda text: bytes.fromhex(text.decode())),
            (lambda key: key.hex().upper().encode(), lambda text: bytes.fromhex(text.decode())),
        ],
        ids=["as it is", "base64", "base64url", "base64 with more", "hex", "upper hex"],
    )
    async def test_a_service_that_stores_keys_in_clear_turns_nothing_on(
        self, path: Path, encode: Callable[[bytes], bytes], decode: Callable[[bytes], bytes]
    ) -> None:
        service: Any = Service()

        async def wrap(key: bytes) -> bytes:
            return b"v1:" + encode(key)

        async def unwrap(wrapped: bytes) -> bytes:
            return decode(wrapped[3:])

        service.wrap, service.unwrap = wrap, unwrap
        with pytest.raises(StorageUnreachable, match="in clear"):
            await open_history(path, keys=KeyRing({"kms": service}))

    async def test_a_service_may_answer_with_a_buffer(self, path: Path) -> None:
        service: Any = Service()
        wrap, unwrap = service.wrap, service.unwrap

        async def wrapped(key: bytes) -> memoryview:
            return memoryview(await wrap(key))

        async def unwrapped(text: bytes) -> bytearray:
            return bytearray(await unwrap(text))

        service.wrap, service.unwrap = wrapped, unwrapped
        keys = KeyRing({"kms": service})
        async with open_history(path, keys=keys) as history:
            await history.add_history("m", None, "tea", "ADD")
        async with open_history(path, keys=keys) as history:
            assert await texts(history, "m") == ["tea"]

    @pytest.mark.parametrize(
        ("fail", "within_s", "said"),
        [(_cancelled, 30, "cancelled"), (_hanging, 0.01, "unwrap a key: TimeoutError")],
        ids=["its own task is cancelled", "it does not answer"],
    )
    async def test_a_service_that_ends_no_call_fails_one(
        self, path: Path, fail: Callable[[bytes], Awaitable[bytes]], within_s: float, said: str
    ) -> None:
        """Another program has rotated the keys, so all writes wait for the answer."""
        service: Any = Service()
        rotating, unwrap = KeyRing({"kms": Service()}), service.unwrap
        limited = CheckedService("kms", service, answer_timeout_s=within_s)
        async with (
            open_history(path, keys=rotating) as other,
            open_history(path, keys=KeyRing({"kms": limited})) as history,
        ):
            await history.add_history("m", None, "tea", "ADD", owner={"user_id": "ann"})
            await other.encryption.rotate_keys()
            service.unwrap = fail
            with pytest.raises(StorageUnreachable, match=said):
                await history.add_history("n", None, "tea", "ADD", owner={"user_id": "bob"})
            service.unwrap = unwrap
            await history.add_history("n", None, "tea", "ADD", owner={"user_id": "bob"})

    async def test_a_damaged_key_is_not_given_to_a_service(self) -> None:
        service = Service()
        with pytest.raises(StorageUnreachable, match="did not unwrap a key: Incorrect padding"):
            await KeyRing({"kms": service}).unwrap("abc", "key", "kms")
        assert not service.asked

    @pytest.mark.parametrize("name", ["a\0b", "\ud800", "", "a b", "a=b", 5])
    def test_a_name_that_no_store_can_hold_is_refused(self, name: Any) -> None:
        with pytest.raises(InvalidInput, match="the name of a master key"):
            KeyRing({name: master("a")})

    def test_a_file_of_an_editor_of_windows(self, tmp_path: Path) -> None:
        line = f"a={base64.b64encode(master('a')).decode()}\r\n"
        (tmp_path / "keys").write_bytes(line.encode("utf-8-sig"))
        assert KeyRing.from_file(tmp_path / "keys").names == ("a",)

    def test_keys_from_a_file_and_the_environment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lines = [f"{name}={base64.b64encode(master(name)).decode()}" for name in ("b", "a")]
        (tmp_path / "keys").write_text("\n".join(["# of the history", "", *lines, ""]))
        monkeypatch.setenv("ASYNC_HISTORY_KEYS", " ".join(lines))
        for keys in (KeyRing.from_file(tmp_path / "keys"), KeyRing.from_environment()):
            assert (keys.current, keys.names) == ("b", ("b", "a"))
            assert repr(keys) == "<KeyRing 'b', 'a'>"

    @pytest.mark.parametrize(
        "text", ["", "name", "name=c2hvcnQ=", f"=={'A' * 43}=", f"a={'A' * 43}=\na={'A' * 43}="]
    )
    def test_what_is_not_a_key_is_refused_and_not_shown(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "keys").write_text(text)
        with pytest.raises(InvalidInput) as refused:
            KeyRing.from_file(tmp_path / "keys")
        assert "c2hv" not in str(refused.value)
        assert "AAAA" not in str(refused.value)

    @pytest.mark.parametrize(
        "keys", [{}, None, {"a b": bytes(32)}, {"a": "text"}, {"a": bytes(31)}, {5: bytes(32)}]
    )
    def test_a_ring_of_what_can_not_be_used(self, keys: Any) -> None:
        with pytest.raises(InvalidInput):
            KeyRing(keys)

    def test_a_missing_file_or_variable(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="can't be read"):
            KeyRing.from_file(tmp_path / "missing")
        with pytest.raises(InvalidInput, match="NO_SUCH_VARIABLE has no master key"):
            KeyRing.from_environment("NO_SUCH_VARIABLE")

    async def test_no_key_is_shown_or_pickled(self, path: Path) -> None:
        keys = ring("one")
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(keys)
        with pytest.raises(TypeError, match="not pickled"):
            copy.deepcopy(keys)
        async with open_history(path, keys=keys) as history:
            shown = f"{keys!r} {history!r} {history.backend!r} {history.encryption!r}"
        for form in (repr(master("one"))[2:-1], master("one").hex()):
            assert form not in shown

    async def test_a_file_that_is_opened_with_other_keys_or_none(self, path: Path) -> None:
        async with open_history(path) as history:
            with pytest.raises(InvalidInput, match=r"not encrypted: open it with keys=KeyRing"):
                _ = history.encryption
        with pytest.raises(MigrationError, match="migrate=True once"):
            await open_file(path, migrate=False)
        async with open_file(path) as history:
            await history.add_history("m", None, "tea", "ADD")
        for keys, name in (
            (None, ""),
            (ring("two"), "one"),
            (KeyRing({"one": bytes(32)}), "one"),
        ):
            with pytest.raises(KeyMissing) as missing:
                await open_history(path, keys=keys)
            assert missing.value.name == name
        async with open_file(path, migrate=False) as history:
            assert await texts(history, "m") == ["tea"]

    async def test_a_file_in_utf_16_is_refused(self, path: Path) -> None:
        with raw(path) as connection:
            connection.execute("PRAGMA encoding = 'UTF-16le'")
            connection.execute("CREATE TABLE other (x)")
        async with open_history(path) as history:
            await history.add_history("m", None, "tea", "ADD")
        with pytest.raises(InvalidInput, match="UTF-16"):
            await open_file(path)


def test_nonces_and_places_decide() -> None:
    key = DataKey("0" * 16, master("data"))
    nonces = [*chain.from_iterable(new_nonces(50)), new_nonce()]
    assert len({key.seal("text", b"place", nonce) for nonce in nonces}) == 50 * USES + 1


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1_000, 1_001, 1_002])
def test_an_encrypted_text_is_as_long_as_the_documentation_says(size: int) -> None:
    sealed = DataKey("0" * 16, master("data")).seal("x" * size, b"place", new_nonce())
    assert 64 < len(sealed) - size * 4 / 3 < 68


class TestEverywhere:
    async def test_copies_and_lines(self, path: Path) -> None:
        """A copy is under the target's keys, lines are in clear."""
        details: Any = {"context": {"kind": "drink"}, "cause": {"run_id": "r"}, "owner": ANN}
        async with (
            open_file(path, "one") as source,
            open_file(path.parent / "copy.db", "two") as target,
            open_history(path.parent / "clear.db") as clear,
        ):
            for number in range(200):
                await source.update_history(f"m{number % 3}", f"text {number}", **details)
            await source.save_messages([{"role": "user", "content": "hello"}], "scope")
            records = [one async for one in source.query_history()]
            for store in (target, clear):
                report = await copy_history(source, store)
                assert (report.records, report.scopes) == (200, 1)
                assert [one async for one in store.query_history()] == records
                (message,) = await store.get_last_messages("scope")
                assert message.content == "hello"
            lines = [line async for line in dump_lines(source)]
            assert "text 7" in lines[7]
            again = open_file(path.parent / "lines.db", "three")
            async with again as imported:
                await copy_history(JsonLines(lines), imported)
                assert [one async for one in imported.query_history()] == records

    def test_code_that_does_not_await(self, path: Path) -> None:
        with contextlib.closing(BlockingHistoryManager(path, keys=ring("one"))) as history:
            history.add_history("m", None, "tea", "ADD")
        with contextlib.closing(BlockingHistoryManager(path, keys=ring("two", "one"))) as history:
            assert history.encryption.rotate_keys().master_key == "two"
            assert [one["new_memory"] for one in history.get_history("m")] == ["tea"]
        with (
            contextlib.closing(BlockingHistoryManager(":memory:")) as history,
            pytest.raises(InvalidInput, match="not encrypted"),
        ):
            history.encryption.rotate_keys()

    @pytest.mark.subprocess
    def test_the_command(self, path: Path) -> None:
        def run(*arguments: str, names: tuple[str, ...] = ()) -> tuple[int, str, str]:
            lines = [f"{name}={base64.b64encode(master(name)).decode()}" for name in names]
            (path.parent / "keys").write_text("\n".join(lines))
            given = ["--keys-file", str(path.parent / "keys")] if names else []
            command = [sys.executable, "-m", "async_history", *given, *arguments]
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=LONG_S, cwd=path.parent
            )
            return done.returncode, done.stdout, done.stderr

        async def fill() -> None:
            async with open_file(path, "old") as history:
                await history.add_history("m", None, "tea", "ADD")

        asyncio.run(fill())
        status, _, told = run("log", "m")
        assert (status, "--keys-file" in told) == (1, True)
        assert "tea" in run("log", "m", names=("old",))[1]
        status, printed, _ = run("rekey", names=("new", "old"))
        assert (status, printed) == (0, "1 data key is wrapped by master key 'new' now\n")
        assert run("check", names=("new",))[0] == 0
        status, _, told = run("log", "m", names=("old",))
        assert (status, "'new' is not in the key ring" in told) == (1, True)
        status, _, told = run("rekey", "--db", "memory://", names=("new",))
        assert (status, "not encrypted" in told) == (2, True)

    def test_a_store_that_keeps_nothing_refuses_keys(self) -> None:
        with pytest.raises(InvalidInput, match="has no option 'keys'"):
            open_history("null://", keys=ring("one"))

    def test_without_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        name = "cryptography.hazmat.primitives.ciphers.aead"
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(InvalidInput, match=r"pip install 'async-history\[crypto\]'"):
            ring("one")
