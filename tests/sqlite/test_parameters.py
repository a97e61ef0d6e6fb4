"""An SQLite with the fewest parameters per statement: 32,766. Debian's accepts 250,000."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from async_history import HistoryManager, Owner, open_history
from tests.subprocesses.checks import check_index, looking
from tests.support.keys import ring

pytestmark = pytest.mark.once

FEWEST = 32_766
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "encrypted": {"keys": ring("one")},
    "with a ledger": {"ledger": True},
}


def change(number: int, **more: Any) -> dict[str, Any]:
    """Return a change that needs the most rows: a new owner of all scopes, and a cause."""
    scopes = ("user_id", "agent_id", "run_id", "app_id")
    return {
        "memory_id": f"m{number}",
        "new_memory": "tea",
        "event": "ADD",
        "owner": {scope: f"{scope} {number}" for scope in scopes},
        "cause": {key: f"{key} {number}" for key in ("run_id", "trace_id", "request_id")},
        **more,
    }


async def take_fewest(history: HistoryManager) -> None:
    """Make the writer's connection refuse more parameters."""
    store: Any = history.store
    limit = sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER
    await store.run_exclusively(lambda one: one.run(lambda raw: raw.setlimit(limit, FEWEST)))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("names_ids", [False, True])
async def test_a_full_batch_of_the_largest_rows_is_recorded(
    tmp_path: Path, options: str, names_ids: bool
) -> None:
    path = tmp_path / "history.db"
    async with open_history(path, **OPTIONS[options]) as history:
        await take_fewest(history)
        await history.add_history("first", None, "x", "ADD", owner={"user_id": "ann"})
        for batch in range(2):
            numbers = range(batch * 700, batch * 700 + 700)
            changes = [change(n, **({"id": f"id {n}"} if names_ids else {})) for n in numbers]
            await history.batch_add_history(changes)
        assert await history.count_history() == 1_401
        (last,) = await history.get_history("m1399")
        given = change(1_399)
        assert (last.owner, last.cause) == (Owner(**given["owner"]), given["cause"])
        assert await history.count_history(run_id="run_id 7") == 1
        assert await history.count_history(cause={"request_id": "request_id 7"}) == 1
    with looking(path) as connection:
        check_index(connection)
