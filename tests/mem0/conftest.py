"""Fixtures for the tests of mem0."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from blockbuster import BlockBuster

from async_history import HistoryManager
from async_history._core.backend import Store
from async_history.mem0 import AsyncMemory, Memory
from async_history.sqlite import SQLiteHistoryManager
from tests.mem0.memories import Configured, Kind, MakeMemory, Used, make_instant
from tests.otel.conftest import instrumented as instrumented
from tests.subprocesses.openai_server import DIMENSIONS, Model, openai_server


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with one certificate."""
    file = tmp_path_factory.mktemp("certificates") / "one.pem"
    trustme.CA().cert_pem.write_to_path(str(file))
    return file


@pytest.fixture
def one_certificate(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let HTTPS clients load one certificate: reading the system's takes four fifths of the time
    of making a Memory."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))


@pytest.fixture(scope="module", autouse=True)
def mem0_blocks(blocking_calls: BlockBuster) -> None:
    """mem0's constructor and reset may open files on the loop."""
    for blocking in blocking_calls.functions.values():
        blocking.can_block_in("mem0/memory/main.py", {"__init__", "from_config", "reset"})


@pytest.fixture(scope="module")
def server() -> Iterator[Model]:
    with openai_server() as model:
        yield model


@pytest.fixture
def model(server: Model) -> Iterator[Model]:
    yield server
    server.script = lambda messages: '{"memory": [], "facts": []}'
    server.chats.clear()


@pytest.fixture
def configured(model: Model, tmp_path: Path, one_certificate: None) -> Configured:
    """Makes a configuration of mem0: everything in `tmp_path`, the model on loopback."""

    def configuration(**more: Any) -> dict[str, Any]:
        openai = {"api_key": "none", "openai_base_url": model.url}
        return {
            "llm": {"provider": "openai", "config": {"model": "gpt-4o-mini", **openai}},
            "embedder": {
                "provider": "openai",
                "config": {"model": "x", "embedding_dims": DIMENSIONS, **openai},
            },
            "vector_store": {
                "provider": "qdrant",
                "config": {
                    "path": str(tmp_path / "vectors"),
                    "collection_name": "memories",
                    "embedding_model_dims": DIMENSIONS,
                },
            },
            "history_db_path": str(tmp_path / "history.db"),
            **more,
        }

    return configuration


@pytest.fixture
def make_memory(configured: Configured) -> MakeMemory:
    """Makes an AsyncMemory whose store and embeddings take no time."""

    def make(**options: Any) -> AsyncMemory:
        memory = AsyncMemory.from_config(configured(), **options)
        make_instant(memory)
        return memory

    return make


@pytest.fixture
async def memory(make_memory: MakeMemory) -> AsyncIterator[AsyncMemory]:
    async with make_memory() as memory:
        yield memory


@pytest.fixture(params=[AsyncMemory, Memory])
async def used(request: pytest.FixtureRequest, configured: Configured, tmp_path: Path) -> Any:
    memory = request.param.from_config(configured())
    used = Used(memory, tmp_path / "history.db")
    yield used
    await used.close()


@pytest.fixture(params=[AsyncMemory, Memory])
async def kind(
    request: pytest.FixtureRequest, configured: Configured, tmp_path: Path
) -> AsyncIterator[Kind]:
    kind = Kind(request.param, configured(), tmp_path / "history.db")
    yield kind
    await kind.close()


@pytest.fixture
def instant(kind: Kind) -> Kind:
    """A memory of either class whose store and embeddings take no time."""
    kind.be_instant()
    return kind


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[HistoryManager]:
    """Collects the managers of opened files."""
    managers: list[HistoryManager] = []
    open_ = SQLiteHistoryManager._opening

    async def noted(self: SQLiteHistoryManager) -> Store:
        managers.append(self)
        return await open_(self)

    monkeypatch.setattr(SQLiteHistoryManager, "_opening", noted)
    return managers
