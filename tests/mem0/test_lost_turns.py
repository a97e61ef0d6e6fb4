"""A turn that another process may have taken: that memory is not changed any more."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from async_history import StorageLocked
from async_history.mem0 import AsyncMemory, Memory
from async_history.mem0._turns.process_locks import FileLocks
from tests.mem0.fakes import InstantEmbedder, InstantStore
from tests.mem0.memories import BEFORE_ALL, Configured
from tests.support.patience import LONG_S

pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore"),  # mem0's own, of pydantic and swig
]

Call = Callable[..., Awaitable[Any]]


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """If this set has an entry, the turns of all memories are lost."""
    lost: set[str] = set()
    monkeypatch.setattr(FileLocks, "is_lost", lambda _, number: bool(lost))
    return lost


class LosingStore(InstantStore):
    """A vector store that loses the turn when it reads, or has just changed, a given memory.

    If `before` is set, this first waits for it: another memory must be deleted.
    """

    def __init__(self, lost: set[str]) -> None:
        super().__init__()
        self.at: tuple[str, str] | None = None
        self.before: threading.Event | None = None
        self._lost = lost

    def _look(self, name: str, memory_id: str) -> None:
        if self.at == (name, memory_id):
            if self.before is not None:
                self.before.wait(LONG_S)
            self._lost.add(memory_id)
        elif name == "delete" and self.before is not None:
            self.before.set()

    def get(self, vector_id: str) -> Any:
        found = super().get(vector_id)
        self._look("get", vector_id)
        return found

    def update(self, vector_id: str, vector: Any = None, payload: Any = None) -> None:
        super().update(vector_id, vector, payload)
        self._look("update", vector_id)

    def delete(self, vector_id: str) -> None:
        super().delete(vector_id)
        self._look("delete", vector_id)


@pytest.fixture(params=["async", "sync"])
async def memory(
    request: pytest.FixtureRequest, configured: Configured
) -> AsyncIterator[AsyncMemory | Memory]:
    memory: Any = (AsyncMemory if request.param == "async" else Memory).from_config(configured())
    yield memory
    if isinstance(memory, AsyncMemory):
        await memory.aclose()
    else:
        await asyncio.to_thread(memory.close)


@pytest.fixture
def store(memory: Any, lost: set[str]) -> LosingStore:
    memory.vector_store = store = LosingStore(lost)
    memory.embedding_model = InstantEmbedder()
    return store


@pytest.fixture
def call(memory: Any) -> Call:
    async def call(name: str, *arguments: Any, **options: Any) -> Any:
        method = getattr(memory, name)
        if isinstance(memory, AsyncMemory):
            return await method(*arguments, **options)
        return await asyncio.to_thread(method, *arguments, **options)

    return call


async def texts(call: Call, memory_id: str) -> list[str | None]:
    return [record["new_memory"] for record in await call("history", memory_id)]


CHANGES: dict[str, Callable[[Call, str], Awaitable[Any]]] = {
    "update": lambda call, memory_id: call("update", memory_id, "never"),
    "_update_memory": lambda call, memory_id: call("_update_memory", memory_id, "never", {}),
    "delete": lambda call, memory_id: call("delete", memory_id),
    "_delete_memory": lambda call, memory_id: call("_delete_memory", memory_id),
    "delete_all": lambda call, _: call("delete_all", user_id="u"),
    "restore": lambda call, memory_id: call("restore", memory_id, to=1),
    "rollback": lambda call, memory_id: call("rollback", to=BEFORE_ALL, memory_ids=[memory_id]),
}


async def two_memories(call: Call) -> list[str]:
    """Two memories whose text was "tea" first, and is "mate" now."""
    made = [await call("add", "tea", user_id="u", infer=False) for _ in range(2)]
    memory_ids = [one["results"][0]["id"] for one in made]
    for memory_id in memory_ids:
        await call("update", memory_id, "mate")
    return memory_ids


@pytest.mark.parametrize("change", CHANGES)
async def test_a_turn_lost_before_the_change_changes_nothing_of_that_memory(
    call: Call, store: LosingStore, lost: set[str], change: str
) -> None:
    memory_id, _ = await two_memories(call)
    store.at = "get", memory_id
    with pytest.raises(StorageLocked, match="lock of this memory's turn was lost"):
        await CHANGES[change](call, memory_id)
    assert store.rows[memory_id]["data"] == "mate"
    assert await texts(call, memory_id) == ["tea", "mate"]
    lost.clear()
    store.at = None
    await call("update", memory_id, "water")
    assert await texts(call, memory_id) == ["tea", "mate", "water"]


async def test_nor_if_the_operation_has_changed_another_memory(
    call: Call, store: LosingStore
) -> None:
    other, memory_id = await two_memories(call)
    store.at, store.before = ("get", memory_id), threading.Event()
    with pytest.raises(StorageLocked, match="lock of this memory's turn was lost"):
        await call("delete_all", user_id="u")
    assert list(store.rows) == [memory_id]
    assert await texts(call, other) == ["tea", "mate", None]
    assert await texts(call, memory_id) == ["tea", "mate"]


@pytest.mark.parametrize("change", ["update", "delete", "restore"])
async def test_a_turn_lost_after_the_change_still_records_it(
    call: Call, store: LosingStore, change: str
) -> None:
    memory_id, _ = await two_memories(call)
    store.at = "delete" if change == "delete" else "update", memory_id
    await CHANGES[change](call, memory_id)
    expected = {"update": "never", "delete": None, "restore": "tea"}[change]
    assert await texts(call, memory_id) == ["tea", "mate", expected]


async def test_the_vector_store_is_the_assigned_object(memory: Any) -> None:
    mine = InstantStore()
    memory.vector_store = mine
    assert memory.vector_store is mine
    assert vars(memory)["vector_store"] is mine
    del memory.vector_store
    assert not hasattr(memory, "vector_store")
    memory.vector_store = mine
