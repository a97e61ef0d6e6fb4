"""A page on a history in memory, and clients of it."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import httpx
import pytest

# Imported here: the guard must not see the first test that makes a page read its files.
import async_history.web._app  # noqa: F401
from async_history import HistoryManager, Owner, open_history
from async_history.web import Access, Authorize
from async_history.web._app import WebLimits, new_app

TOKEN = "correct-horse-battery-staple"  # noqa: S105 - a test's

Caller = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]

ANN = Access(owner=Owner(user_id="ann"), write=True, actor_id="ann")


@pytest.fixture
async def history() -> AsyncIterator[HistoryManager]:
    """Memories of Ann and Bob, and one without an owner."""
    async with open_history("memory://") as history:
        await history.add_history("tea", None, "likes tea", "ADD", owner={"user_id": "ann"})
        await history.update_history("tea", "likes mate", actor_id="agent")
        await history.add_history(
            "car", None, "drives a red car", "ADD", owner={"user_id": "bob", "run_id": "r"}
        )
        await history.update_history("car", "drives a blue car", cause={"request_id": "7"})
        await history.add_history("any", None, "no one's", "ADD")
        yield history


@pytest.fixture
def caller(history: HistoryManager) -> Caller:
    """Return a client of a page on the history: by default on this computer, and read-only."""

    @asynccontextmanager
    async def call(
        authorize: Authorize | None = None,
        *,
        write: bool = False,
        limits: WebLimits | None = None,
        host: str = "localhost",
        client: str = "127.0.0.1",
        origins: Sequence[str] = (),
    ) -> AsyncIterator[httpx.AsyncClient]:
        app = new_app(
            history, authorize, write=write, limits=limits or WebLimits(), origins=origins
        )
        transport = httpx.ASGITransport(app, client=(client, 50_000))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client_:
            yield client_

    return call
