"""What the owner of a file adds to its tables: errors of it show no recorded text."""

import sqlite3
import traceback
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest

from async_history import StorageRefused, open_history
from tests.support.keys import ring

pytestmark = pytest.mark.once

TEXT: Final = 'geheim\' "wort" hier'
OWN: Final = {
    "CREATE UNIQUE INDEX own ON history (role)": "history.role",
    "CREATE TRIGGER own BEFORE INSERT ON history WHEN new.role = 'bad' "
    "BEGIN SELECT RAISE(ABORT, 'own words'); END": "own words",
}


@pytest.mark.parametrize("is_encrypted", [False, True], ids=["clear", "encrypted"])
@pytest.mark.parametrize("statement", OWN)
async def test_a_constraint_of_its_own(
    statement: str, tmp_path: Path, *, is_encrypted: bool
) -> None:
    path = tmp_path / "history.db"
    options: dict[str, Any] = {"keys": ring("k")} if is_encrypted else {}
    async with open_history(path, **options) as history:
        await history.add_history("m", None, "1", "ADD", role="good")
        with closing(sqlite3.connect(path)) as file:
            file.execute(statement)
        bad: dict[str, Any] = {"memory_id": "m", "event": "ADD", "new_memory": TEXT, "role": "bad"}
        good = bad | {"role": "good"}
        with pytest.raises(StorageRefused, match=OWN[statement]) as caught:
            await history.batch_add_history([bad, good, good])
    shown = "".join(traceback.format_exception(caught.value))
    assert not [part for part in ("geheim", "wort", "hier", "ahs1:") if part in shown], shown
