"""Rules for every request and answer of the page, on every route."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.routing import Mount
from starlette.types import Message, Scope

from async_history import HistoryManager, InvalidInput, Owner
from async_history.web import Access, TokenAccess, history_app
from async_history.web._access import SESSION_S
from async_history.web._app import WebLimits, new_app
from async_history.web._origins import check_origins
from async_history.web._security import RequestLimits
from tests.web.conftest import ANN, TOKEN, Caller

pytestmark = pytest.mark.once

BEARER = {"authorization": f"Bearer {TOKEN}"}
HTML = {"accept": "text/html"}


def by_token() -> TokenAccess:
    return TokenAccess(TOKEN, Access(write=True))


async def test_every_answer_has_the_headers(caller: Caller) -> None:
    async with caller() as page:
        for path in ("/", "/nothing", "/static/nothing.css", "/api/nothing"):
            for headers in ({}, HTML):
                answer = await page.get(path, headers=headers)
                policy = answer.headers["content-security-policy"]
                assert "default-src 'none'" in policy
                assert "frame-ancestors 'none'" in policy
                assert "unsafe" not in policy
                assert answer.headers["x-content-type-options"] == "nosniff"
                assert answer.headers["referrer-policy"] == "same-origin"
                assert answer.headers["cache-control"] == "no-store"


class TestWithoutRules:
    @pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000"])
    async def test_this_computer_is_answered(self, caller: Caller, host: str) -> None:
        async with caller(host=host) as page:
            assert (await page.get("/")).status_code == 200

    @pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "10.0.0.1", ""])
    async def test_another_host_name_of_this_computer_is_refused(
        self, caller: Caller, host: str
    ) -> None:
        """A site can make its name point to this computer after its page has loaded."""
        async with caller() as page:
            assert (await page.get("/", headers={"host": host})).status_code == 421

    async def test_other_computers_are_refused(self, caller: Caller) -> None:
        for client in ("10.0.0.1", "192.168.0.7", "2001:db8::1"):
            async with caller(client=client) as page:
                assert (await page.get("/")).status_code == 403


class TestToken:
    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"authorization": ""},
            {"authorization": "Bearer"},
            {"authorization": "Bearer "},
            {"authorization": f"Bearer {TOKEN[:-1]}"},
            {"authorization": f"Bearer {TOKEN}x"},
            {"authorization": f"Bearer {TOKEN.upper()}"},
            {"authorization": f"Basic {TOKEN}"},
            {"authorization": TOKEN},
            {"authorization": "Bearer \xff"},
            {"cookie": f"async_history_session={TOKEN}"},
            {"cookie": "async_history_session="},
            {"cookie": "async_history_session=99999999999."},
            {"cookie": "async_history_session=9.\xff"},
            {"cookie": f"async_history_session={'9' * 5000}.x"},
            {"x-api-key": TOKEN},
        ],
    )
    async def test_a_missing_or_wrong_token_is_refused(
        self, caller: Caller, headers: dict[str, str]
    ) -> None:
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        async with caller(by_token()) as page:
            answer = await page.get("/", headers=raw)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["title"] == "Unauthorized"

    async def test_a_token_in_the_url_is_refused(self, caller: Caller) -> None:
        async with caller(by_token()) as page:
            for name in ("token", "access_token", "authorization", "csrf_token"):
                assert (await page.get("/", params={name: TOKEN})).status_code == 401

    async def test_the_token_lets_in_from_anywhere(self, caller: Caller) -> None:
        async with caller(by_token(), client="10.0.0.1", host="history.example") as page:
            assert (await page.get("/", headers=BEARER)).status_code == 200

    @pytest.mark.parametrize(
        "token", ["", "short", "x" * 1025, "a b" * 9, "ä" * 20, "x" * 20 + "\n"]
    )
    def test_a_weak_token_is_refused(self, token: str) -> None:
        with pytest.raises(InvalidInput, match="a token must have"):
            TokenAccess(token, Access())


async def form_of(page: httpx.AsyncClient, path: str = "/sign-in") -> dict[str, str]:
    """Return the token that a page's form has."""
    found = re.search(r'name="csrf_token" value="([^"]+)"', (await page.get(path)).text)
    assert found is not None
    return {"csrf_token": found[1]}


class TestSignIn:
    async def test_a_browser_is_sent_to_the_form_and_then_let_in(self, caller: Caller) -> None:
        async with caller(by_token()) as page:
            answer = await page.get("/", headers=HTML)
            assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
            form = await form_of(page)
            answer = await page.post("/sign-in", data={**form, "token": "wrong" * 4})
            assert answer.status_code == 403
            assert "This is not the token" in answer.text
            assert "wrong" not in answer.text
            answer = await page.post("/sign-in", data={**form, "token": TOKEN})
            assert (answer.status_code, answer.headers["location"]) == (303, "/")
            session = answer.headers["set-cookie"]
            assert "HttpOnly" in session
            assert "SameSite=Strict" in session
            assert TOKEN not in session
            assert (await page.get("/")).status_code == 200
            assert (await page.post("/sign-out", data=form)).status_code == 303
            assert (await page.get("/")).status_code == 401

    async def test_a_session_ends(self, caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
        async with caller(by_token()) as page:
            form = await form_of(page)
            await page.post("/sign-in", data={**form, "token": TOKEN})
            session = page.cookies["async_history_session"]
            now = float(session.partition(".")[0]) - SESSION_S
            cookie = {"cookie": f"async_history_session={session}"}
            assert (await page.get("/", headers=cookie)).status_code == 200
            longer = f"{int(now) + 2 * SESSION_S}.{session.partition('.')[2]}"
            forged = {"cookie": f"async_history_session={longer}"}
            assert (await page.get("/", headers=forged)).status_code == 401
            monkeypatch.setattr("time.time", lambda: now + SESSION_S + 1)
            assert (await page.get("/", headers=cookie)).status_code == 401

    async def test_over_tls_cookies_are_sent_over_tls_only(self, caller: Caller) -> None:
        async with caller(by_token()) as page:
            answer = await page.get("https://localhost/sign-in")
            assert "; Secure" in answer.headers["set-cookie"]


HOSTLESS = ("[", "http://[", "http://[::1", "//]")


async def test_a_header_that_names_no_host_is_refused(caller: Caller) -> None:
    async with caller(write=True) as page:
        for given in HOSTLESS:
            assert (await page.get("/", headers={"host": given})).status_code in (400, 421)
            kind = {"content-type": "application/json"}
            headers = {**kind, "origin": given}
            assert (await page.post("/api/undo", content=b"{}", headers=headers)).status_code in (
                400,
                403,
            )


class TestRulesOfTheHost:
    async def test_rules_may_be_plain_or_async_and_may_refuse(self, caller: Caller) -> None:
        async def known(request: Request) -> Access | None:
            return ANN if request.headers.get("x-user") == "ann" else None

        async with caller(known) as page:
            assert (await page.get("/", headers={"x-user": "ann"})).status_code == 200
            assert (await page.get("/")).status_code == 403
        async with caller(lambda _: ANN, client="10.0.0.1", host="history.example") as page:
            assert (await page.get("/")).status_code == 200

    async def test_an_http_error_of_a_rule_is_the_answer(self, caller: Caller) -> None:
        def teapot(request: Request) -> Access:
            raise HTTPException(418, "I'm a teapot")

        def denied(request: Request) -> Access:
            raise PermissionError("secret reason")

        async with caller(teapot) as page:
            answer = await page.get("/")
            assert (answer.status_code, answer.json()["detail"]) == (418, "I'm a teapot")
        async with caller(denied) as page:
            answer = await page.get("/")
            assert answer.status_code == 403
            assert "secret" not in answer.text

    async def test_only_an_access_object_lets_in(self, caller: Caller) -> None:
        async with caller(lambda _: True) as page:
            with pytest.raises(TypeError, match="must return an Access"):
                await page.get("/")

    async def test_a_bug_in_a_rule_is_answered_like_any_error(
        self, history: HistoryManager
    ) -> None:
        def broken(request: Request) -> Access:
            raise ZeroDivisionError("secret")

        app = new_app(history, broken, write=False, limits=WebLimits())
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as page:
            answer = await page.get("/")
            assert (answer.status_code, answer.json()["title"]) == (500, "InternalServerError")
            assert "content-security-policy" in answer.headers
            assert "secret" not in answer.text

    @pytest.mark.parametrize("owner", [Owner(), Owner(user_id=None), Owner(user_id="")])
    def test_an_access_of_an_owner_without_names_is_refused(self, owner: Owner) -> None:
        with pytest.raises(InvalidInput):
            Access(owner=owner)

    async def test_rules_are_applied_before_anything_is_read(self, caller: Caller) -> None:
        async with caller(lambda _: None) as page:
            for path in ("/", "/nothing", "/api/nothing", "/api/stats", "/memories/tea/history"):
                assert (await page.get(path)).status_code == 403


class TestChanges:
    async def test_changes_from_another_sites_page_are_refused(self, caller: Caller) -> None:
        async with caller(by_token()) as page:
            form = {**await form_of(page), "token": TOKEN}
            for headers in (
                {"origin": "https://evil.example"},
                {"origin": "null"},
                {"origin": "http://localhost.evil.example"},
                {"origin": "http://localhost:9999"},
                {"sec-fetch-site": "cross-site"},
                {"sec-fetch-site": "same-site"},
            ):
                answer = await page.post("/sign-in", data=form, headers=headers)
                assert answer.status_code == 403, headers
                assert "another site" in answer.text
            own = {"origin": "http://localhost", "sec-fetch-site": "same-origin"}
            assert (await page.post("/sign-in", data=form, headers=own)).status_code == 303

    async def test_changes_need_the_forms_token(self, caller: Caller) -> None:
        async with caller(by_token()) as page:
            form = await form_of(page)
            for given in ({}, {"csrf_token": ""}, {"csrf_token": form["csrf_token"][:-1] + "_"}):
                answer = await page.post("/sign-in", data={**given, "token": TOKEN})
                assert answer.status_code == 403
                assert "reload the page" in answer.text
            page.cookies.clear()
            assert (await page.post("/sign-in", data={**form, "token": TOKEN})).status_code == 403
            no_cookie = {"csrf_token": "", "token": TOKEN}
            assert (await page.post("/sign-in", data=no_cookie)).status_code == 403

    @pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", ""])
    async def test_changes_in_a_form_that_other_sites_can_send_are_refused(
        self, caller: Caller, kind: str
    ) -> None:
        async with caller(by_token()) as page:
            headers = {"content-type": kind}
            answer = await page.post("/sign-in", content=b'{"token": "x"}', headers=headers)
            assert answer.status_code == 415

    async def test_other_methods_are_refused(self, caller: Caller) -> None:
        async with caller() as page:
            for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "FOO"):
                answer = await page.request(method, "/")
                assert answer.status_code == 405
                assert "access-control-allow-origin" not in answer.headers


class TestSizes:
    async def test_sizes_of_bodies_queries_and_forms_are_limited(self, caller: Caller) -> None:
        limits = WebLimits(request=RequestLimits(body_bytes=1_000))
        async with caller(by_token(), limits=limits) as page:
            form = await form_of(page)
            answer = await page.post("/sign-in", data={**form, "token": "x" * 1_000})
            assert answer.status_code == 413

            async def parts() -> AsyncIterator[bytes]:
                for _ in range(3):
                    yield b"x" * 400

            kind = {"content-type": "application/x-www-form-urlencoded"}
            answer = await page.post("/sign-in", content=parts(), headers=kind)
            assert answer.status_code == 413, "its length was not given"
            for length in ("-1", "1e9", "9" * 5_000, "\u0661".encode().decode("latin-1")):
                raw = [(b"content-length", length.encode("latin-1"))]
                answer = await page.post("/sign-in", content=b"", headers=raw)
                assert answer.status_code == 413
            assert (await page.get(f"/sign-in?{'x' * 20_000}")).status_code == 414
            fields = "&".join(["a="] * 201)
            assert (await page.post("/sign-in", content=fields, headers=kind)).status_code == 400

    async def test_a_body_that_does_not_arrive_ends_the_request(
        self, history: HistoryManager
    ) -> None:
        limits = WebLimits(request=RequestLimits(body_timeout_s=0.01))
        app = new_app(history, None, write=False, limits=limits)
        sent: list[Message] = []
        scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": "/",
            "root_path": "",
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
            "client": ("127.0.0.1", 1),
        }

        async def never() -> Message:
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Message) -> None:
            sent.append(message)

        await app(scope, never, send)
        assert sent[0]["status"] == 408


async def test_a_read_that_takes_too_long_is_ended(
    history: HistoryManager, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = asyncio.Event()

    async def hang(**_: object) -> int:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    monkeypatch.setattr(history, "count_history", hang)
    limits = WebLimits(request=RequestLimits(read_timeout_s=0.01))
    async with caller(limits=limits) as page:
        answer = await page.get("/api/count_history")
        assert (answer.status_code, answer.json()["title"]) == (504, "GatewayTimeout")
        assert ended.is_set()


class TestPaths:
    async def test_the_stylesheets_are_served(self, caller: Caller) -> None:
        async with caller(by_token()) as page:
            answer = await page.get("/static/page.css")
            assert (answer.status_code, answer.headers["content-type"]) == (
                200,
                "text/css; charset=utf-8",
            )

    @pytest.mark.parametrize(
        "path",
        [
            "/static/../_app.py",
            "/static/..%2f_app.py",
            "/static/%2e%2e/%2e%2e/pyproject.toml",
            "/static/..\\_app.py",
            "/static//etc/passwd",
            "/static/%00",
            "/static/",
            "/static/page.css%00.html",
        ],
    )
    async def test_no_file_outside_of_the_folder_is_served(self, caller: Caller, path: str) -> None:
        async with caller() as page:
            answer = await page.get(httpx.URL("http://localhost").copy_with(raw_path=path.encode()))
            assert answer.status_code == 404

    async def test_an_error_for_a_browser_is_an_escaped_page(self, caller: Caller) -> None:
        async with caller() as page:
            answer = await page.get("/<script>alert(1)</script>", headers=HTML)
            assert answer.status_code == 404
            assert answer.headers["content-type"].startswith("text/html")
            assert "<script>alert" not in answer.text


async def test_another_origin_may_read_it_if_the_host_allows_it(
    history: HistoryManager,
) -> None:
    """As mem0's dashboard does, by Starlette's middleware around it."""
    theirs = "https://dashboard.example"
    inner = history_app(history, authorize=by_token(), write=True)
    cors = Middleware(CORSMiddleware, allow_origins=[theirs], allow_headers=["authorization"])
    transport = httpx.ASGITransport(Starlette(routes=[Mount("/", inner)], middleware=[cors]))
    path = "/memories/tea/history"
    async with httpx.AsyncClient(transport=transport, base_url="http://any.example") as page:
        for origin, allowed in ((theirs, theirs), ("https://evil.example", None)):
            asks = {
                "access-control-request-method": "GET",
                "access-control-request-headers": "authorization",
            }
            asked = await page.options(path, headers={"origin": origin, **asks})
            assert asked.headers.get("access-control-allow-origin") == allowed
            answer = await page.get(path, headers={"origin": origin, **BEARER})
            assert answer.headers.get("access-control-allow-origin") == allowed
            changed = await page.post(
                "/api/undo", json={"run_id": "r"}, headers={"origin": origin, **BEARER}
            )
            assert changed.status_code == 403
        assert [one["new_memory"] for one in answer.json()] == ["likes tea", "likes mate"]


class TestAllowedOrigins:
    """The option `serve --allow-origin`."""

    THEIRS = "https://dashboard.example"
    PATH = "/memories/tea/history"

    async def asked(self, page: httpx.AsyncClient, origin: str, **more: str) -> httpx.Response:
        """Ask as a browser does before it sends a request with a token."""
        headers = {
            "origin": origin,
            "access-control-request-method": "GET",
            "access-control-request-headers": "authorization",
            **{name.replace("_", "-"): value for name, value in more.items()},
        }
        return await page.options(self.PATH, headers=headers)

    async def test_a_page_of_an_allowed_origin_reads_with_the_token(self, caller: Caller) -> None:
        async with caller(by_token(), write=True, origins=[self.THEIRS]) as page:
            asked = await self.asked(page, self.THEIRS)
            assert asked.status_code == 200
            assert asked.headers["access-control-allow-origin"] == self.THEIRS
            assert asked.headers["access-control-allow-methods"] == "GET"
            assert "Authorization" in asked.headers["access-control-allow-headers"].title()
            headers = {"origin": self.THEIRS}
            answer = await page.get(self.PATH, headers={**headers, **BEARER})
            assert answer.headers["access-control-allow-origin"] == self.THEIRS
            assert "Origin" in answer.headers["vary"]
            assert "access-control-allow-credentials" not in answer.headers
            assert len(answer.json()) == 2
            assert (await page.get(self.PATH, headers=headers)).status_code == 401

    async def test_a_page_of_an_allowed_origin_changes_nothing(self, caller: Caller) -> None:
        async with caller(by_token(), write=True, origins=[self.THEIRS]) as page:
            for method in ("POST", "PUT", "DELETE"):
                asked = await self.asked(page, self.THEIRS, access_control_request_method=method)
                assert asked.status_code == 400
            headers = {"origin": self.THEIRS, **BEARER}
            undone = await page.post("/api/undo", json={"run_id": "r"}, headers=headers)
            assert undone.status_code == 403
            form = {**await form_of(page), "token": TOKEN}
            signed = await page.post("/sign-in", data=form, headers={"origin": self.THEIRS})
            assert signed.status_code == 403

    @pytest.mark.parametrize(
        "origin",
        [
            "https://evil.example",
            "http://dashboard.example",
            "https://dashboard.example:8443",
            "https://dashboard.example.evil.example",
            "https://evil.dashboard.example",
            "https://DASHBOARD.example",
            "null",
            "*",
        ],
    )
    async def test_pages_of_other_origins_do_not_read(self, caller: Caller, origin: str) -> None:
        async with caller(by_token(), origins=[self.THEIRS]) as page:
            asked = await self.asked(page, origin)
            assert asked.status_code == 400
            answer = await page.get(self.PATH, headers={"origin": origin, **BEARER})
            for one in (asked, answer):
                assert "access-control-allow-origin" not in one.headers

    async def test_without_allowed_origins_no_header_is_sent(self, caller: Caller) -> None:
        async with caller(by_token()) as page:
            asked = await self.asked(page, self.THEIRS)
            answer = await page.get(self.PATH, headers={"origin": self.THEIRS, **BEARER})
            assert (asked.status_code, answer.status_code) == (405, 200)
            for one in (asked, answer):
                assert not any(name.startswith("access-control") for name in one.headers)

    @pytest.mark.parametrize(
        "origin",
        [
            "*",
            "null",
            "",
            "dashboard.example",
            "https://",
            "https://*.example",
            "https://dashboard.example/",
            "https://dashboard.example/page",
            "https://dashboard.example?x",
            "https://user@dashboard.example",
            "https://Dashboard.example",
            "https://dashboard.example:port",
            "https://dashboard.example:443",
            "http://dashboard.example:0",
            "https://b\xfccher.ch",
            "https://[::1",
            "file:///page",
            " https://dashboard.example",
        ],
    )
    def test_a_bad_origin_is_refused(self, origin: str) -> None:
        with pytest.raises(InvalidInput, match="is not an origin"):
            check_origins(["http://localhost:3000", origin])

    def test_an_origin_is_accepted(self) -> None:
        for origin in ("http://localhost:3000", "https://[::1]:8443", "https://xn--bcher-kva.ch"):
            assert check_origins([origin]) == [origin]


async def test_a_mounted_page_stays_within_its_path(history: HistoryManager) -> None:
    inner = history_app(history, authorize=TokenAccess(TOKEN, replace(ANN, owner=None)))
    transport = httpx.ASGITransport(Starlette(routes=[Mount("/history", inner)]))
    async with httpx.AsyncClient(transport=transport, base_url="http://any.example") as page:
        answer = await page.get("/history/", headers=HTML)
        assert answer.headers["location"] == "/history/sign-in"
        form = await form_of(page, "/history/sign-in")
        answer = await page.post("/history/sign-in", data={**form, "token": TOKEN})
        assert answer.headers["location"] == "/history/"
        assert "Path=/history;" in answer.headers["set-cookie"]
        assert (await page.get("/history/")).status_code == 200
