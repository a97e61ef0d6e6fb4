"""The live feed: records as they are committed, as server-sent events.

Each viewer has a follower of its own, and the followers of a manager share their reads and one
poll. A viewer that does not read holds nothing but one batch, and is cut.
"""

import asyncio
import contextlib
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from async_history._core.follow import Follower
from async_history._core.records import HistoryRecord
from async_history.errors import HistoryError
from async_history.web._json import as_json
from async_history.web._problems import problem_of
from async_history.web._view import View

_DETAILS: Final = ("context", "cause")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedLimits:
    """How much the viewers of a page get. Tests give smaller ones.

    Attributes:
        viewers: at once.
        records: of a batch.
        pause_s: seconds between two batches: writers come first, and people read no faster.
        text_chars: of a text, and of a context or cause as JSON; the rest is cut.
        heartbeat_s: seconds after which a viewer without records gets a comment.
        send_timeout_s: seconds in which a viewer must take a batch.
        end_timeout_s: the same for the end of an answer, as a server ends.
        first_read_s: seconds that an answer waits for the first read after a cursor, whose errors
            it can say.
        kept: events that are kept as text, for viewers at the same place.
    """

    viewers: int = 256
    records: int = 100
    pause_s: float = 0.2
    text_chars: int = 2_000
    heartbeat_s: float = 15.0
    send_timeout_s: float = 30.0
    end_timeout_s: float = 1.0
    first_read_s: float = 0.25
    kept: int = 1_000


class Feed:
    """The viewers of a page.

    Args:
        limits: see `FeedLimits`.
    """

    def __init__(self, limits: FeedLimits) -> None:
        self.limits = limits
        self.viewers = 0
        self.closing = asyncio.Event()
        self._events: OrderedDict[tuple[str, str | None], tuple[HistoryRecord, bytes]] = (
            OrderedDict()
        )

    def close(self) -> None:
        """End the answers to all viewers, as a server does that ends."""
        self.closing.set()

    async def stream(self, view: View, asked: Mapping[str, Any]) -> Response:
        """Return the answer to a viewer.

        Args:
            view: what the viewer may see.
            asked: the arguments of `follow`; from now on, without `after`.

        Raises:
            CursorGone, InvalidInput: as `follow`.
            HTTPException: 503, there are too many viewers.
        """
        if self.viewers >= self.limits.viewers:
            raise HTTPException(503, "too many viewers follow the history", {"Retry-After": "10"})
        if "after" not in asked:
            follower = view.follow(**{**asked, "after": await view.end_cursor()})
            return _EventStream(self, follower, [])
        follower = view.follow(**asked)
        first = await follower.next_records(limit=1, timeout_s=self.limits.first_read_s)
        return _EventStream(
            self, follower, [self.event(record, follower.cursor) for record in first]
        )

    def event(self, record: HistoryRecord, cursor: str | None) -> bytes:
        """Return the event of a record, made once for viewers at the same place.

        It is made again for a record that is no longer the same, as after an erasure.
        """
        key = (record.id, cursor)
        kept = self._events.get(key)
        if kept is not None and kept[0] == record:
            return kept[1]
        # In ASCII: some clients also end a line at U+2028.
        data = json.dumps(_cut(record, self.limits.text_chars))
        event = f"id: {cursor}\ndata: {data}\n\n".encode()
        self._events[key] = record, event
        if len(self._events) > self.limits.kept:
            self._events.popitem(last=False)
        return event


class _EventStream(Response):
    media_type = "text/event-stream"

    def __init__(self, feed: Feed, follower: Follower, begin: list[bytes]) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._feed = feed
        self._follower = follower
        self._begin = begin

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
        if not sending.cancelled():
            sending.result()
        elif leaving.cancelled():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._feed.limits.end_timeout_s):
                    await _end(send)

    async def _send_all(self, send: Send) -> None:
        """Send until an error ends it, or the viewer does not read."""

        async def emit(*events: bytes) -> None:
            body = b"".join(events)
            await send({"type": "http.response.body", "body": body, "more_body": True})

        await send(
            {"type": "http.response.start", "status": 200, "headers": self.raw_headers},
        )
        try:
            async with asyncio.timeout(self._feed.limits.send_timeout_s):
                await emit(b"retry: 3000\n\n", *self._begin)
            await self._follow(emit)
        except HistoryError as error:
            problem = json.dumps(problem_of(error))
            await emit(f"event: problem\ndata: {problem}\n\n".encode())
            await _end(send)
        except TimeoutError:
            return  # the server closes a connection whose answer has no end

    async def _follow(self, emit: Callable[..., Awaitable[None]]) -> None:
        limits = self._feed.limits
        while True:
            events = await self._batch(limits.heartbeat_s)
            async with asyncio.timeout(limits.send_timeout_s):
                await emit(*(events or [b": heartbeat\n\n"]))
            if events:
                await asyncio.sleep(limits.pause_s)

    async def _batch(self, timeout_s: float) -> list[bytes]:
        """Return the next events; none if nothing was committed in time."""
        events: list[bytes] = []
        while len(events) < self._feed.limits.records:
            records = await self._follower.next_records(limit=1, timeout_s=timeout_s)
            if not records:
                break
            events += [self._feed.event(record, self._follower.cursor) for record in records]
            timeout_s = 0
        return events


async def _end(send: Send) -> None:
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _left(receive: Receive) -> None:
    """Wait until the viewer has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _cut(record: HistoryRecord, most: int) -> dict[str, Any]:
    """Return a record as JSON, with what is long cut; `cut` names that."""
    fields = as_json(record)
    cut: list[str] = []
    for name in ("old_memory", "new_memory"):
        if len(fields[name] or "") > most:
            fields[name] = fields[name][:most]
            cut.append(name)
    for name in _DETAILS:
        if name in fields and len(json.dumps(fields[name])) > most:
            del fields[name]
            cut.append(name)
    return {**fields, "cut": cut} if cut else fields
