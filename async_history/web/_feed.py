"""The live feed: records as they are committed, as server-sent events.

Viewers at the same cursor share what is read and sent. A viewer that does not read holds one batch
only, and is disconnected.
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from async_history.errors import HistoryError
from async_history.web._problems import problem_of
from async_history.web._shared_batches import Batch, Batches, BatchLimits, Place
from async_history.web._view import View


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedLimits:
    """Limits of the live feed. Tests give smaller ones.

    Attributes:
        viewers: most viewers at the same time.
        batch: limits of batches.
        pause_s: least seconds between two batches of a viewer: people read no faster.
        sends_per_s: batches that all viewers together get in a second. Each takes the event loop
            0.2 ms, whatever its size, and writers come first.
        heartbeat_s: seconds after which a viewer without records gets a comment.
        send_timeout_s: seconds in which a viewer must take a batch.
        end_timeout_s: the same for the last part of an answer when the server stops.
        first_read_s: seconds that an answer waits for the first read after a cursor. Only errors
            within this time can become the status of the answer.
    """

    viewers: int = 256
    batch: BatchLimits = field(default_factory=BatchLimits)
    pause_s: float = 0.2
    sends_per_s: float = 50.0
    heartbeat_s: float = 15.0
    send_timeout_s: float = 30.0
    end_timeout_s: float = 1.0
    first_read_s: float = 0.25


class Feed:
    """The viewers of a page.

    Args:
        limits: see `FeedLimits`.
    """

    def __init__(self, limits: FeedLimits) -> None:
        self.limits = limits
        self.viewers = 0
        self.closing = asyncio.Event()
        self._batches = Batches(limits.batch)

    @property
    def pause_s(self) -> float:
        """Seconds between two batches of a viewer, with the present number of viewers."""
        return max(self.limits.pause_s, self.viewers / self.limits.sends_per_s)

    def close(self) -> None:
        """End the answers to all viewers, because the server stops."""
        self.closing.set()

    async def stream(self, view: View, asked: Mapping[str, Any]) -> Response:
        """Return the answer to a viewer.

        Args:
            view: what the viewer may see.
            asked: the arguments of `follow`. Without `after`, it begins now.

        Raises:
            CursorGone, InvalidInput: as `follow`.
            HTTPException: 503, there are too many viewers.
        """
        if self.viewers >= self.limits.viewers:
            raise HTTPException(503, "too many viewers follow the history", {"Retry-After": "10"})
        is_resumed = "after" in asked
        after = asked["after"] if is_resumed else await view.end_cursor()
        followed = view.followed(**{name: asked[name] for name in asked if name != "after"})
        place = self._batches.place(followed, followed.follow(after))
        place.enter()
        try:
            if is_resumed:
                await place.batch(self.limits.first_read_s)
        except BaseException:
            place.leave()
            raise
        return _EventStream(self, place)


class _EventStream(Response):
    media_type = "text/event-stream"

    def __init__(self, feed: Feed, place: Place) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._feed = feed
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._feed.viewers += 1
        tasks = [
            asyncio.ensure_future(wait)
            for wait in (self._send_all(send), _left(receive), self._feed.closing.wait())
        ]
        sending, leaving, _ = tasks
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._feed.viewers -= 1
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._place.leave()
        if not sending.cancelled():
            sending.result()
        elif leaving.cancelled():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._feed.limits.end_timeout_s):
                    await _end(send)

    async def _send_all(self, send: Send) -> None:
        """Send until an error, or until the viewer stops reading."""

        async def emit(body: bytes) -> None:
            async with asyncio.timeout(self._feed.limits.send_timeout_s):
                await send({"type": "http.response.body", "body": body, "more_body": True})

        await send(
            {"type": "http.response.start", "status": 200, "headers": self.raw_headers},
        )
        try:
            await emit(b"retry: 3000\n\n")
            await self._follow(emit)
        except HistoryError as error:
            problem = json.dumps(problem_of(error))
            await emit(f"event: problem\ndata: {problem}\n\n".encode())
            await _end(send)
        except TimeoutError:
            return  # the server closes a connection whose answer is incomplete

    async def _follow(self, emit: Callable[[bytes], Awaitable[None]]) -> None:
        limits = self._feed.limits
        while True:
            batch = await self._place.batch(limits.heartbeat_s)
            if batch is None:
                await emit(b": heartbeat\n\n")
                continue
            self._go_on(batch)
            await emit(batch.events)
            await asyncio.sleep(self._feed.pause_s)

    def _go_on(self, batch: Batch) -> None:
        batch.end.enter()
        self._place.leave()
        self._place = batch.end


async def _end(send: Send) -> None:
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _left(receive: Receive) -> None:
    """Wait until the viewer disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
