"""Processes that update the same memories at the same time, with one history and vector store.

Each process has one task for each memory.
"""

import asyncio
import itertools
import json
import multiprocessing
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

os.environ["MEM0_TELEMETRY"] = "False"

from mem0 import AsyncMemory as PlainAsyncMemory

from async_history import open_history
from async_history.mem0 import AsyncMemory

PLAIN: Final = "mem0's own"
_CONTEXT: Final = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])
"""Importing mem0 takes seconds, so it is imported once, before the processes are forked."""
_DIMENSIONS: Final = 8


class FolderStore:
    """A vector store that processes share: a file for each memory, replaced as a whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def ids(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.name[0] != ".")

    def insert(self, vectors: list[Any], payloads: list[Any], ids: list[str]) -> None:
        for memory_id, payload in zip(ids, payloads, strict=True):
            self.update(memory_id, payload=payload)

    def update(self, vector_id: str, vector: Any = None, payload: Any = None) -> None:
        new = self.folder / f".{vector_id}.{os.getpid()}"
        new.write_text(json.dumps(payload))
        new.replace(self.folder / vector_id)

    def get(self, vector_id: str) -> Any:
        try:
            return _Row(vector_id, json.loads((self.folder / vector_id).read_text()))
        except FileNotFoundError:
            return None

    def delete(self, vector_id: str) -> None:
        (self.folder / vector_id).unlink()

    def search(self, **_: Any) -> list[Any]:
        return []

    def list(self, **_: Any) -> list[Any]:
        return [[]]


@dataclass(frozen=True, slots=True)
class _Row:
    id: str
    payload: dict[str, Any]


class _Embedder:
    def embed(self, *_: Any, **__: Any) -> list[float]:
        return [0.0] * _DIMENSIONS

    def embed_batch(self, texts: Any, *_: Any, **__: Any) -> list[list[float]]:
        return [self.embed() for _ in texts]


def _memory_of(peer: str, history: str, folder: Path, name: str, **options: Any) -> Any:
    config: dict[str, Any] = {
        "vector_store": {"provider": "qdrant", "config": {"path": str(folder / f"qdrant{name}")}},
        "llm": {"provider": "openai", "config": {"api_key": "none"}},
        "embedder": {"provider": "openai", "config": {"api_key": "none"}},
        "history_db_path": history,
    }
    if peer == PLAIN:
        memory = PlainAsyncMemory.from_config(config)
    else:
        memory = AsyncMemory.from_config(config, **options)
    memory.vector_store.client.close()
    memory.vector_store = memory._entity_store = FolderStore(folder / "vectors")
    memory.embedding_model = _Embedder()
    return memory


@dataclass(frozen=True, slots=True)
class Updated:
    """The results of all processes together.

    Attributes:
        breaks: records whose `old_memory` is not the `new_memory` of the previous one.
        wrong: memories whose last record differs from the vector store.
    """

    updates_per_s: float
    records: int
    breaks: int
    wrong: int


def update_together(
    peer: str,
    history: str,
    folder: Path,
    *,
    processes: int,
    memories: int,
    rounds: int,
    takes_back: bool = False,
    **options: Any,
) -> Updated:
    """Let processes update the same memories; return the results.

    Args:
        takes_back: whether each process also deletes them and rolls them back to the beginning.
        options: other options of AsyncMemory.
    """

    async def added() -> None:
        async with _memory_of(peer, history, folder, "") as memory:
            for n in range(memories):
                await memory.add(f"memory {n}", user_id="u", infer=False)

    asyncio.run(added())
    beginning = datetime.now(UTC) if takes_back else None
    memory_ids = FolderStore(folder / "vectors").ids()
    pipes = []
    begun = []
    for number in range(processes):
        pipe, its_pipe = _CONTEXT.Pipe()
        process = _CONTEXT.Process(
            target=_process,
            args=(its_pipe, peer, history, folder, str(number), rounds, beginning, options),
            daemon=True,
        )
        process.start()
        its_pipe.close()
        pipes.append(pipe)
        begun.append(process)
    try:
        for pipe in pipes:
            assert pipe.recv() == "ready"
        for pipe in pipes:
            pipe.send("go")
        seconds = max(pipe.recv() for pipe in pipes)
    finally:
        for pipe, process in zip(pipes, begun, strict=True):
            pipe.close()
            process.kill()
            process.join()
    updates_per_s = processes * memories * rounds / seconds
    return asyncio.run(_looked(history, folder, memory_ids, updates_per_s))


async def _looked(
    history: str, folder: Path, memory_ids: list[str], updates_per_s: float
) -> Updated:
    store = FolderStore(folder / "vectors")
    records = breaks = wrong = 0
    async with open_history(history) as manager:
        for memory_id in memory_ids:
            found = await manager.get_history(memory_id)
            row = store.get(memory_id)
            records += len(found)
            breaks += sum(a.new_memory != b.old_memory for a, b in itertools.pairwise(found))
            wrong += found[-1].new_memory != (row and row.payload["data"])
    return Updated(updates_per_s, records, breaks, wrong)


def _process(pipe: Connection, *arguments: Any) -> None:
    asyncio.run(_update(pipe, *arguments))


async def _update(
    pipe: Connection,
    peer: str,
    history: str,
    folder: Path,
    name: str,
    rounds: int,
    beginning: datetime | None,
    options: dict[str, Any],
) -> None:
    async with _memory_of(peer, history, folder, name, **options) as memory:
        await memory.history("nothing")  # opens it

        async def again_and_again(memory_id: str) -> None:
            for n in range(rounds):
                if beginning is None:
                    await memory.update(memory_id, f"{name}.{n}")
                elif n % 3 == 2:
                    await memory.rollback(to=beginning, memory_ids=[memory_id])
                else:
                    with suppress(ValueError):  # another process has just deleted it
                        await memory.update(memory_id, f"{name}.{n}")
                        await (memory.delete(memory_id) if n % 3 else asyncio.sleep(0))

        pipe.send("ready")
        await asyncio.to_thread(pipe.recv)
        begun = time.perf_counter()
        await asyncio.gather(*map(again_and_again, memory.vector_store.ids()))
        pipe.send(time.perf_counter() - begun)
