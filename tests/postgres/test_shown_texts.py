"""Errors of what the database's owner adds to the tables: no recorded text is in them."""

import logging
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, Final

import asyncpg
import pytest

from async_history import HistoryManager, StorageError, StorageRefused, open_history
from tests.support.keys import ring

pytestmark = [pytest.mark.postgres, pytest.mark.once]

TEXT: Final = 'geheim\n"wort" HINT: hier'
OWN: Final = {
    "check": ("ALTER TABLE {} ADD CONSTRAINT own CHECK (memory_id <> 'bad')", '"own"'),
    "unique": ("CREATE UNIQUE INDEX own ON {} (new_memory)", '"own"'),
    "exclusion": ("ALTER TABLE {} ADD CONSTRAINT own EXCLUDE (new_memory WITH =)", '"own"'),
    "not null": ("ALTER TABLE {} ALTER COLUMN role SET NOT NULL", '"role"'),
    "number": ("CREATE INDEX own ON {} ((new_memory::pg_catalog.int8))", "type bigint"),
    "JSON": ("CREATE INDEX own ON {} ((new_memory::pg_catalog.json ->> 'a'))", "type json"),
    "trigger": (
        "CREATE FUNCTION own() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN PERFORM NEW.new_memory::pg_catalog.int8; RETURN NEW; END'; "
        "CREATE TRIGGER own BEFORE INSERT OR UPDATE ON {} FOR EACH ROW EXECUTE FUNCTION own()",
        "type bigint",
    ),
}
CALLS: dict[str, Callable[[HistoryManager], Awaitable[object]]] = {
    "add": lambda history: history.add_history("bad", None, TEXT, "ADD"),
    "batch": lambda history: history.batch_add_history(
        [{"memory_id": "bad", "event": "ADD", "new_memory": TEXT}] * 2
    ),
    "conditional": lambda history: history.add_history("bad", None, TEXT, "ADD", if_latest=None),
}


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


async def require_hidden(
    history: HistoryManager, call: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(StorageRefused) as caught:
        await CALLS[call](history)
    assert name in str(caught.value)
    for part in ("geheim", "wort", "hier", "ahs1:"):
        assert part not in shown(caught.value)
        assert part not in caplog.text


@pytest.mark.parametrize("is_encrypted", [False, True], ids=["clear", "encrypted"])
@pytest.mark.parametrize("own", OWN)
async def test_a_constraint_of_its_own(
    own: str,
    url: str,
    raw: asyncpg.Connection,
    caplog: pytest.LogCaptureFixture,
    *,
    is_encrypted: bool,
) -> None:
    caplog.set_level(logging.DEBUG, "async_history")
    options: dict[str, Any] = {"keys": ring("k")} if is_encrypted else {}
    statement, name = OWN[own]
    async with open_history(url, **options) as history:
        await raw.execute(statement.format("history"))
        if own in ("unique", "exclusion"):
            if is_encrypted:
                return  # each time a text is sealed, it is another one
            await history.add_history("m", None, TEXT, "ADD", role="r")
        for call in CALLS:
            await require_hidden(history, call, name, caplog)


async def test_a_setting_that_the_server_does_not_take_is_named(url: str) -> None:
    with pytest.raises(StorageError, match='parameter "work_mem": "much"'):
        async with open_history(f"{url}&options=-c%20work_mem%3Dmuch"):
            pass
