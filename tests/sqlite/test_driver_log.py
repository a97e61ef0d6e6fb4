"""aiosqlite's log shows no recorded text and no name, also at its lowest level."""

import logging
from pathlib import Path
from typing import Any

import pytest

from async_history import HistoryManager, IdConflict, open_history
from tests.support.keys import ring

pytestmark = pytest.mark.once

WORDS = ("text", "user", "actor", "reason", "context", "message")
SECRETS = {word: f"secret {word}" for word in WORDS}


async def use(history: HistoryManager) -> None:
    said: dict[str, Any] = {
        "owner": {"user_id": SECRETS["user"]},
        "actor_id": SECRETS["actor"],
        "context": {"note": SECRETS["context"]},
        "cause": {"request_id": SECRETS["reason"]},
    }
    scope = f"user_id={SECRETS['user']}"
    await history.add_history("m", None, SECRETS["text"], "ADD", id="1", **said)
    with pytest.raises(IdConflict):
        await history.add_history("m", None, f"{SECRETS['text']} 2", "ADD", id="1")
    await history.batch_add_history(
        [{"memory_id": f"m{n}", "new_memory": SECRETS["text"], "event": "ADD"} for n in range(40)]
    )
    await history.update_history("m", f"{SECRETS['text']} 3", **said)
    await history.save_messages([{"role": "user", "content": SECRETS["message"]}], scope)
    assert await history.get_last_messages(scope)
    query = history.query_history(
        text=SECRETS["text"], user_id=SECRETS["user"], cause={"request_id": SECRETS["reason"]}
    )
    assert [record async for record in query]
    assert await history.count_history(actor_id=SECRETS["actor"])
    await history.restore("m", to=1)
    await history.undo(cause={"request_id": SECRETS["reason"]})
    await history.erase(actor_id=SECRETS["actor"], reason="asked")
    await history.erase(user_id=SECRETS["user"], reason="asked")


@pytest.mark.parametrize("is_encrypted", [False, True])
@pytest.mark.parametrize("store", ["file", "memory"])
async def test_the_driver_logs_no_text_and_no_name(
    store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, *, is_encrypted: bool
) -> None:
    caplog.set_level(logging.DEBUG, "aiosqlite")
    url = str(tmp_path / "history.db") if store == "file" else "memory://"
    async with open_history(url, keys=ring("one") if is_encrypted else None) as history:
        await use(history)
    logged = [one.getMessage() for one in caplog.records if one.name == "aiosqlite"]
    assert logged
    assert [one for one in logged if "secret" in one] == []
