"""Run mem0's pipeline on plain mem0 and on ours, with the mem0 that this Python finds; compare.

PYTHONPATH=folder-of-another-mem0 python -m tests.subprocesses.mem0_pipeline

Prints mem0's version and what differs; exits 1 if anything does.
"""

import asyncio
import inspect
import itertools
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["MEM0_TELEMETRY"] = "False"
os.environ.setdefault("MEM0_DIR", tempfile.mkdtemp())

import mem0
from mem0.memory import main as mem0_main

from async_history.mem0 import AsyncMemory, Memory


class Row:
    score = 0.5

    def __init__(self, row_id: str, payload: dict[str, Any]) -> None:
        self.id = row_id
        self.payload = dict(payload)


class Store:
    """A vector store in memory with the methods that any mem0 calls."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}

    def insert(self, vectors: Any, payloads: Any = None, ids: Any = None) -> None:
        self.rows.update(zip(ids, payloads, strict=True))

    def update(self, vector_id: str, vector: Any = None, payload: Any = None) -> None:
        self.rows[vector_id] = payload

    def delete(self, vector_id: str) -> None:
        self.rows.pop(vector_id, None)

    def get(self, vector_id: str) -> Row | None:
        return Row(vector_id, self.rows[vector_id]) if vector_id in self.rows else None

    def list(self, filters: Any = None, **_: Any) -> Any:
        rows = [Row(key, payload) for key, payload in self.rows.items()]
        return [[row for row in rows if (filters or {}).items() <= row.payload.items()]]

    def search(self, filters: Any = None, **_: Any) -> Any:
        return self.list(filters)[0][:5]

    def search_batch(self, queries: Any, **_: Any) -> Any:
        return [[] for _ in queries]

    def keyword_search(self, **_: Any) -> None:
        return None

    def delete_col(self) -> None:
        self.rows.clear()

    reset = delete_col


class Models:
    """An embedder and a language model with scripted answers."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.asked: list[str] = []

    def embed(self, *_: Any, **__: Any) -> list[float]:
        return [0.0] * 8

    def embed_batch(self, texts: Any, *_: Any, **__: Any) -> list[list[float]]:
        return [self.embed() for _ in texts]

    def generate_response(self, messages: Any, **_: Any) -> str:
        self.asked.append(json.dumps(messages))
        return json.dumps(self.answers.pop(0))


class Used:
    """One memory, plain or ours, synchronous or not, and all of its results."""

    def __init__(self, memory: Any) -> None:
        memory.vector_store.client.close()
        self.memory = memory
        self.store = memory.vector_store = Store()
        self.models = memory.embedding_model = memory.llm = Models()
        if hasattr(memory, "_entity_store"):
            memory._entity_store = Store()
        self.results: list[tuple[str, Any]] = []

    async def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Call it, and keep its result or error."""
        try:
            result = await _done(getattr(self.memory, name)(*arguments, **options))
        except Exception as error:  # then the other one differs
            result = f"{type(error).__name__}: {error}"
        self.results.append((name, result))
        return result

    async def infer(self, text: str, facts: list[str], decisions: list[Any]) -> Any:
        """Add a model's answers about a text: the facts (up to 1.0), then the action for each."""
        first = {"facts": facts, "memory": [{"text": fact} for fact in facts]}
        self.models.answers = [first, {"memory": decisions}]
        return await self.call("add", text, user_id="u", metadata={"mood": ["calm"]})

    async def history_of(self, ids: list[str]) -> None:
        """Keep each memory's changes. Plain mem0 does not always return them in order."""
        for memory_id in ids:
            found = await _done(self.memory.history(memory_id))
            self.results.append(
                ("history", sorted(found, key=lambda r: (r["event"], str(r["new_memory"]))))
            )


async def _done(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


async def use(make: Callable[[], Any]) -> tuple[list[Any], list[str]]:
    """Make every call that uses the history; return the results, and where a chain breaks."""
    one = Used(await _done(make()))
    said = [
        {"role": "user", "content": "I am Ann", "name": "ann"},
        {"role": "assistant", "content": "Hello"},
        {"role": "system", "content": "ignored"},
    ]
    await one.call("add", "likes tea", user_id="u", infer=False, metadata={"mood": "calm"})
    await one.call("add", said, agent_id="a", infer=False)
    await one.infer(
        "my cat is called Miu",
        ["has a cat", "is Ann"],
        [
            {"id": "9", "text": "has a cat", "event": "ADD"},
            {"id": "0", "text": "likes green tea", "event": "UPDATE", "old_memory": "likes tea"},
        ],
    )
    await one.infer("what did I say?", [], [])
    one.results.append(("remembers", "Miu" in one.models.asked[-1]))
    ids = list(one.store.rows)
    await one.call("update", ids[0], "likes mate")
    await one.call("update", ids[0], "likes water")
    await one.call("get", ids[0])
    await one.call("delete", ids[0])
    await one.infer("it is gone", ["no cat"], [{"id": "0", "text": "", "event": "DELETE"}])
    for wrong in (("delete", ids[0]), ("update", "nothing", "x"), ("add", 7), ("delete_all",)):
        await one.call(*wrong)
    await one.call("delete_all", agent_id="a")
    await one.call("history", "nothing")
    await one.history_of(ids)
    breaks = []
    for memory_id in ids if isinstance(one.memory, AsyncMemory | Memory) else []:
        history = await _done(one.memory.history(memory_id))
        breaks += [
            f"{before} {after}"
            for before, after in itertools.pairwise(history)
            if before["new_memory"] != after["old_memory"]
        ]
    one.results.append(("left", sorted(one.store.rows.values(), key=str)))
    mem0_main.VectorStoreFactory.create = staticmethod(lambda *_: one.store)
    mem0_main.VectorStoreFactory.reset = staticmethod(lambda store: store)
    await one.call("reset")
    await one.history_of(ids)
    await one.call("add", "again", user_id="u", infer=False)
    await one.history_of(list(one.store.rows))
    if hasattr(one.memory, "close"):
        one.memory.close()
    return without_chance(one.results, ids), breaks


_CHANCE = ("id", "memory_id", "created_at", "updated_at")


def without_chance(value: Any, ids: list[str]) -> Any:
    """Return the results without ids, times and what only ours records of a batch."""
    if isinstance(value, dict):
        kept = {key: without_chance(v, ids) for key, v in value.items() if key not in _CHANCE}
        if kept.get("event") == "ADD" and "is_deleted" in kept:
            kept.pop("actor_id"), kept.pop("role")
        return kept
    if isinstance(value, str):
        for memory_id in ids:
            value = value.replace(memory_id, "ID")
        return value
    return [without_chance(v, ids) for v in value] if isinstance(value, list | tuple) else value


def makers(folder: Path) -> dict[str, Callable[[], Any]]:
    """Return functions that make plain mem0's memories and ours, by name."""

    def config(name: str) -> dict[str, Any]:
        return {
            "vector_store": {"provider": "qdrant", "config": {"path": str(folder / name)}},
            "llm": {"provider": "openai", "config": {"api_key": "none"}},
            "embedder": {"provider": "openai", "config": {"api_key": "none"}},
            "history_db_path": str(folder / f"{name}.db"),
        }

    own = str(folder / "ours.db")
    return {
        "plain AsyncMemory": lambda: mem0.AsyncMemory.from_config(config("a")),
        "our AsyncMemory": lambda: AsyncMemory.from_config(config("b"), history=own),
        "plain Memory": lambda: mem0.Memory.from_config(config("c")),
        "our Memory": lambda: Memory.from_config(config("d")),
    }


def say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


async def main() -> int:
    """Compare; return the number of differences."""
    logging.disable(logging.CRITICAL)
    say(f"mem0ai {version('mem0ai')} in {Path(mem0.__file__).parent.parent}")
    mem0_main.capture_event = lambda *_, **__: None
    factory = mem0_main.VectorStoreFactory
    create, reset = factory.create, getattr(factory, "reset", None)
    results = {}
    differences = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, make in makers(Path(folder)).items():
            factory.create, factory.reset = create, reset
            results[name], breaks = await use(make)
            differences += len(breaks)
            say(f"{name} returned {len(results[name])} results", *breaks)
    for kind in ("AsyncMemory", "Memory"):
        pairs = zip(results[f"plain {kind}"], results[f"our {kind}"], strict=True)
        for plain, ours in pairs:
            if plain != ours:
                differences += 1
                say(f"{kind}.{plain[0]}\n  plain {plain[1]}\n  ours  {ours[1]}")
    return differences


if __name__ == "__main__":
    sys.exit(1 if asyncio.run(main()) else 0)
