"""Files in UTF-16, which cannot hold every text."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from async_history import InvalidInput, copy_history, open_history

pytestmark = pytest.mark.once

ODD = ["\ufffe", "\uffff", "a\uffffb", "\U0001ffff\ufffe"]
FINE = ["\ufffd", "\ufdd0", "\U0001fffe", "\U0010ffff", "\U0001f375", "\ufeff", "\ue000"]


@pytest.fixture(params=["UTF-16le", "UTF-16be"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "history.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA encoding = '{request.param}'")
        connection.execute("CREATE TABLE other (x)")
    return path


@pytest.mark.parametrize("odd", ODD, ids=ascii)
async def test_a_text_that_would_be_changed_is_refused(path: Path, odd: str) -> None:
    async with open_history(path) as history:
        await history.add_history("m", None, "x", "ADD")
        before = [record async for record in history.query_history()]
        many = [{"memory_id": "m", "event": "ADD", "new_memory": str(n)} for n in range(1_200)]
        for call in (
            history.add_history(odd, None, "x", "ADD"),
            history.add_history("m", odd, "x", "UPDATE"),
            history.add_history("m", None, odd, "ADD"),
            history.add_history("m", None, "x", "ADD", id=odd),
            history.add_history("m", None, "x", "ADD", actor_id=odd),
            history.add_history("m", None, "x", "ADD", role=odd),
            history.batch_add_history([*many, {**many[0], "new_memory": odd}]),
            history.update_history("m", odd),
            history.save_messages([{"role": "user", "content": odd}], "scope"),
            history.save_messages([{"role": "user", "content": "x"}], odd),
            history.get_history(odd),
            history.count_history(memory_id=odd),
            history.count_history(memory_id=["m", odd]),
            history.count_history(actor_id=odd),
            history.get_last_messages(odd),
        ):
            with pytest.raises(InvalidInput, match=r"U\+FFFF"):
                await call
        assert [record async for record in history.query_history()] == before
        assert await history.get_last_messages("scope") == []


async def test_every_other_text_is_kept_unchanged(path: Path, tmp_path: Path) -> None:
    async with open_history(path) as history, open_history(tmp_path / "copy.db") as copy:
        for text in FINE:
            record = await history.add_history(text, None, text, "ADD", actor_id=text)
            assert await history.get_history(text) == [record]
            assert await history.count_history(memory_id=[text, "other"]) == 1
        await copy_history(history, copy)
        assert await copy.count_history() == len(FINE)
        await copy.add_history("\uffff", None, "\uffff", "ADD")
        assert (await copy.get_history("\uffff"))[0].new_memory == "\uffff"
