"""Tables of other programs with other types of columns or values than mem0's."""

import asyncio
import sqlite3
import traceback
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from async_history import HistoryManager, MigrationError, StorageCorrupt, open_history
from async_history.sqlite import adopt

pytestmark = pytest.mark.once

TEXTS = ("id", "memory_id", "old_memory", "new_memory", "event", "actor_id", "role")
COLUMNS = dict.fromkeys(TEXTS, "TEXT") | {
    "created_at": "DATETIME",
    "updated_at": "DATETIME",
    "is_deleted": "INTEGER",
}
ALTERING = [(name, kind) for name in TEXTS for kind in ("INTEGER", "REAL", "STRING", "JSON")]
ALTERING.append(("is_deleted", "VARCHAR(5)"))
LIKE_NUMBERS = ("007", "1e3", "42", "-0", "3.10", " 5", "9" * 30, "0x10", "tea")


def _create(path: Path, **types: str) -> None:
    columns = [f"{name} {kind}" for name, kind in (COLUMNS | types).items()]
    columns = [each + " PRIMARY KEY" if each.startswith("id ") else each for each in columns]
    with closing(sqlite3.connect(path)) as file:
        file.execute(f"CREATE TABLE history ({', '.join(columns)})")
        file.commit()


def _execute(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        for statement in statements:
            file.execute(statement)


async def _is_rewritten(path: Path) -> bool:
    return (await asyncio.to_thread(adopt, path, dry_run=True)).rewritten


async def _check_texts(history: HistoryManager) -> None:
    """Check that texts that look like numbers are kept, found, and recognised when repeated."""
    for number, text in enumerate(LIKE_NUMBERS):
        add = partial(history.add_history, text, text, text, "UPDATE")
        given = await add(id=text, actor_id=text, role=text)
        again = await add(id=text, actor_id=text, role=text)
        assert [given] == await history.get_history(text) == [again]
        assert given.is_deleted is False
        assert await history.count_history(actor_id=text) == 1
        assert await history.count_history() == number + 1


@pytest.mark.parametrize(("column", "kind"), ALTERING)
async def test_a_column_that_would_change_values_is_rewritten(
    column: str, kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "history.db"
    _create(path, **{column: kind})
    assert await _is_rewritten(path)
    async with open_history(path) as history:
        await _check_texts(history)
    assert not await _is_rewritten(path)


@pytest.mark.parametrize("kind", ["", "BLOB", "CLOB", "VARCHAR(36)", "text"])
async def test_a_column_that_keeps_values_is_not_rewritten(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    _create(path, **dict.fromkeys(TEXTS, kind))
    assert not await _is_rewritten(path)
    async with open_history(path) as history:
        await _check_texts(history)


async def test_numbers_are_read_as_text(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    _create(path, memory_id="INTEGER", is_deleted="TEXT")
    _execute(
        path, "INSERT INTO history (id, memory_id, event, is_deleted) VALUES (1, 42, 'ADD', 0)"
    )
    for migrate in (False, True):
        async with open_history(path, migrate=migrate) as history:
            (record,) = await history.get_history("42")
            assert (record.id, record.memory_id, record.is_deleted) == ("1", "42", False)


async def test_a_file_used_with_such_a_column_keeps_owners_and_contexts(tmp_path: Path) -> None:
    """An earlier version adopted it: its index is valid, but its column is not."""
    path = tmp_path / "history.db"
    async with open_history(path) as history:
        before = await history.add_history(
            "42", None, "tea", "ADD", owner={"user_id": "ann"}, context={"mood": "good"}
        )
    _execute(
        path,
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET sql = replace(sql, 'memory_id TEXT', 'memory_id INTEGER')",
    )
    async with open_history(path) as history:
        assert await history.get_history("42") == [before]
        assert [record async for record in history.query_history(user_id="ann")] == [before]
        await history.add_history("007", None, "tea", "ADD")
        assert await history.get_history("007")


async def test_a_table_replaced_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    async with open_history(path) as history:
        await history.add_history("m", None, "tea", "ADD")
        _execute(path, "DROP TABLE history")
        _create(path, memory_id="INTEGER")
        await _check_texts(history)


@pytest.mark.parametrize("column", ["id", "session_scope", "role", "content", "name"])
async def test_messages_that_would_be_changed_are_refused(column: str, tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    kinds = dict.fromkeys(("id", "session_scope", "role", "content", "name"), "TEXT")
    kinds |= {"created_at": "DATETIME", column: "INTEGER"}
    columns = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
    _execute(path, f"CREATE TABLE messages ({columns})")
    with pytest.raises(MigrationError, match=rf"\({column}\), so that a text"):
        await open_history(path)


@pytest.mark.parametrize("record_id", ["NULL", "x'00ff'", "7", "'7'", "1.5"])
async def test_a_cursor_after_an_id_of_any_type(record_id: str, tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    _create(path, id="")
    insert = "INSERT INTO history (id, memory_id, new_memory, event) VALUES ({}, 'm', '{}', 'ADD')"
    _execute(path, insert.format(record_id, "first"), insert.format("'last'", "last"))
    for migrate in (False, True):
        async with open_history(path, migrate=migrate) as history:
            first = await anext(history.query_history(limit=1).pages())
            assert [record.new_memory for record in first.records] == ["first"]
            rest = history.query_history(after=first.cursor)
            assert [record.new_memory async for record in rest] == ["last"]
            follower = history.follow()
            assert (await anext(follower)).new_memory == "first"
            resumed = history.follow(after=follower.cursor)
            assert (await anext(resumed)).new_memory == "last"


@pytest.mark.parametrize("column", ["id", "memory_id", "new_memory", "role"])
async def test_a_text_that_is_not_utf8_is_called_damaged(column: str, tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    _create(path)
    insert = "INSERT INTO history (id, memory_id, event) VALUES ('{0}', '{0}', 'ADD')"
    _execute(path, insert.format("sound"), insert.format("other"))
    _execute(path, f"UPDATE history SET {column} = CAST(x'ff' AS TEXT) WHERE id = 'other'")
    async with open_history(path) as history:
        with pytest.raises(StorageCorrupt, match="text that is not UTF-8"):
            [record async for record in history.query_history()]
        assert len(await history.get_history("sound")) == 1
        await history.add_history("sound", None, "x", "UPDATE")


READS: dict[str, Callable[[HistoryManager], Awaitable[object]]] = {
    "get": lambda history: history.get_history("m"),
    "update": lambda history: history.update_history("m", "tea"),
}


@pytest.mark.parametrize("read", READS)
async def test_an_error_does_not_show_a_text_that_is_not_utf8(read: str, tmp_path: Path) -> None:
    """Not in its traceback either, which logs have."""
    path = tmp_path / "history.db"
    async with open_history(path) as history:
        await history.add_history("m", None, "secret", "ADD")
        _execute(path, "UPDATE history SET new_memory = CAST(x'ff' || new_memory AS TEXT)")
        with pytest.raises(StorageCorrupt, match="column 'new_memory'") as caught:
            await READS[read](history)
    assert "secret" not in "".join(traceback.format_exception(caught.value))


async def test_a_schema_that_is_not_utf8_is_called_damaged(tmp_path: Path) -> None:
    """SQLite's own message about it is not UTF-8 then, which its driver does not expect."""
    path = tmp_path / "history.db"
    async with open_history(path) as history:
        await history.add_history("m", None, "likes tea", "ADD")
    _execute(
        path,
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET sql = 'CREATE TABLE x', name = CAST(x'ff' AS TEXT)"
        " WHERE name = 'messages'",
    )
    with pytest.raises(StorageCorrupt, match="not UTF-8"):
        await open_history(path)


async def test_a_log_of_operations_without_times_is_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    async with open_history(path) as history:
        await history.reset()
        _execute(path, "UPDATE async_history_operations SET begun_at = 'x'")
        with pytest.raises(StorageCorrupt, match="log of operations"):
            await history.operations()


@pytest.mark.parametrize("owner", ["{", "[]", "1", '{"user_id":1}'])
async def test_an_owner_that_is_not_one_is_called_damaged(tmp_path: Path, owner: str) -> None:
    path = tmp_path / "history.db"
    async with open_history(path) as history:
        await history.add_history("m", None, "first", "ADD", owner={"user_id": "ann"})
        await history.add_history("other", None, "first", "ADD")
    _execute(path, f"UPDATE async_history_owners SET owner = '{owner}'")
    async with open_history(path) as history:
        with pytest.raises(StorageCorrupt, match="can't be read"):
            await history.get_history("m")
        with pytest.raises(StorageCorrupt, match="can't be read"):
            await history.update_history("m", "second")
        await history.update_history("other", "second")
        assert len(await history.get_history("other")) == 2
