"""mem0's server, as its own sources build its Memory, with two workers that are forked from it.

HISTORY_DB_PATH=URL async-history run -- python -m tests.subprocesses.mem0_server

It does not use this library itself. Each worker adds a memory, updates it and prints its history;
the exit status is 7.
"""

import json
import os
import sys
from typing import Any

os.environ["MEM0_TELEMETRY"] = "False"  # mem0 reads it when it is imported

from fastapi import FastAPI
from fastapi.testclient import TestClient
from mem0 import Memory

CONFIGURATION = {
    "vector_store": {"provider": "qdrant", "config": {"path": os.environ["VECTORS"]}},
    "llm": {"provider": "openai", "config": {"api_key": "none"}},
    "embedder": {"provider": "openai", "config": {"api_key": "none"}},
    "history_db_path": os.environ["HISTORY_DB_PATH"],
}
MEMORY = Memory.from_config(CONFIGURATION)
app = FastAPI()


@app.post("/memories")
def add(body: dict[str, Any]) -> Any:
    return MEMORY.add(body["messages"], user_id=body["user_id"], infer=False)


@app.put("/memories/{memory_id}")
def update(memory_id: str, body: dict[str, Any]) -> Any:
    return MEMORY.update(memory_id, body["text"])


@app.get("/memories/{memory_id}/history")
def history(memory_id: str) -> Any:
    return MEMORY.history(memory_id)


def work(user_id: str) -> None:
    with TestClient(app) as client:
        messages = [{"role": "user", "content": "likes tea"}]
        added = client.post("/memories", json={"messages": messages, "user_id": user_id})
        path = f"/memories/{added.json()['results'][0]['id']}"
        client.put(path, json={"text": "likes mate"})
        changes = [[r["event"], r["new_memory"]] for r in client.get(f"{path}/history").json()]
        print(json.dumps(changes), flush=True)  # noqa: T201 - read by the test
    MEMORY.close()


def main() -> int:
    from tests.subprocesses.mem0_pipeline import Models, Store

    MEMORY.vector_store.client.close()
    MEMORY.vector_store, MEMORY._entity_store = Store(), Store()
    MEMORY.embedding_model = Models()
    workers = []
    for user_id in ("ann", "ben"):
        worker = os.fork()
        if worker == 0:
            status = 1
            try:
                work(user_id)
                status = 0
            finally:
                os._exit(status)
        workers.append(worker)
    return 7 if all(os.waitpid(worker, 0)[1] == 0 for worker in workers) else 1


if __name__ == "__main__":
    sys.exit(main())
