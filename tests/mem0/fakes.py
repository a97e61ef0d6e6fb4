"""Vector stores, embedders and model answers for mem0, all in memory."""

import json
import threading
from collections.abc import Callable
from typing import Any

from tests.subprocesses.openai_server import DIMENSIONS
from tests.support.patience import LONG_S


class InstantStore:
    """A vector store in memory. If `gate` is set, each change is made and then waits for it."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.gate: threading.Event | None = None
        self.changed = threading.Event()

    def _wait(self) -> None:
        self.changed.set()
        if self.gate is not None:
            self.gate.wait(LONG_S)

    def insert(self, vectors: list[Any], payloads: list[Any], ids: list[str]) -> None:
        self.rows.update(zip(ids, payloads, strict=True))
        self._wait()

    def update(self, vector_id: str, vector: Any = None, payload: Any = None) -> None:
        self.rows[vector_id] = payload
        self._wait()

    def delete(self, vector_id: str) -> None:
        self.rows.pop(vector_id, None)
        self._wait()

    def get(self, vector_id: str) -> Any:
        return Row(vector_id, self.rows[vector_id]) if vector_id in self.rows else None

    def list(self, filters: Any = None, **_: Any) -> Any:
        rows = [Row(key, payload) for key, payload in list(self.rows.items())]
        return [[row for row in rows if (filters or {}).items() <= row.payload.items()]]

    def search(self, filters: Any = None, **_: Any) -> Any:
        return self.list(filters)[0][:5]

    def delete_col(self) -> None:
        self.rows.clear()


class Row:
    score = 0.5

    def __init__(self, row_id: str, payload: dict[str, Any]) -> None:
        self.id = row_id
        self.payload = dict(payload)


class CountingStore(InstantStore):
    """Notes which of its methods are called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def insert(self, *arguments: Any, **options: Any) -> None:
        self.calls.append("insert")
        super().insert(*arguments, **options)

    def update(self, *arguments: Any, **options: Any) -> None:
        self.calls.append("update")
        super().update(*arguments, **options)

    def delete(self, *arguments: Any, **options: Any) -> None:
        self.calls.append("delete")
        super().delete(*arguments, **options)

    def get(self, *arguments: Any, **options: Any) -> Any:
        self.calls.append("get")
        return super().get(*arguments, **options)

    def list(self, *arguments: Any, **options: Any) -> Any:
        self.calls.append("list")
        return super().list(*arguments, **options)


class FailingStore(InstantStore):
    """A vector store that fails to change, or to read, some memories."""

    def __init__(self) -> None:
        super().__init__()
        self.fails_to_change: set[str] = set()
        self.fails_to_read: set[str] = set()
        self.error: BaseException = OSError("no vectors today")

    def _check(self, memory_id: str) -> None:
        if memory_id in self.fails_to_change:
            raise self.error

    def insert(self, vectors: list[Any], payloads: list[Any], ids: list[str]) -> None:
        self._check(ids[0])
        super().insert(vectors, payloads, ids)

    def update(self, vector_id: str, vector: Any = None, payload: Any = None) -> None:
        self._check(vector_id)
        super().update(vector_id, vector, payload)

    def delete(self, vector_id: str) -> None:
        self._check(vector_id)
        super().delete(vector_id)

    def get(self, vector_id: str) -> Any:
        if vector_id in self.fails_to_read:
            raise self.error
        return super().get(vector_id)


class InstantEmbedder:
    def embed(self, *_: Any, **__: Any) -> list[float]:
        return [0.0] * DIMENSIONS

    def embed_batch(self, texts: list[str], *_: Any, **__: Any) -> list[list[float]]:
        return [self.embed() for _ in texts]


class GatedEmbedder(InstantEmbedder):
    """An embedder that does not answer until its gate is open."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.asked = threading.Event()

    def embed(self, *_: Any, **__: Any) -> list[float]:
        self.asked.set()
        self.gate.wait(LONG_S)
        return super().embed()


def answer(*values: object) -> Callable[[Any], str]:
    """Return a script for the model that gives these answers in turn."""
    texts = iter([json.dumps(value) for value in values])
    return lambda _: next(texts)
