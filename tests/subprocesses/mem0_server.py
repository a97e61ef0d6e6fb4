"""mem0's server, which builds its Memory as mem0's sources do, and extras of other servers.

HISTORY_DB_PATH=URL async-history run -- gunicorn -k asgi tests.subprocesses.mem0_server:app

It does not use this library itself. The history is read when the module is imported: before the
workers are forked, if gunicorn has `--preload`.
"""

import os
from typing import Any

os.environ["MEM0_TELEMETRY"] = "False"  # mem0 reads it when it is imported

from fastapi import FastAPI
from mem0 import AsyncMemory, Memory
from mem0.configs.base import MemoryConfig

from tests.mem0.fakes import InstantEmbedder, InstantStore


def configuration(name: str) -> dict[str, Any]:
    """Return mem0's configuration, with a folder for vectors that no other process opens."""
    vectors = os.path.join(os.environ["MEM0_DIR"], f"{name}-{os.getpid()}")
    return {
        "vector_store": {"provider": "qdrant", "config": {"path": vectors}},
        "llm": {"provider": "openai", "config": {"api_key": "none"}},
        "embedder": {"provider": "openai", "config": {"api_key": "none"}},
        "history_db_path": os.environ["HISTORY_DB_PATH"],
    }


MEMORY = Memory.from_config(configuration("sync"))
ASYNC_MEMORY = AsyncMemory(MemoryConfig(**configuration("async")))
VECTORS, ENTITIES = InstantStore(), InstantStore()
for memory in (MEMORY, ASYNC_MEMORY):
    memory.vector_store.client.close()
    memory.vector_store, memory._entity_store = VECTORS, ENTITIES
    memory.embedding_model = InstantEmbedder()
MEMORY.history("nothing")

app = FastAPI()


@app.get("/worker")
def worker() -> int:
    return os.getpid()


@app.post("/memories")
def add(body: dict[str, Any]) -> Any:
    return MEMORY.add(body["messages"], user_id=body["user_id"], infer=False)


@app.put("/memories/{memory_id}")
async def update(memory_id: str, body: dict[str, Any]) -> Any:
    return await ASYNC_MEMORY.update(memory_id, body["text"])


@app.get("/memories/{memory_id}/history")
def history(memory_id: str) -> Any:
    return MEMORY.history(memory_id)


@app.post("/children")
def add_in_a_child(body: dict[str, Any]) -> Any:
    """Add in a process that this worker forks, and return its exit status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            add(body)
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]
