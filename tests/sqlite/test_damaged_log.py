"""A log of operations that another program changed in a file."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from async_history import StorageCorrupt, open_history

pytestmark = pytest.mark.once

NO_TEXT = "CAST(x'ff' AS TEXT)"
DAMAGES = [
    *[("arguments", value) for value in ("'{oops'", "'[1]'", "'7'", "''", "'null'", "x'ff'", "7")],
    ("arguments", NO_TEXT),
    ("arguments", f"'{'[' * 3_000}'"),
    *[("records", value) for value in ("'x'", "x'ff'", "1.5", "1e999", NO_TEXT)],
    *[("begun_at", value) for value in ("'x'", "x'ff'", "7", "'99999999999-01-01'", NO_TEXT)],
    *[("ended_at", value) for value in ("'x'", "x'ff'", "''")],
    *[(column, value) for column in ("kind", "host", "id") for value in ("x'ff'", NO_TEXT)],
]
NO_ERASURES = [
    "'{}'",
    """'{"reason":1,"memory_ids":[]}'""",
    """'{"reason":"x","memory_ids":"m"}'""",
]


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute(statement)


@pytest.mark.parametrize(("column", "damage"), DAMAGES)
async def test_a_damaged_log_has_the_error_of_other_damage(
    column: str, damage: str, tmp_path: Path
) -> None:
    path = tmp_path / "history.db"
    async with open_history(path) as history:
        await history.reset()
        change(path, f"UPDATE async_history_operations SET {column} = {damage}")
        with pytest.raises(StorageCorrupt, match=r"log of operations is damaged|not UTF-8"):
            await history.operations()
        await history.add_history("m", None, "x", "ADD")
        assert (await history.check()).problems == ()


@pytest.mark.parametrize("arguments", NO_ERASURES)
async def test_an_erasure_without_its_arguments_is_damaged(arguments: str, tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    async with open_history(path) as history:
        await history.add_history("m", None, "x", "ADD")
        await history.erase(memory_ids=["m"], reason="asked for it")
        change(path, f"UPDATE async_history_operations SET arguments = {arguments}")
        with pytest.raises(StorageCorrupt, match="log of operations is damaged"):
            await history.erasures()
        assert len(await history.operations()) == 1


async def test_what_a_users_own_index_refuses_is_not_called_damaged(tmp_path: Path) -> None:
    """SQLite's error for it is the same."""
    path = tmp_path / "history.db"
    async with open_history(path) as history:
        change(path, "CREATE INDEX own ON history (json_extract(new_memory, '$.a'))")
        with pytest.raises(Exception, match="malformed JSON") as caught:
            await history.add_history("m", None, "no JSON", "ADD")
        assert not isinstance(caught.value, StorageCorrupt)
