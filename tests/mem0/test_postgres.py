"""Rolling back, checking and forgetting mem0's memories, with the history on PostgreSQL."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from async_history import Erased, open_history, recording
from async_history.mem0 import AsyncMemory, Memory
from tests.mem0.fakes import GatedEmbedder
from tests.mem0.memories import Configured, Kind, actions
from tests.support.patience import LONG_S

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.mem0,
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore"),  # mem0's own, of pydantic and swig
]


@pytest.mark.parametrize("make", [AsyncMemory, Memory])
async def test_memories_are_rolled_back_checked_and_forgotten(
    make: Any, new_schema: Callable[[], str], configured: Configured
) -> None:
    url = new_schema()
    kind = Kind(make, configured(history_db_path=url), url)
    kind.be_instant()
    tea, mate = await kind.add("tea"), await kind.add("mate")
    bobs = await kind.add("bob's", "bob")
    then = datetime.now(UTC)
    with recording(cause={"run_id": "r"}):
        await kind.update(tea, "tea by the run", n=1)
        added = await kind.add("added by the run")
    await kind.call("delete", mate)

    report = await kind.call("undo", run_id="r")
    assert actions(report) == {tea: "restore", added: "delete"}
    report = await kind.call("rollback", to=then, user_id="ann")
    assert {k: v for k, v in actions(report).items() if v != "nothing"} == {mate: "restore"}
    await kind.call("restore", tea, to=2)
    await kind.call("rollback", to=then, memory_ids=[tea, bobs])
    assert {key: row["data"] for key, row in kind.store.rows.items()} == {
        tea: "tea",
        mate: "mate",
        bobs: "bob's",
    }
    await kind.check()

    kind.store.rows[tea]["data"] = "changed by hand"
    del kind.store.rows[mate]
    differing = (await kind.call("check")).differences
    assert {one.memory_id for one in differing} == {tea, mate}
    await kind.call("check", user_id="ann", repair="vector", dry_run=False)
    assert (await kind.call("check")).problems == ()
    assert kind.store.rows[tea]["data"] == "tea"
    await kind.check()

    kind.memory.embedding_model = embedder = GatedEmbedder()
    late = asyncio.create_task(kind.add("late"))
    await asyncio.to_thread(embedder.asked.wait, LONG_S)
    report = await kind.call("forget", user_id="ann", reason="asked", vacuum=False)
    assert (report.later, list(kind.store.rows)) == (0, [bobs])
    embedder.gate.set()
    with pytest.raises(Erased):
        await late
    assert list(kind.store.rows) == [bobs]
    async with open_history(url) as history:
        assert await history.count_history(user_id="ann") == 0
        assert {one.new_memory async for one in history.query_history()} == {None, "bob's"}
    await kind.close()
