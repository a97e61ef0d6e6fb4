"""FastAPI: the history as a dependency, ids of requests, health."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import BackgroundTasks, FastAPI, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient

from async_history import HistoryClosed, HistoryManager, InvalidInput, open_history
from async_history.fastapi import (
    History,
    RequestIds,
    health_router,
    history_lifespan,
    history_of,
)

pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:starlette"),  # its test client's own
]


def new_app(path: Path, header: str | None = None) -> FastAPI:
    app = FastAPI(lifespan=history_lifespan(path))
    app.add_middleware(RequestIds, header=header)
    app.include_router(health_router)

    @app.post("/{memory_id}")
    async def add(memory_id: str, history: History) -> list[Any]:
        task = asyncio.create_task(history.add_history(memory_id, None, "x", "ADD"))
        made = [await task, await history.add_history("m", None, "y", "ADD")]
        return [dict(record.cause or {}) for record in made]

    return app


def ids(answer: Any) -> tuple[str, list[str]]:
    """Return the request id of a response, and the ids that the records have."""
    return answer.headers["X-Request-ID"], [cause["request_id"] for cause in answer.json()]


def test_the_application_opens_and_closes_its_history(tmp_path: Path) -> None:
    app = new_app(tmp_path / "h.db")
    managers: list[HistoryManager] = []

    @app.get("/")
    async def manager(history: History) -> None:
        managers.append(history)

    with TestClient(app) as client:
        assert client.post("/m1").status_code == client.get("/").status_code == 200
        assert " open" in repr(managers[0])
        answer = client.get("/health")
        assert (answer.status_code, answer.json()["status"], answer.json()["error"]) == (
            200,
            "ok",
            None,
        )
    assert "closed" in repr(managers[0])
    with TestClient(app) as client:  # the application can be started again
        assert client.post("/m2").status_code == 200

    async def count() -> int:
        async with open_history(tmp_path / "h.db") as history:
            return await history.count_history()

    assert asyncio.run(count()) == 4


def test_an_application_with_a_lifespan_of_its_own(tmp_path: Path) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with history_lifespan(tmp_path / "h.db")(app) as state:
            yield {**state, "more": 1}

    app = FastAPI(lifespan=lifespan)
    inner = FastAPI()
    app.mount("/inner", inner)

    @inner.websocket("/live")
    async def live(socket: WebSocket, history: History) -> None:
        await socket.accept()
        await socket.send_text(f"{socket.state.more} {await history.count_history()}")
        await socket.close()

    with TestClient(app) as client, client.websocket_connect("/inner/live") as socket:
        assert socket.receive_text() == "1 0"


def test_an_application_without_a_history(tmp_path: Path) -> None:
    app = FastAPI()
    app.include_router(health_router)
    with TestClient(app) as client, pytest.raises(InvalidInput, match="lifespan"):
        client.get("/health")
    app.dependency_overrides[history_of] = lambda: open_history(tmp_path / "h.db")
    with TestClient(app) as client, pytest.raises(HistoryClosed):
        client.get("/health")


def test_each_request_has_an_id(tmp_path: Path) -> None:
    """Its tasks, threads, background tasks and streams have it too; no other request has."""
    app = new_app(tmp_path / "h.db")

    @app.get("/late")
    async def late(history: History, background: BackgroundTasks) -> StreamingResponse:
        async def stream() -> AsyncIterator[str]:
            yield str((await history.add_history("s", None, "x", "ADD")).cause)

        background.add_task(history.add_history, "b", None, "x", "ADD")
        return StreamingResponse(stream(), background=background)

    @app.get("/causes")
    async def causes(history: History) -> list[Any]:
        found = history.query_history(memory_id=["s", "b"])
        return [dict(record.cause or {}) async for record in found]

    with TestClient(app) as client:
        given = {"X-Request-ID": "of the client"}
        first, second = (ids(client.post("/m1", headers=given)) for _ in range(2))
        assert first[1] == [first[0]] * 2
        assert second[1] == [second[0]] * 2
        assert len({first[0], second[0], "of the client"}) == 3
        request_id = client.get("/late").headers["X-Request-ID"]
        assert client.get("/causes").json() == [{"request_id": request_id}] * 2


def test_the_request_id_of_a_proxy(tmp_path: Path) -> None:
    app = new_app(tmp_path / "h.db", header="X-Trace")
    with TestClient(app) as client:
        assert ids(client.post("/m", headers={"X-Trace": "abc 1"})) == ("abc 1", ["abc 1"] * 2)
        for unusable in (b"", b"x" * 129, b"\xe9", b"a\tb"):
            found, causes = ids(client.post("/m", headers={b"X-Trace": unusable}))
            assert len(found) == 32
            assert causes == [found] * 2


def test_health_names_the_error(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    with TestClient(new_app(path)) as client:
        assert client.post("/m").status_code == 200
        path.rename(tmp_path / "other.db")
        answer = client.get("/health")
        assert answer.status_code == 503
        found = answer.json()
        assert (found["status"], found["error"]) == ("failing", "StorageMissing")
        assert "file-removed" in [one["code"] for one in found["warnings"]]
        assert str(tmp_path) not in answer.text
        (tmp_path / "other.db").rename(path)


def test_health_of_a_store_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = new_app(tmp_path / "h.db")

    async def hang() -> None:
        await asyncio.Event().wait()

    @app.get("/hang")
    async def stuck(history: History) -> None:
        monkeypatch.setattr(history.store, "measure", hang)

    with TestClient(app) as client:
        client.get("/hang")
        assert client.get("/health").status_code == 503
