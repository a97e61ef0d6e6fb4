"""The live feed of a real server: resumed, limited, bounded, cut off and ended."""

import asyncio
import contextlib
import gc
import json
import math
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from async_history import HistoryManager
from async_history.web import Access, Authorize
from async_history.web._app import WebLimits, new_app
from async_history.web._feed import Feed, FeedLimits
from async_history.web._json import as_json
from async_history.web._reach import ViewLimits
from async_history.web._server import LIMITS, ConnectionLimits, listening, serve_app
from async_history.web._shared_batches import Batches, BatchLimits
from async_history.web._view import View
from tests.support.patience import LONG_S
from tests.web.conftest import ANN

pytestmark = pytest.mark.once

AT_ONCE = BatchLimits(turn_s=0.0)
QUICK = FeedLimits(
    batch=AT_ONCE, pause_s=0.0, sends_per_s=math.inf, heartbeat_s=0.02, first_read_s=0.01
)


@dataclass
class Running:
    """A page that is served."""

    url: str
    port: int
    feed: Feed


@asynccontextmanager
async def served(
    history: HistoryManager,
    authorize: Authorize | None = None,
    *,
    limits: FeedLimits = QUICK,
    connections: ConnectionLimits = LIMITS,
) -> AsyncIterator[Running]:
    app = new_app(history, authorize, write=False, limits=WebLimits(feed=limits))
    listener = listening("127.0.0.1", 0)
    port = listener.getsockname()[1]
    serving = asyncio.create_task(serve_app(app, listener, limits=connections))
    try:
        async with asyncio.timeout(LONG_S):
            yield Running(f"http://127.0.0.1:{port}", port, app.state.feed)
    finally:
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving


@asynccontextmanager
async def following(
    page: Running, query: str = "", **headers: str
) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """Follow the feed; yield the fields of each event, with the data as a mapping."""

    async def events(answer: httpx.Response) -> AsyncIterator[dict[str, Any]]:
        event: dict[str, Any] = {}
        async for line in answer.aiter_lines():
            if line.startswith(":"):
                event["comment"] = line
            elif line:
                name, _, value = line.partition(": ")
                event[name] = json.loads(value) if name == "data" else value
            elif "data" in event or "comment" in event:
                yield event
                event = {}

    async with (
        httpx.AsyncClient(timeout=LONG_S) as client,
        client.stream("GET", f"{page.url}/api/follow{query}", headers=headers) as answer,
    ):
        answer.raise_for_status()
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield events(answer)


async def records(events: AsyncIterator[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    async for event in events:
        if "data" in event:
            found.append(event)
        if len(found) == count:
            break
    return found


def texts(events: list[dict[str, Any]]) -> list[str]:
    return [event["data"]["new_memory"] for event in events]


async def add(history: HistoryManager, *names: str, **fields: Any) -> None:
    for name in names:
        await history.add_history(name, None, name, "ADD", **fields)


async def test_the_feed_begins_now_and_resumes_at_its_cursor(history: HistoryManager) -> None:
    async with served(history) as page:
        async with following(page) as events:
            await add(history, "one", "two", "three")
            found = await records(events, 3)
            assert texts(found) == ["one", "two", "three"]
        await add(history, "four")
        for index, event in enumerate(found):
            async with following(page, **{"last-event-id": event["id"]}) as events:
                rest = await records(events, 3 - index)
                assert texts(rest) == ["one", "two", "three", "four"][index + 1 :]
        async with following(page, f"?after={found[1]['id']}") as events:
            assert texts(await records(events, 2)) == ["three", "four"]


async def test_an_erased_text_is_not_sent_again(history: HistoryManager) -> None:
    """An event is kept for viewers at the same cursor as long as its record is unchanged."""
    async with served(history) as page:
        async with following(page) as events:
            await add(history, "one", "two")
            first, _ = await records(events, 2)
        for expected in ("two", None):
            async with following(page, **{"last-event-id": first["id"]}) as events:
                assert texts(await records(events, 1)) == [expected]
            await history.erase(memory_ids=["two"], reason="asked", vacuum=False)


async def test_heartbeats_come_while_nothing_is_committed(history: HistoryManager) -> None:
    async with served(history) as page, following(page) as events:
        assert (await anext(events)) == {"retry": "3000", "comment": ": heartbeat"}
        assert (await anext(events)) == {"comment": ": heartbeat"}


async def test_filters_and_the_owner_of_the_caller(history: HistoryManager) -> None:
    async with served(history, lambda _: ANN) as page, following(page) as events:
        await add(history, "bobs", owner={"user_id": "bob"})
        await add(history, "anns", owner={"user_id": "ann"})
        assert texts(await records(events, 1)) == ["anns"]
        with pytest.raises(httpx.HTTPStatusError, match="403"):
            async with following(page, "?user_id=bob"):
                pass
    query = "?memory_id=b&cause%5Bk%5D=v"
    async with served(history) as page, following(page, query) as events:
        await add(history, "a", cause={"k": "v"})
        await add(history, "b", cause={"k": "w"})
        await history.update_history("b", "found", cause={"k": "v"})
        assert texts(await records(events, 1)) == ["found"]


async def test_a_cursor_that_is_gone_ends_the_feed_with_an_error(history: HistoryManager) -> None:
    async with served(history, limits=FeedLimits(pause_s=0.0)) as page:
        async with following(page) as events:
            await add(history, "one")
            (event,) = await records(events, 1)
        await history.reset()
        await add(history, "other")
        async with httpx.AsyncClient() as client:
            url = f"{page.url}/api/follow?after={event['id']}"
            answer = await client.get(url)
            assert (answer.status_code, answer.json()["title"]) == (410, "CursorGone")
            assert (await client.head(f"{page.url}/api/follow")).status_code == 200


async def test_the_end_of_the_history_ends_the_feed_with_an_error(history: HistoryManager) -> None:
    async with served(history) as page, following(page) as events:
        await anext(events)
        await history.aclose()
        problem = next(iter(await records(events, 1)))
        assert (problem["event"], problem["data"]["title"]) == ("problem", "HistoryClosed")
        assert [event async for event in events] == []


async def test_long_texts_are_cut_and_none_breaks_an_event(history: HistoryManager) -> None:
    hostile = "a\n\nid: 9\ndata: {}\r\n\r: \u2028<script>"
    async with served(history) as page, following(page) as events:
        await history.add_history("m", None, "x" * 5_000, "ADD", context={"big": "y" * 3_000})
        await history.update_history("m", hostile)
        long, short = await records(events, 2)
        assert long["data"]["new_memory"] == "x" * 2_000
        assert long["data"]["cut"] == ["new_memory", "context"]
        assert "context" not in long["data"]
        assert short["data"]["new_memory"] == hostile
        assert short["data"]["cut"] == ["old_memory"]


async def test_viewers_share_reads_and_are_limited_in_number(history: HistoryManager) -> None:
    limits = FeedLimits(viewers=2, pause_s=0.0)
    async with served(history, limits=limits) as page:
        async with following(page) as one, following(page) as other:
            with pytest.raises(httpx.HTTPStatusError, match="503"):
                async with following(page):
                    pass
            await add(history, "seen")
            first, second = await asyncio.gather(records(one, 1), records(other, 1))
            assert first == second
            assert (await history.stats()).followers == 1
        await until(lambda: page.feed.viewers == 0)
        async with following(page) as events:
            await add(history, "again")
            assert texts(await records(events, 1)) == ["again"]


class TestSharing:
    async def test_each_event_is_made_once_for_all_viewers(
        self, history: HistoryManager, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[str] = []

        def counted(record: Any) -> Any:
            made.append(record.id)
            return as_json(record)

        monkeypatch.setattr("async_history.web._shared_batches.as_json", counted)
        async with served(history) as page, contextlib.AsyncExitStack() as stack:
            viewers = [await stack.enter_async_context(following(page)) for _ in range(10)]
            await add(history, *(f"m{n}" for n in range(100)))
            found = await asyncio.gather(*(records(one, 100) for one in viewers))
            assert all(texts(events) == [f"m{n}" for n in range(100)] for events in found)
            assert len(made) == len(set(made)) == 100

    async def test_viewers_at_different_cursors_come_to_share_batches(
        self, history: HistoryManager
    ) -> None:
        """At the records that end a batch."""
        async with served(history) as page, contextlib.AsyncExitStack() as stack:
            events = await stack.enter_async_context(following(page))
            await add(history, *(f"m{n}" for n in range(20)))
            places = [event["id"] for event in await records(events, 20)]
            viewers = [
                await stack.enter_async_context(following(page, **{"last-event-id": place}))
                for place in places[::5]
            ]
            for n, viewer in enumerate(viewers):
                assert len(await records(viewer, 19 - 5 * n)) == 19 - 5 * n
            await add(history, "last")
            for viewer in (events, *viewers):
                assert texts(await records(viewer, 1)) == ["last"]
            gc.collect()
            assert (await history.stats()).followers == 1

    async def test_all_viewers_together_get_a_limited_number_of_batches_a_second(
        self, history: HistoryManager
    ) -> None:
        """However many viewers: each waits for its share."""
        limits = FeedLimits(batch=BatchLimits(records=1, turn_s=0.0), pause_s=0.0, sends_per_s=200)
        async with served(history, limits=limits) as page, contextlib.AsyncExitStack() as stack:
            viewers = [await stack.enter_async_context(following(page)) for _ in range(5)]
            begun = asyncio.get_running_loop().time()
            await add(history, *(f"m{n}" for n in range(20)))
            await asyncio.gather(*(records(one, 20) for one in viewers))
            taken_s = asyncio.get_running_loop().time() - begun
            assert 200 * taken_s >= 5 * 19

    async def test_batches_end_at_the_same_records_wherever_they_begin(
        self, history: HistoryManager
    ) -> None:
        """So viewers that are behind share batches before they reach the end."""
        await history.batch_add_history(
            [{"id": f"r{n}", "memory_id": "m", "event": "ADD"} for n in range(1_000)]
        )
        followed = View(history, Access(), write=False, limits=ViewLimits()).followed()
        batches = Batches(AT_ONCE)
        ends: list[list[object]] = []
        for ahead in (10, 20):
            follower = followed.follow(None)
            await follower.next_records(limit=ahead)
            place = batches.place(followed, follower)
            reached: list[object] = []
            while place.key[1] != await history.end_cursor():
                batch = await place.batch(LONG_S)
                assert batch is not None
                place = batch.end
                reached.append(place.key)
            ends.append(reached)
        assert set(ends[0][:-1]) & set(ends[1][:-1])

    async def test_a_viewer_that_leaves_does_not_end_a_later_viewers_read(
        self, history: HistoryManager
    ) -> None:
        followed = View(history, Access(), write=False, limits=ViewLimits()).followed()
        batches = Batches(AT_ONCE)
        begin = batches.place(followed, followed.follow(await history.end_cursor()))
        begin.enter()
        await add(history, "one")
        batch = await begin.batch(LONG_S)
        assert batch is not None
        batch.end.enter()
        assert await batch.end.batch(0.0) is None
        batch.end.leave()
        assert await begin.batch(LONG_S) is batch
        batch.end.enter()
        await add(history, "two")
        found = await batch.end.batch(LONG_S)
        assert found is not None
        assert b'"new_memory": "two"' in found.events
        batch.end.leave()
        begin.leave()

    async def test_only_viewers_with_the_same_access_share(self, history: HistoryManager) -> None:
        def known(request: Request) -> Access:
            return ANN if request.headers.get("x-user") == "ann" else Access()

        async with (
            served(history, known) as page,
            following(page) as all_,
            following(page, **{"x-user": "ann"}) as anns,
            following(page, "?memory_id=b") as of_memory,
            following(page, "?cause%5Bk%5D=v") as of_cause,
        ):
            await add(history, "a", owner={"user_id": "ann"})
            await add(history, "b", owner={"user_id": "bob"})
            await add(history, "c", cause={"k": "v"})
            await add(history, "d", owner={"user_id": "ann"})
            assert texts(await records(all_, 4)) == ["a", "b", "c", "d"]
            assert texts(await records(anns, 2)) == ["a", "d"]
            assert texts(await records(of_memory, 1)) == ["b"]
            assert texts(await records(of_cause, 1)) == ["c"]

    async def test_a_batch_that_is_no_longer_kept_is_read_again(
        self, history: HistoryManager
    ) -> None:
        """A viewer gets the next batch after a pause, in which it is dropped."""
        batch = BatchLimits(records=2, turn_s=0.0, kept_s=0.0)
        limits = FeedLimits(batch=batch, pause_s=0.01)
        async with (
            served(history, limits=limits) as page,
            following(page) as one,
            following(page) as other,
        ):
            names = [f"m{n}" for n in range(20)]
            await add(history, *names)
            for viewer in (one, other):
                assert texts(await records(viewer, 20)) == names

    async def test_a_batch_is_kept_for_a_short_time(self, history: HistoryManager) -> None:
        """For a late viewer, an erased record is read again."""
        view = View(history, Access(), write=False, limits=ViewLimits())
        followed = view.followed()
        batches = Batches(BatchLimits(turn_s=0.0, kept_s=0.0))
        place = batches.place(followed, followed.follow(await history.end_cursor()))
        place.enter()
        await add(history, "secret")
        batch = await place.batch(LONG_S)
        assert batch is not None
        assert b'"new_memory": "secret"' in batch.events
        await history.erase(memory_ids=["secret"], reason="asked", vacuum=False)
        batch = await place.batch(LONG_S)
        assert batch is not None
        assert b'"new_memory": null' in batch.events
        place.leave()

    async def test_nothing_is_read_for_viewers_that_have_left(
        self, history: HistoryManager
    ) -> None:
        async with served(history) as page:
            async with following(page) as events:
                await add(history, "seen")
                await records(events, 1)
            while (await history.stats()).followers:
                gc.collect()


async def until(is_true: Callable[[], bool]) -> None:
    """Wait until a server notices its clients' state."""
    while not is_true():  # noqa: ASYNC110 - connections have no event for it
        await asyncio.sleep(0)


async def test_a_viewer_that_does_not_read_is_cut_off_and_costs_one_batch(
    history: HistoryManager,
) -> None:
    async with served(history, connections=ConnectionLimits(stalled_s=0.05)) as page:
        reader, writer = await slow_reader(page)
        await until(lambda: page.feed.viewers == 1)
        big = "x" * 2_000
        for n in range(40):
            await history.batch_add_history(
                [{"memory_id": f"m{n}", "event": "ADD", "new_memory": big} for _ in range(100)]
            )
        await until(lambda: page.feed.viewers == 0)
        writer.close()
        assert reader.exception() is None or isinstance(reader.exception(), OSError)


async def slow_reader(page: Running) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", page.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=1)
    writer.write(b"GET /api/follow HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await writer.drain()
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    return reader, writer


async def test_the_feed_cuts_a_viewer_off_if_the_server_does_not(
    history: HistoryManager,
) -> None:
    """Mounted in an application, with any server."""
    limits = WebLimits(feed=FeedLimits(send_timeout_s=0.01))
    app = new_app(history, None, write=False, limits=limits)
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/api/follow",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
    }
    requests = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        if requests:
            return requests.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async with asyncio.timeout(LONG_S):
        await app(scope, receive, send)
    assert app.state.feed.viewers == 0


async def test_the_end_of_the_server_ends_the_feeds(history: HistoryManager) -> None:
    async with served(history) as page, following(page) as events:
        await anext(events)
        page.feed.close()
        assert [event async for event in events if "data" in event] == []


async def test_a_request_that_does_not_arrive_is_cut_off(
    history: HistoryManager,
) -> None:
    async with served(history, connections=ConnectionLimits(request_s=0.05)) as page:
        for begun in (b"", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "):
            reader, writer = await asyncio.open_connection("127.0.0.1", page.port)
            writer.write(begun)
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()


async def test_headers_cannot_be_injected(history: HistoryManager) -> None:
    async with served(history) as page:
        for path in (
            "/%0d%0aX-Injected:%20yes",
            "/sign-in?next=%0d%0aX-Injected:%20yes",
            "/api/query_history?after=%0d%0aX-Injected:%20yes",
            "/memories/%0d%0aX-Injected:%20yes/history",
        ):
            async with httpx.AsyncClient() as client:
                answer = await client.get(page.url + path)
                assert "x-injected" not in answer.headers
        for head in (
            b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\rX-Injected: yes\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
            b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", page.port)
            writer.write(head)
            assert (await reader.readline()).startswith(b"HTTP/1.1 4")
            writer.close()


async def test_a_thousand_writers_are_read_meanwhile(history: HistoryManager) -> None:
    async with served(history) as page, following(page) as events:

        async def write(n: int) -> None:
            for _ in range(2):
                await history.update_history(f"w{n}", f"{n}", cause={"n": "x"})

        calls = ("query_history", "memories", "count_history", "stats")
        paths = (*(f"/api/{call}" for call in calls), "/", "/at", "/search", "/stats")

        async def look() -> list[int]:
            async with httpx.AsyncClient(headers={"accept": "text/html"}) as client:
                return [(await client.get(page.url + path)).status_code for path in paths]

        seen = asyncio.create_task(records(events, 1_000))
        looked = asyncio.gather(*(look() for _ in range(3)))
        await asyncio.gather(*(write(n) for n in range(1_000)))
        assert await looked == [[200] * len(paths)] * 3
        found = await seen
        assert len({event["data"]["memory_id"] for event in found}) == 1_000
        assert len({event["id"] for event in found}) == 1_000
