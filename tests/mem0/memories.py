"""Making, calling and holding mem0's memories."""

import asyncio
import functools
import inspect
import itertools
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from async_history import HistoryRecord, RollbackReport, open_history
from async_history.mem0 import AsyncMemory
from tests.mem0.fakes import (
    CountingStore,
    FailingStore,
    GatedEmbedder,
    InstantEmbedder,
    InstantStore,
    answer,
)
from tests.subprocesses.openai_server import Model
from tests.support.patience import LONG_S

IS_V1 = version("mem0ai").startswith("1.")
SCOPES = ("user_id", "agent_id", "run_id")
WHOSE = {"user_id": "ann", "agent_id": "shop", "run_id": "r1"}
BEFORE_ALL = datetime(2020, 1, 1, tzinfo=UTC)

Configured = Callable[..., dict[str, Any]]
MakeMemory = Callable[..., AsyncMemory]


def make_instant(memory: Any) -> InstantStore:
    """Give a memory a vector store and an embedder that take no time; return the store."""
    memory.vector_store = store = InstantStore()
    memory.embedding_model = InstantEmbedder()
    if not IS_V1:
        memory._entity_store = InstantStore()
    return store


async def add(memory: Any, text: str, **options: Any) -> str:
    """Add a text without inference; return its memory's id."""
    result = await memory.add(text, user_id="u", infer=False, **options)
    memory_id: str = result["results"][0]["id"]
    return memory_id


CHANGES: dict[str, Callable[[Any, str], Awaitable[Any]]] = {
    "add": lambda memory, _: add(memory, "never"),
    "update": lambda memory, memory_id: memory.update(memory_id, "never"),
    "delete": lambda memory, memory_id: memory.delete(memory_id),
    "delete_all": lambda memory, _: memory.delete_all(user_id="u"),
    "restore": lambda memory, memory_id: memory.restore(memory_id, to=1),
    "rollback": lambda memory, memory_id: memory.rollback(to=BEFORE_ALL, memory_ids=[memory_id]),
    "reset": lambda memory, _: memory.reset(),
}


async def held_update(memory: Any) -> tuple[str, "asyncio.Task[Any]"]:
    """Add a memory and begin an update. It has changed the vector store and is held there."""
    memory_id = await add(memory, "tea")
    store = memory.vector_store
    store.gate = threading.Event()
    store.changed.clear()
    update = asyncio.create_task(memory.update(memory_id, "mate"))
    await asyncio.to_thread(store.changed.wait, LONG_S)
    return memory_id, update


async def held_before_its_change(
    memory: AsyncMemory,
) -> tuple[GatedEmbedder, "asyncio.Task[Any]"]:
    embedder = GatedEmbedder()
    memory.embedding_model = embedder
    task = asyncio.create_task(add(memory, "never"))
    await asyncio.to_thread(embedder.asked.wait, LONG_S)
    return embedder, task


def release_all(memory: Any) -> None:
    """Release what is held in the vector store."""
    memory.vector_store.gate.set()
    memory.vector_store.gate = None


def assert_chain(history: list[dict[str, Any]]) -> None:
    """Check that a memory's history begins with its ADD and each record continues the last."""
    assert history[0]["event"] == "ADD"
    assert history[0]["old_memory"] is None
    for before, after in itertools.pairwise(history):
        assert after["old_memory"] == before["new_memory"]
    assert all(record["event"] != "DELETE" for record in history[:-1])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONG_S):
        while not condition():  # noqa: ASYNC110 - threads and mem0 set it
            await asyncio.sleep(0.005)


def infers(model: Model, *texts: str) -> None:
    if IS_V1:
        added = [{"id": "9", "text": text, "event": "ADD"} for text in texts]
        model.script = answer({"facts": list(texts)}, {"memory": added})
    else:
        model.script = answer({"memory": [{"text": text} for text in texts]})


async def call(memory: Any, name: str, *arguments: Any, **options: Any) -> Any:
    """Call a method of a memory of either class from a task."""
    function = getattr(memory, name)
    if inspect.iscoroutinefunction(function):
        return await function(*arguments, **options)
    return await asyncio.to_thread(function, *arguments, **options)


async def close(memory: Any) -> None:
    """Close a memory of either class from a task."""
    await call(memory, "aclose" if isinstance(memory, AsyncMemory) else "close")


class Used:
    """A memory of either kind, called from a task."""

    def __init__(self, memory: Any, path: Path, *, is_instant: bool = True) -> None:
        self.memory = memory
        self.path = path
        self.store = CountingStore()
        if is_instant:
            make_instant(memory)
            memory.vector_store = self.store

    async def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        return await call(self.memory, name, *arguments, **options)

    async def add(self, text: object = "tea", **options: Any) -> str:
        """Add a text without inference; return its memory's id."""
        result = await self.call("add", text, **{**WHOSE, "infer": False, **options})
        memory_id: str = result["results"][0]["id"]
        return memory_id

    async def update(self, memory_id: str, text: str, **options: Any) -> None:
        await self.call("update", memory_id, text, **options)

    async def records(self, memory_id: str | None = None) -> list[HistoryRecord]:
        async with open_history(self.path) as history:
            return [each async for each in history.query_history(memory_id=memory_id)]

    async def close(self) -> None:
        await close(self.memory)


class Kind:
    """A memory of either class, called from a task."""

    def __init__(self, make: Any, config: dict[str, Any], path: Path | str) -> None:
        self._make, self._config, self.path = make, config, path
        self.memory = make.from_config(config)
        self.store: Any = None

    def be_instant(self) -> None:
        """Keep a memory's vectors in memory."""
        self.memory.vector_store = self.store = FailingStore()
        self.memory.embedding_model = InstantEmbedder()
        if not IS_V1:
            self.memory._entity_store = InstantStore()

    async def reopen(self) -> None:
        """Continue with another memory on the same files, as another process would."""
        await self.close()
        close = getattr(getattr(self.memory.vector_store, "client", None), "close", None)
        if close is not None:
            await asyncio.to_thread(close)
        self.memory = await asyncio.to_thread(self._make.from_config, self._config)

    async def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        return await call(self.memory, name, *arguments, **options)

    async def add(self, text: str, user: str = "ann", **metadata: Any) -> str:
        result = await self.call("add", text, user_id=user, infer=False, metadata=metadata)
        memory_id: str = result["results"][0]["id"]
        return memory_id

    async def update(self, memory_id: str, text: str, **metadata: Any) -> None:
        await self.call("update", memory_id, text, metadata=metadata)

    async def listed(self, user: str = "ann") -> dict[str, tuple[str, Any]]:
        """Return the texts and metadata that a query by owner finds."""
        whose = {"user_id": user} if IS_V1 else {"filters": {"user_id": user}}
        rows = (await self.call("get_all", **whose))["results"]
        return {row["id"]: (row["memory"], row.get("metadata")) for row in rows}

    async def found(self, text: str, user: str = "ann") -> str | None:
        """Return the memory that a search finds first."""
        whose = {"user_id": user} if IS_V1 else {"filters": {"user_id": user}}
        rows = (await self.call("search", text, **whose))["results"]
        return rows[0]["memory"] if rows else None

    async def records(self, memory_id: str) -> list[HistoryRecord]:
        async with open_history(self.path, migrate=False) as history:
            return await history.get_history(memory_id)

    async def check(self) -> None:
        """Check that each memory's records continue each other, up to what the vector store has."""
        async with open_history(self.path, migrate=False) as history:
            known = {record.memory_id async for record in history.query_history()}
            for memory_id in known | set(self.store.rows):
                records = await history.get_history(memory_id)
                texts = [None, *(record.new_memory for record in records)]
                assert [record.old_memory for record in records] == texts[:-1]
                assert texts[-1] == self.store.rows.get(memory_id, {}).get("data")

    async def close(self) -> None:
        await close(self.memory)


def actions(report: RollbackReport) -> dict[str, str]:
    return {step.memory_id: str(step.action) for step in report.steps}


class Awaited:
    """Return a Memory whose calls are awaited, each in a thread; or an AsyncMemory unchanged."""

    def __init__(self, memory: Any) -> None:
        self._memory = memory

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        if isinstance(self._memory, AsyncMemory):
            method = getattr(self._memory, {"close": "aclose"}.get(name, name))
            return cast(Callable[..., Awaitable[Any]], method)
        return functools.partial(asyncio.to_thread, getattr(self._memory, name))


def shell(path: Path, statement: str) -> list[Any]:
    """Run a statement on a file's own connection."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(statement).fetchall()


def recorded(url: str) -> list[HistoryRecord]:
    """Return all records of a history, oldest first, without a running loop."""

    async def read() -> list[HistoryRecord]:
        async with open_history(url) as history:
            return [record async for record in history.query_history()]

    return asyncio.run(read())
