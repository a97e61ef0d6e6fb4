"""A service whose users have memories with a history; the README says what it shows."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from async_history import (
    CursorGone,
    Follower,
    HistoryError,
    HistoryRecord,
    InvalidInput,
    Overloaded,
    OwnerConflict,
)
from async_history.fastapi import History, RequestIds, health_router, history_lifespan
from async_history.otel import instrument, uninstrument

PAGE = 100
HEARTBEAT_S = 1.0
"""Seconds between heartbeats of an idle feed, and between checks whether the server stops."""
STATUS = {InvalidInput: 400, OwnerConflict: 404, Overloaded: 503}

users = APIRouter(prefix="/users/{user_id}")
MemoryText = Annotated[str, Body(embed=True, min_length=1, max_length=16_384)]


def new_app(url: str) -> FastAPI:
    """Return the service for a history's URL. Setting its `state.stopping` ends the feeds."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        meters = MeterProvider([PrometheusMetricReader()])
        instrument(meter_provider=meters)
        try:
            async with history_lifespan(url, queue_timeout_s=5)(app) as state:
                yield state
        finally:
            uninstrument()
            meters.shutdown()

    app = FastAPI(lifespan=lifespan)
    app.state.stopping = asyncio.Event()
    app.add_middleware(RequestIds)
    app.include_router(users)
    app.include_router(health_router)
    app.add_api_route("/metrics", metrics)
    app.add_exception_handler(HistoryError, answer_error)
    return app


@users.put("/memories/{memory_id}")
async def remember(
    user_id: str, memory_id: str, text: MemoryText, history: History
) -> dict[str, Any]:
    """Set a memory's text. The header X-Request-ID of the answer identifies it for undo."""
    owner = {"user_id": user_id}
    return shown(await history.update_history(memory_id, text, owner=owner, actor_id=user_id))


@users.get("/memories")
async def memories(user_id: str, history: History) -> list[dict[str, Any]]:
    """Return the user's memories, latest changes first."""
    found: list[dict[str, Any]] = []
    async for record in history.memories(user_id=user_id):
        found.append(shown(record))
        if len(found) == PAGE:
            break
    return found


@users.get("/memories/{memory_id}/history")
async def history_of_memory(user_id: str, memory_id: str, history: History) -> list[dict[str, Any]]:
    """Return the changes of a memory, oldest first."""
    found = history.query_history(memory_id=memory_id, user_id=user_id, limit=PAGE)
    records = [shown(record) async for record in found]
    if not records:
        raise HTTPException(404, "the user has no such memory")
    return records


@users.post("/requests/{request_id}/undo")
async def undo(user_id: str, request_id: str, history: History) -> dict[str, Any]:
    """Undo the changes of a user's request."""
    cause = {"request_id": request_id}
    # A request belongs to one user: if one record is the user's, all are.
    if not await history.count_history(user_id=user_id, cause=cause):
        raise HTTPException(404, "the user made no such request")
    report = await history.undo(cause=cause, actor_id=user_id)
    return {
        "restored": report.restored,
        "deleted": report.deleted,
        "conflicts": [step.memory_id for step in report.conflicts],
    }


async def follower_of(
    user_id: str, history: History, last_event_id: Annotated[str | None, Header()] = None
) -> Follower:
    """Return a follower of the user's memories, after the client's last event or from now on."""
    return history.follow(user_id=user_id, after=last_event_id or await history.end_cursor())


@users.get("/feed", response_class=EventSourceResponse)
async def feed(
    request: Request, follower: Annotated[Follower, Depends(follower_of)]
) -> AsyncIterator[ServerSentEvent]:
    """Send each change of the user's memories. A client that reconnects misses nothing."""
    stopping: asyncio.Event = request.app.state.stopping
    yield ServerSentEvent(comment="live", id=follower.cursor)
    while not stopping.is_set():
        try:
            records = await follower.next_records(limit=1, timeout_s=HEARTBEAT_S)
        except CursorGone:
            # The history was emptied or replaced: the client must load it, and begin again.
            yield ServerSentEvent(event="gone", data="load again", id="")
            return
        if not records:
            yield ServerSentEvent(comment="heartbeat")
        for record in records:
            yield ServerSentEvent(data=shown(record), id=follower.cursor)


async def metrics() -> Response:
    """Return OpenTelemetry's metrics of the history, for Prometheus."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


async def answer_error(request: Request, error: Exception) -> Response:
    """Answer with the type of an error only, because its message may name a memory."""
    status = STATUS.get(type(error), 503)
    return JSONResponse({"error": type(error).__name__}, status)


def shown(record: HistoryRecord) -> dict[str, Any]:
    """Return a record as a client sees it."""
    return {
        "memory_id": record.memory_id,
        "event": record.event,
        "before": record.old_memory,
        "text": record.new_memory,
        "actor": record.actor_id,
        "at": record.occurred_at,
        "cause": dict(record.cause or {}),
    }
