"""The pages in a real browser: every view, wide and narrow, light and dark, by keyboard."""

import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Error, Page, expect

from async_history import HistoryManager
from benchmarks import _page_store
from tests.support.chromium import chromium
from tests.support.patience import LONG_S
from tests.support.web_server import WebServer, web_server

pytestmark = [pytest.mark.once, pytest.mark.subprocess]

ATTACK = "<img src=x onerror=attacked=1><script>attacked=1</script>"
ARABIC = "يحب الشاي الأخضر مع النعناع كل صباح"
EMOJI = "👩‍👩‍👧‍👦 likes 🫖 and 🇯🇵"
HUGE = "sixteen megabytes " * (1 << 20)


async def fill(history: HistoryManager) -> None:
    """Record texts that pages must show: right-to-left, emoji, markup, and 16 MiB."""
    await history.add_history(
        "tea", None, "Ann likes green tea, and drinks it before breakfast", "ADD",
        owner={"user_id": "ann", "agent_id": "assistant"}, actor_id="ann", role="user",
        context={"source": "chat"}, cause={"request_id": "7", "reason": "said so"},
    )  # fmt: skip
    await history.update_history(
        "tea", "Ann likes mate, and drinks it before breakfast", actor_id="assistant"
    )
    await history.add_history("arabic", None, ARABIC, "ADD", owner={"user_id": "ليلى"})
    await history.update_history("arabic", f"{ARABIC} والقهوة", actor_id="ليلى")
    await history.add_history("emoji", None, EMOJI, "ADD", owner={"user_id": "👩‍👧"})
    await history.update_history("emoji", f"{EMOJI} 🎉")
    await history.add_history(
        ATTACK, None, ATTACK, "ADD", actor_id=ATTACK, role=ATTACK, owner={"user_id": ATTACK},
        context={ATTACK: ATTACK}, cause={ATTACK: ATTACK},
    )  # fmt: skip
    await history.add_history("old", None, "moved to Berlin", "ADD", actor_id="importer")
    await history.add_history("old", "moved to Berlin", None, "DELETE", actor_id="importer")
    await history.add_history("x" * 300, None, "y" * 3_000, "ADD")
    await history.add_history("huge", None, HUGE, "ADD")
    await history.update_history("huge", HUGE + "end")
    await history.erase(memory_ids=["old"], reason="asked for")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def site() -> Iterator[WebServer]:
    with web_server(fill) as server:
        yield server


class Shown(NamedTuple):
    """A page in a browser, and the errors of the browser."""

    page: Page
    complaints: list[str]


def shown(
    browser: Browser,
    *,
    width: int = 1280,
    scheme: Literal["light", "dark"] = "light",
    scripts: bool = True,
) -> Shown:
    context = browser.new_context(
        viewport={"width": width, "height": 800},
        color_scheme=scheme,
        java_script_enabled=scripts,
        reduced_motion="reduce",
    )
    context.set_default_timeout(LONG_S * 1000)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda said: complaints.extend([said.text] * (said.type == "error")))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: complaints.extend(_foreign(asked.url)))
    return Shown(page, complaints)


def _foreign(url: str) -> list[str]:
    return [] if url.startswith("http://127.0.0.1:") else [url]


VIEWS = (
    "/",
    "/?user_id=ann",
    "/memory?memory_id=tea",
    "/memory?memory_id=arabic",
    "/memory?memory_id=huge",
    f"/memory?memory_id={quote(ATTACK)}",
    "/diff?memory_id=tea&start=1&end=2",
    "/at",
    "/search?text=likes",
    "/live",
    "/stats",
    "/operations",
    "/change",
)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (340, "dark")])
def test_every_view_is_accessible_and_fits(
    browser: Browser, site: WebServer, width: int, scheme: Literal["light", "dark"]
) -> None:
    page, complaints = shown(browser, width=width, scheme=scheme)
    axe = Axe()
    for view in VIEWS:
        page.goto(site.url + view)
        expect(page.locator("h1")).to_be_visible()
        _check(axe, page, view)
    page.goto(f"{site.url}/memory?memory_id=tea")
    page.get_by_role("button", name="Restore version 1…").click()
    expect(page.locator("h1")).to_have_text("Restore: preview")
    _check(axe, page, "preview")
    assert complaints == []
    page.goto(f"{site.url}/memory?memory_id=no")
    _check(axe, page, "error")
    page.context.close()


def _check(axe: Axe, page: Page, view: str) -> None:
    found = axe.run(page, options={"resultTypes": ["violations"]})
    assert found.violations_count == 0, f"{view}: {found.generate_report()}"
    excess = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert excess <= 0, f"{view} is {excess} pixels too wide"
    assert page.evaluate("window.attacked") is None, view


def test_by_keyboard_alone(browser: Browser, site: WebServer) -> None:
    page, complaints = shown(browser)
    page.goto(f"{site.url}/memory?memory_id=tea")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_focused()
    expect(page.get_by_text("Skip to the content")).to_be_in_viewport()
    page.keyboard.press("Enter")
    _tab_to(page, "Restore version 1…")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("Restore: preview")
    _tab_to(page, "Restore")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("Done.")
    last = site.run(lambda history: history.get_history("tea"))[-1]
    assert last.new_memory == "Ann likes green tea, and drinks it before breakfast"
    assert complaints == []
    page.context.close()


_NUMBER = """() => {
  const all = [...document.querySelectorAll("a[href], button, input, select, textarea, summary")]
    .filter((one) => one.type !== "hidden" && one.checkVisibility());
  all.forEach((one, number) => { one.dataset.number = number; });
  return all.length;
}"""
_FOCUSED = """() => {
  const one = document.activeElement;
  const style = getComputedStyle(one);
  return {
    number: Number(one.dataset.number ?? -1),
    name: one.ariaLabel ?? one.textContent.trim(),
    isButton: one.tagName === "BUTTON",
    isSeen: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2,
  };
}"""


def _tab_to(page: Page, name: str) -> None:
    """Press the Tab key until a button has the focus; each element on the way must show it."""
    for _ in range(60):
        page.keyboard.press("Tab")
        focused: dict[str, Any] = page.evaluate(_FOCUSED)
        assert focused["isSeen"], focused["name"]
        if focused["isButton"] and focused["name"] == name:
            return
    pytest.fail(f"the button {name} is not reached")


@pytest.mark.parametrize("view", VIEWS)
def test_each_part_of_a_view_is_reached_by_keyboard(
    browser: Browser, site: WebServer, view: str
) -> None:
    """In the order of the page, and each shows that it has the focus. A time has several parts."""
    page, _ = shown(browser)
    page.goto(site.url + view)
    count = page.evaluate(_NUMBER)
    assert count > 5
    reached = [-1]
    while reached[-1] != count - 1:
        page.keyboard.press("Tab")
        focused: dict[str, Any] = page.evaluate(_FOCUSED)
        assert focused["isSeen"], focused
        assert focused["number"] in (reached[-1], reached[-1] + 1), focused
        reached.append(focused["number"])
    page.context.close()


def test_the_live_feed_shows_what_is_committed(browser: Browser, site: WebServer) -> None:
    page, complaints = shown(browser)
    page.goto(f"{site.url}/live?user_id=live")
    expect(page.locator("#state")).to_have_text("Following.")

    def add(memory_id: str, text: str) -> None:
        site.run(
            lambda history: history.add_history(
                memory_id, None, text, "ADD", owner={"user_id": "live"}, actor_id=ATTACK,
                cause={"<b>": ATTACK},
            )
        )  # fmt: skip

    add("first", ATTACK)
    expect(page.locator("#feed .text").first).to_have_text(ATTACK)
    assert page.evaluate("window.attacked") is None
    page.get_by_role("button", name="Pause").click()
    add("second", "while paused")
    expect(page.locator("#state")).to_have_text("Paused; 1 new.")
    expect(page.locator("#feed .record")).to_have_count(1)
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#feed .text").first).to_have_text("while paused")
    page.locator("#feed a").first.click()
    expect(page.locator("h1")).to_have_text(re.compile("Memory second"))
    assert complaints == []
    page.context.close()


def test_the_slider_and_the_plots_move(browser: Browser, site: WebServer) -> None:
    page, complaints = shown(browser)
    page.goto(f"{site.url}/at")
    slider = page.get_by_role("slider")
    slider.press("Home")
    assert slider.get_attribute("aria-valuetext") == page.locator("output").inner_text()
    page.get_by_role("button", name="Go there").click()
    expect(page).to_have_url(re.compile("place=0"))
    box = page.get_by_role("slider").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] - 10, box["y"] + box["height"] / 2)
    expect(page).to_have_url(re.compile(r"place=99\d|place=98\d"))

    def record() -> None:
        site.run(
            lambda history: history.batch_add_history([{"memory_id": "n", "event": "ADD"}] * 9)
        )

    record()  # the times are those of the last minute
    page.goto(f"{site.url}/stats")
    expect(page.locator("[data-line=queue]")).to_have_attribute("points", re.compile(r"\d+,\d+"))
    expect(page.locator("[data-value=queue]")).to_have_text("0")
    for name in ("ack", "commit"):
        expect(page.locator(f"[data-value={name}]")).to_have_text(re.compile(r"^[\d.]+ m?s$"))
    rate = page.locator("[data-value=rate]")
    expect(rate).to_have_text("0")
    while rate.inner_text() == "0":  # each rate is shown for two seconds only
        record()
    assert complaints == []
    page.context.close()


def test_without_scripts_every_view_shows_its_content(browser: Browser, site: WebServer) -> None:
    site.run(lambda history: history.add_history("latest", None, "seen without scripts", "ADD"))
    page, _ = shown(browser, scripts=False)
    for view, found in (
        ("/live", "seen without scripts"),
        ("/at?place=1000", "Memories that existed then"),
        ("/stats", "Events over time"),
    ):
        page.goto(site.url + view)
        expect(page.locator("main")).to_contain_text(found)
    page.context.close()


@pytest.fixture
def theirs() -> Iterator[str]:
    """The origin of another site, whose pages are empty."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        serving.join()


_FETCH = """async ([url, headers, method]) => {
  const answer = await fetch(url, {headers, method});
  return answer.ok ? await answer.json() : answer.status;
}"""


def test_a_page_of_an_allowed_site_reads(browser: Browser, site: WebServer, theirs: str) -> None:
    """With a header, so the browser asks first. A page that is not allowed gets nothing."""

    async def tea(history: HistoryManager) -> None:
        await history.add_history("tea", None, "likes tea", "ADD")

    with web_server(tea, origins=[theirs]) as allowing:
        page, _ = shown(browser)
        page.goto(theirs)
        headers = {"authorization": "Bearer of a dashboard"}
        path = "/memories/tea/history"
        found = page.evaluate(_FETCH, [allowing.url + path, headers, "GET"])
        assert [record["new_memory"] for record in found] == ["likes tea"]
        for url, method in ((site.url + path, "GET"), (f"{allowing.url}/api/undo", "POST")):
            with pytest.raises(Error, match="Failed to fetch"):
                page.evaluate(_FETCH, [url, headers, method])
        page.context.close()


# Three million records

RECORDS = 3_000_000
OWNED = 300_000
"""The newest records have owners, contexts and causes, which take five times as long to write."""
FIRST_VIEW_S = 0.2
"""Processor time of all threads of this process, the server's and the test's. Unlike the time that
passes, it is about the same on a busy machine."""


async def fill_large(history: HistoryManager) -> None:
    for first in range(0, RECORDS - OWNED, 9_000):
        await history.batch_add_history(
            [
                {
                    "memory_id": f"memory {number // 3}",
                    "new_memory": f"likes tea number {number}",
                    "event": "UPDATE" if number % 3 else "ADD",
                }
                for number in range(first, first + 9_000)
            ]
        )
    await _page_store.fill(history, OWNED)
    assert await history.count_history() >= RECORDS


@pytest.fixture(scope="module")
def large_site(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[WebServer, list[_page_store.Request]]]:
    """The page of a file with so many records, and a request for each view."""
    path = tmp_path_factory.mktemp("large") / "history.db"
    with web_server(fill_large, str(path)) as server:
        asked = server.run(lambda history: _page_store.requests(history, OWNED))
        views = [one for one in asked if not one.path.startswith(("/api", "/memories/", "/text"))]
        yield server, [one for one in views if one.form is None]
    path.unlink()


@pytest.mark.nightly
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("width", [1280, 340])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_of_three_million_records(
    browser: Browser,
    large_site: tuple[WebServer, list[_page_store.Request]],
    width: int,
    scheme: Literal["light", "dark"],
) -> None:
    """Each is accessible, fits, and takes at most 200 ms."""
    site, views = large_site
    page, complaints = shown(browser, width=width, scheme=scheme)
    axe = Axe()
    slow: dict[str, float] = {}
    for view in views:
        begun = time.process_time()
        page.goto(site.url + view.path)
        expect(page.locator("h1")).to_be_visible()
        took_s = time.process_time() - begun
        if took_s > FIRST_VIEW_S:
            slow[view.name] = took_s
        _check(axe, page, view.name)
    assert slow == {}
    assert complaints == []
    page.context.close()
