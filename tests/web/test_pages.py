"""The pages: what they show and to whom, escaping, and previews that change nothing."""

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_history import (
    HistoryManager,
    HistoryRecord,
    HistoryStats,
    StoreWarning,
    open_history,
)
from async_history.web import Access, _plots
from async_history.web._app import WebLimits, new_app
from async_history.web._differences import difference
from async_history.web._reach import ViewLimits
from tests.web.conftest import ANN, Caller

pytestmark = pytest.mark.once

ALL = Access(write=True, actor_id="operator")
HTML = {"Accept": "text/html"}
VIEWS = ("/", "/search", "/at", "/live", "/stats", "/operations", "/change")
ATTACKS = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "</textarea></template></title><svg/onload=alert(1)>",
    "javascript:alert(1)//{{7*7}}${7*7}",
    "--><iframe srcdoc='<script>alert(1)</script>'>",
)


class Elements(HTMLParser):
    """Collects the names and attributes of a page's elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def hidden_fields(page: str) -> dict[str, str]:
    """Return the hidden fields of the last form of a page."""
    form = page[page.rindex("<form") :]
    return dict(re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)">', form))


async def shown(page: httpx.AsyncClient, path: str, **query: Any) -> str:
    answer = await page.get(path, params=query or None, headers=HTML)
    assert answer.status_code == 200, answer.text
    return answer.text


async def send(page: httpx.AsyncClient, path: str, **fields: str) -> httpx.Response:
    """Send a form of the page."""
    if "async_history_csrf" not in page.cookies:
        await page.get("/", headers=HTML)
    token = page.cookies["async_history_csrf"]
    return await page.post(path, data={"csrf_token": token, **fields}, headers=HTML)


async def texts_of(history: HistoryManager, memory_id: str) -> list[str | None]:
    return [one.new_memory for one in await history.get_history(memory_id)]


class TestViews:
    async def test_each_view_shows_its_content(self, caller: Caller) -> None:
        async with caller(lambda _: ALL, write=True) as page:
            for path, query, found in (
                ("/", {}, ["mate", "<ins>blue</ins>", "no one"]),
                ("/", {"user_id": "ann"}, ["mate"]),
                ("/memory", {"memory_id": "tea"}, ["<del>tea</del>", "<ins>mate</ins>", "agent"]),
                ("/memory", {"memory_id": "car"}, ["request_id", "version 2", "bob"]),
                ("/diff", {"memory_id": "tea", "start": 2, "end": 1}, ["<del>mate</del>"]),
                ("/search", {"text": "red"}, ["car"]),
                ("/search", {"cause_key": "request_id", "cause_value": "7"}, ["blue"]),
                ("/search", {"since": "2099-01-01T00:00"}, ["No record matches"]),
                ("/at", {"when": "2020-01-01T00:00:00"}, ["There are none"]),
                ("/at", {"place": 1000}, ["mate", "blue"]),
                ("/live", {}, ["mate", "/api/follow?"]),
                ("/stats", {}, ["ADD", "UPDATE", "records written", "There are none"]),
                ("/operations", {}, ["There are none"]),
                ("/change", {}, ["Roll back", "Undo", "Erase"]),
            ):
                text = await shown(page, path, **query)
                for part in found:
                    assert part in text, (path, query, part)

    async def test_nothing_of_a_memory_is_markup(self) -> None:
        async with open_history("memory://") as history:
            for attack in ATTACKS:
                await history.add_history(
                    attack, None, attack, "ADD", actor_id=attack, role=attack,
                    owner=dict.fromkeys(("user_id", "agent_id", "run_id", "app_id"), attack),
                    context={attack: attack}, cause={attack: attack},
                )  # fmt: skip
                await history.update_history(attack, f"{attack} {attack}", actor_id=attack)
            await history.erase(memory_ids=[ATTACKS[0]], reason=ATTACKS[0])
            app = new_app(history, lambda _: ALL, write=True, limits=WebLimits())
            transport = httpx.ASGITransport(app, client=("127.0.0.1", 50_000))
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as page:
                pages = [await shown(page, path) for path in VIEWS]
                for attack in ATTACKS:
                    one = {"memory_id": attack}
                    pages.append(await shown(page, "/memory", **one))
                    pages.append(await shown(page, "/diff", start=1, end=2, **one))
                    pages.append(await shown(page, "/change", **one))
                    names = ("text", "actor_id", "role", "user_id", "cause_key", "cause_value")
                    for path in ("/", "/search", "/at", "/live", "/stats"):
                        text = await shown(page, path, **dict.fromkeys(names, attack))
                        pages.append(text)
                    for path, fields in (
                        ("/restore", {**one, "version": "1"}),
                        ("/rollback", {"memory_ids": attack, "to": "2099-01-01T00:00"}),
                        ("/undo", {"cause_key": attack, "cause_value": attack}),
                        ("/erase", {**one, "reason": attack}),
                    ):
                        pages.append((await send(page, path, **fields)).text)
                    for answer in (
                        await page.get("/memory", params={"memory_id": "x" + attack}, headers=HTML),
                        await page.get("/search", params={"since": attack}, headers=HTML),
                        await page.get(f"/{attack}", headers=HTML),
                    ):
                        assert answer.status_code in (400, 404)
                        pages.append(answer.text)
        for text in pages:
            elements = Elements(text)
            assert not {"img", "iframe", "object", "embed", "base", "style"} & {*elements.names}
            for name, value in elements.attributes:
                assert not name.startswith("on")
                assert name not in ("style", "srcdoc")
                if name in ("href", "src", "action"):
                    assert value.startswith(("/", "#"))
            scripts = re.findall(r"<script\b[^>]*>", text)
            assert all(re.fullmatch(r'<script type="module" src="/static/\w+\.js">', one)
                       for one in scripts), scripts  # fmt: skip

    async def test_long_texts_are_cut_and_linked_whole(
        self, history: HistoryManager, caller: Caller
    ) -> None:
        long = "word " * 400_000
        await history.add_history("long", None, long, "ADD")
        await history.update_history("long", long + "end")
        async with caller() as page:
            for path, query in (("/", {}), ("/search", {}), ("/memory", {"memory_id": "long"})):
                text = await shown(page, path, **query)
                assert len(text) < 40_000
            links = re.findall(r'href="(/text[^"]*)"', text)
            wholes = [await page.get(link.replace("&amp;", "&")) for link in links]
        assert {whole.text for whole in wholes} == {long, long + "end"}
        assert {whole.headers["content-type"] for whole in wholes} == {"text/plain; charset=utf-8"}

    async def test_versions_are_counted_across_pages(
        self, history: HistoryManager, caller: Caller
    ) -> None:
        await history.add_history("many", None, "text 1", "ADD")
        for version in range(2, 46):
            await history.update_history("many", f"text {version}")
        seen: dict[str, str] = {}
        async with caller(lambda _: ALL, write=True) as page:
            link = "/memory?memory_id=many"
            while link:
                text = await shown(page, link)
                for item in text.split('<li class="record">')[1:]:
                    (version,) = re.findall(r"version (\d+)</span>", item)
                    (seen[version],) = re.findall(r"<ins>(\d+)</ins>", item) or ["1"]
                found = re.search(r'rel="next" href="([^"]*)"', text)
                link = found.group(1).replace("&amp;", "&") if found else ""
        assert seen == {str(version): str(version) for version in range(1, 46)}

    async def test_pages_follow_on_each_other(
        self, history: HistoryManager, caller: Caller
    ) -> None:
        for number in range(120):
            await history.add_history(
                f"memory {number}", None, "text", "ADD", owner={"user_id": "z"}
            )
        async with caller() as page:
            for path in ("/", "/search", "/at"):
                link, seen = f"{path}?user_id=z", set[str]()
                while link:
                    text = await shown(page, link)
                    met = set(re.findall(r"<bdi>(memory \d+)</bdi>", text))
                    assert not met & seen
                    seen |= met
                    found = re.search(r'rel="next" href="([^"]*)"', text)
                    link = found.group(1).replace("&amp;", "&") if found else ""
                assert len(seen) == 120, path

    async def test_warnings_and_operations_are_shown(
        self, history: HistoryManager, caller: Caller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await history.erase(memory_ids=["tea"], reason="asked in a letter", vacuum=False)
        warning = StoreWarning("disk-full", "critical", "no <b>space</b>")
        warned = replace(await history.stats(), warnings=(warning,))

        async def stats() -> HistoryStats:
            return warned

        monkeypatch.setattr(history, "stats", stats)
        async with caller() as page:
            text = await shown(page, "/stats")
            assert '<li class="notice bad"><strong>critical: disk-full</strong>' in text
            assert "no &lt;b&gt;space&lt;/b&gt;" in text
            operations = await shown(page, "/operations")
            assert "erase" in operations
            assert "asked in a letter" in operations

    async def test_a_search_shows_only_matches(
        self, history: HistoryManager, caller: Caller
    ) -> None:
        early, late = "2020-01-01T00:00:00", "2020-01-02T00:00:00"
        for memory_id, at in (("early", early), ("late", late)):
            await history.add_history(
                memory_id, None, f"was {memory_id}", "ADD", created_at=f"{at}+00:00", role="system"
            )
        async with caller() as page:
            for query, found in (
                ({"text": "red"}, {"car"}),
                ({"memory_id": "tea"}, {"tea"}),
                ({"actor_id": "agent"}, {"tea"}),
                ({"role": "system"}, {"early", "late"}),
                ({"event": "UPDATE"}, {"tea", "car"}),
                ({"user_id": "bob"}, {"car"}),
                ({"run_id": "r"}, {"car"}),
                ({"cause_key": "request_id", "cause_value": "7"}, {"car"}),
                ({"until": late}, {"early"}),
                ({"since": late, "until": "2020-01-03T00:00:00"}, {"late"}),
                ({"event": "UPDATE", "actor_id": "agent", "text": "mate"}, {"tea"}),
            ):
                text = await shown(page, "/search", **query)
                assert set(re.findall(r"<bdi>(tea|car|any|early|late)</bdi>", text)) == found, query

    async def test_a_search_that_takes_long_is_continued_by_a_link(self, caller: Caller) -> None:
        """Each page looks at two or three of the five records, and none is passed over."""
        limits = WebLimits(view=ViewLimits(search_s=0, scan_first=2))
        async with caller(limits=limits) as page:
            for wanted, found in (({"text": "likes"}, ["tea", "tea"]), ({"text": "nowhere"}, [])):
                link, seen, pages = f"/search?{urlencode(wanted)}", list[str](), 0
                while link:
                    text = await shown(page, link)
                    seen += re.findall(r"<bdi>(tea|car|any)</bdi>", text)
                    pages += 1
                    on = re.search(r'href="([^"]+)">Search on from here<', text)
                    link = on.group(1).replace("&amp;", "&") if on else ""
                    assert ("Older records were not searched yet" in text) == bool(link)
                    assert ("No record matches" in text) == (not link)
                assert (seen, pages) == (found, 3)

    async def test_bad_arguments_are_named(self, caller: Caller) -> None:
        async with caller() as page:
            for path in (
                "/memory",
                "/memory?memory_id=tea&version=x",
                "/memory?memory_id=tea&after=x",
                "/diff?memory_id=tea&start=1",
                "/diff?memory_id=tea&start=1&end=3",
                "/at?when=yesterday",
                "/at?place=1001",
                "/at?place=-1",
                "/search?event=MOVE",
                "/search?cause_key=x",
                "/text?memory_id=tea&record_id=x&which=new_memory",
                "/text?memory_id=tea&record_id=x&which=__class__",
            ):
                answer = await page.get(path, headers=HTML)
                assert answer.status_code == 400, path
                assert "<h1>InvalidInput</h1>" in answer.text


class TestLimitedCallers:
    async def test_memories_of_others_are_not_shown(
        self, history: HistoryManager, caller: Caller
    ) -> None:
        car = (await history.get_history("car"))[0].id
        async with caller(lambda _: ANN, write=True) as page:
            for path in ("/", "/search", "/at", "/live", "/stats"):
                text = await shown(page, path)
                assert "car" not in text.replace("card", ""), path
                assert "/operations" not in text
                answer = await page.get(path, params={"user_id": "bob"}, headers=HTML)
                assert answer.status_code == 403
            for path in (
                "/memory?memory_id=car",
                "/diff?memory_id=car&start=1&end=2",
                f"/text?memory_id=car&record_id={car}&which=new_memory",
            ):
                assert (await page.get(path, headers=HTML)).status_code == 404, path
            assert (await page.get("/operations", headers=HTML)).status_code == 403

    async def test_memories_of_others_are_not_changed(
        self, history: HistoryManager, caller: Caller
    ) -> None:
        later = (datetime.now(UTC) + timedelta(days=1)).isoformat()
        async with caller(lambda _: ANN, write=True) as page:
            for path, fields, status in (
                ("/restore", {"memory_id": "car", "version": "1"}, 404),
                ("/rollback", {"memory_id": "car", "to": later}, 404),
                ("/rollback", {"user_id": "bob", "to": later}, 403),
                ("/undo", {"run_id": "r"}, 403),
                ("/erase", {"memory_id": "car", "reason": "x"}, 404),
                ("/erase", {"user_id": "bob", "reason": "x"}, 403),
                ("/erase", {"actor_id": "agent", "reason": "x"}, 403),
            ):
                assert (await send(page, path, **fields)).status_code == status, (path, fields)
        assert await texts_of(history, "car") == ["drives a red car", "drives a blue car"]


CHANGES: tuple[tuple[str, Mapping[str, str], list[str | None]], ...] = (
    ("/restore", {"memory_id": "tea", "version": "1"}, ["likes tea", "likes mate", "likes tea"]),
    ("/undo", {"run_id": "mistake"}, ["likes tea", "likes mate", "likes rum", "likes mate"]),
    ("/erase", {"memory_ids": "tea\r\n", "reason": "asked"}, [None, None]),
)


class TestChanges:
    @pytest.mark.parametrize(("path", "fields", "texts"), CHANGES, ids=lambda one: str(one)[:9])
    async def test_each_change_is_previewed_and_then_made(
        self,
        history: HistoryManager,
        caller: Caller,
        path: str,
        fields: Mapping[str, str],
        texts: list[str | None],
    ) -> None:
        if path == "/undo":
            await history.update_history("tea", "likes rum", cause={"run_id": "mistake"})
        before = await history.get_history("tea")
        async with caller(lambda _: ALL, write=True) as page:
            preview = await send(page, path, **fields)
            assert "preview</h1>" in preview.text
            assert await history.get_history("tea") == before
            done = await send(page, path, **hidden_fields(preview.text))
            assert "Done." in done.text
            assert await texts_of(history, "tea") == texts

    async def test_a_rollback_names_its_actor(
        self, history: HistoryManager, caller: Caller
    ) -> None:
        first = (await history.get_history("tea"))[0].occurred_at
        assert first is not None
        async with caller(lambda _: ALL, write=True) as page:
            preview = await send(page, "/rollback", user_id="ann", to=first.isoformat())
            assert "would have restored 1 memory" in preview.text
            await send(page, "/rollback", **hidden_fields(preview.text))
        last = (await history.get_history("tea"))[-1]
        assert (last.new_memory, last.actor_id) == ("likes tea", "operator")

    async def test_a_preview_that_is_outdated_is_shown_again(
        self, history: HistoryManager, caller: Caller
    ) -> None:
        async with caller(lambda _: ALL, write=True) as page:
            preview = await send(page, "/restore", memory_id="tea", version="1")
            await history.update_history("tea", "likes water")
            for fields in (
                hidden_fields(preview.text),
                {**hidden_fields(preview.text), "version": "2"},
                {**hidden_fields(preview.text), "preview": ""},
            ):
                again = await send(page, "/restore", **fields)
                assert "Nothing was done" in again.text
            assert (await texts_of(history, "tea"))[-1] == "likes water"
            done = await send(page, "/restore", **hidden_fields(again.text))
            assert "Done." in done.text
            twice = await send(page, "/restore", **hidden_fields(again.text))
            assert "Nothing was done" in twice.text

    async def test_no_change_is_made_where_changes_are_off(
        self, history: HistoryManager, caller: Caller
    ) -> None:
        fields = {"memory_id": "tea", "version": "1"}
        async with caller(lambda _: ALL) as page:
            assert (await send(page, "/restore", **fields)).status_code == 403
            assert (await page.get("/change", headers=HTML)).status_code == 403
            for view in VIEWS[:-1]:
                assert "/change" not in await shown(page, view)
            assert "Restore" not in await shown(page, "/memory", memory_id="tea")
        async with caller(lambda _: ALL, write=True) as page:
            for name in ("restore", "rollback", "undo", "erase"):
                answer = await page.get(f"/{name}", params=fields, headers=HTML)
                assert answer.status_code == 405
                assert (await page.post(f"/{name}", data=fields)).status_code == 403
        assert await texts_of(history, "tea") == ["likes tea", "likes mate"]


WORDS = st.text(st.sampled_from("ab .,\n😀é"), max_size=60)


class TestDifferences:
    @given(WORDS, WORDS, WORDS, WORDS)
    def test_a_difference_contains_both_texts(
        self, start: str, old: str, new: str, end: str
    ) -> None:
        old, new = start + old + end, start + new + end
        pieces = difference(old, new, 1_000)
        assert "".join(one.text for one in pieces if one.kind in ("same", "old")) == old
        assert "".join(one.text for one in pieces if one.kind in ("same", "new")) == new

    def test_only_words_that_differ_are_marked(self) -> None:
        pieces = difference("she drives a red car", "she drives a blue car", 1_000)
        marked = [(one.kind, one.text.strip()) for one in pieces if one.kind != "same"]
        assert marked == [("old", "red"), ("new", "blue")]

    def test_a_difference_is_short_however_long_the_texts_are(self) -> None:
        same = "word " * 1_000_000
        for old, new in ((same + "a", same + "b"), ("a" + same, "b" + same), ("x" * 10**6, same)):
            pieces = difference(old, new, 1_000)
            assert sum(len(one.text) for one in pieces) <= 2_400
            assert any(one.kind == "gap" for one in pieces)


def record(event: str, at: datetime | None, actor_id: str | None = None) -> HistoryRecord:
    text = None if at is None else at.isoformat()
    return HistoryRecord("id", "m", None, "x", event, text, text, actor_id=actor_id)


class TestPlots:
    def test_columns_have_all_records_and_stay_inside(self) -> None:
        begin = datetime(2026, 1, 1, tzinfo=UTC)
        records = [record(("ADD", "UPDATE", "odd")[n % 3], begin + timedelta(n)) for n in range(99)]
        plot = _plots.timeline([*records, record("DELETE", None)])
        assert plot is not None
        assert sum(box.count for box in plot.boxes) == 99
        for box in plot.boxes:
            assert 0 <= box.x <= box.x + box.width <= _plots.WIDTH
            assert -1e-9 <= box.y <= box.y + box.height <= _plots.HEIGHT + 1e-9

    def test_a_plot_of_one_instant_or_none(self) -> None:
        at = datetime(2026, 1, 1, tzinfo=UTC)
        plot = _plots.timeline([record("ADD", at), record("ADD", at)])
        assert plot is not None
        assert plot.highest == 2
        assert _plots.timeline([record("ADD", None)]) is None

    def test_actors_with_most_records_come_first(self) -> None:
        at = datetime(2026, 1, 1, tzinfo=UTC)
        records = [record("ADD", at, actor) for actor in ("a", "b", "b", None, None, None)]
        shares = _plots.by_actor(records, 2)
        assert [(one.name, one.count) for one in shares] == [(None, 3), ("b", 2)]
        assert shares[0].percent == 100
