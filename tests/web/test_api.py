"""The JSON API: its answers, its description, and the limits of callers."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx
import jsonschema
import pytest

from async_history import HistoryManager, Owner, open_history
from async_history.web import Access
from async_history.web._app import WebLimits, new_app
from async_history.web._calls import CALLS, Call
from async_history.web._reach import ViewLimits
from async_history.web._values import Parameter
from tests.web.conftest import ANN, Caller

pytestmark = pytest.mark.once

ALL = Access(write=True, actor_id="operator")
NOW = (datetime.now(UTC) + timedelta(days=1)).isoformat()

ARGUMENTS: Mapping[str, Any] = {
    "memory_id": "tea",
    "when": NOW,
    "start": 1,
    "end": 2,
    "to": NOW,
    "reason": "asked",
}
"""Arguments that calls require, by name."""


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json()
    assert found["status"] == answer.status_code
    assert found["type"] == f"urn:async-history:error:{found['title']}"
    return answer.status_code, found["title"]


async def ask(page: httpx.AsyncClient, call: Call, **given: Any) -> httpx.Response:
    """Make a call with its required arguments and the given ones."""
    arguments = {one.name: ARGUMENTS[one.name] for one in call.parameters if one.is_required}
    arguments |= given
    if call.changes:
        return await page.post(f"/api/{call.name}", json=arguments)
    query: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, dict):
            query |= {f"{name}[{key}]": text for key, text in value.items()}
        else:
            query[name] = value
    return await page.get(f"/api/{call.name}", params=query)


def call_named(name: str) -> Call:
    return next(call for call in CALLS if call.name == name)


EXTRA: Mapping[str, Mapping[str, Any]] = {
    "rollback": {"user_id": "ann"},
    "undo": {"cause": {"request_id": "7"}},
    "erase": {"memory_ids": ["tea"]},
    "restore": {"to": 1},
}
"""The headers that a change requires."""


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
async def test_each_call_answers_as_described(caller: Caller, call: Call) -> None:
    async with caller(lambda _: ALL, write=True) as page:
        description = (await page.get("/api/openapi.json")).json()
        described = description["paths"][f"/api/{call.name}"]["post" if call.changes else "get"]
        schema = described["responses"]["200"]["content"]["application/json"]["schema"]
        for more in ({}, {"dry_run": False}) if call.changes else ({},):
            answer = await ask(page, call, **EXTRA.get(call.name, {}), **more)
            assert answer.status_code == 200, answer.text
            whole = {**schema, "components": description["components"]}
            jsonschema.Draft202012Validator(whole).validate(answer.json())
            if call.changes:
                assert answer.json()["done"] is bool(more)


async def test_the_description_is_valid(caller: Caller) -> None:
    async with caller() as page:
        description = (await page.get("/api/openapi.json")).json()
    assert description["openapi"].startswith("3.1.")
    names = [way["operationId"] for path in description["paths"].values() for way in path.values()]
    assert sorted(names) == sorted([*(call.name for call in CALLS), "follow", "mem0_history"])
    for schema in description["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


class TestReads:
    async def test_pages_continue_to_the_end(self, caller: Caller) -> None:
        async with caller() as page:
            seen: list[str] = []
            after: dict[str, str] = {}
            while True:
                url = "/api/query_history"
                answer = (await page.get(url, params={"page_size": 2, **after})).json()
                if not answer["records"]:
                    break
                assert len(answer["records"]) <= 2
                seen += [record["new_memory"] for record in answer["records"]]
                after = {"after": answer["cursor"]}
            assert seen == [
                "no one's",
                "drives a blue car",
                "drives a red car",
                "likes mate",
                "likes tea",
            ]

    async def test_the_filters_equal_the_librarys(self, caller: Caller) -> None:
        async with caller() as page:
            for query, count in (
                ({"memory_id": ["tea", "any"]}, 3),
                ({"user_id": "bob"}, 2),
                ({"event": "UPDATE"}, 2),
                ({"text": "red"}, 2),
                ({"cause[request_id]": "7"}, 1),
                ({"actor_id": "agent"}, 1),
                ({"until": "2020-01-01T00:00:00Z"}, 0),
                ({"since": "2020-01-01T00:00:00+02:00"}, 5),
            ):
                answer = await page.get("/api/count_history", params=query)
                assert answer.json() == {"count": count}, query

    async def test_a_page_ends_early_if_its_texts_are_long(
        self, history: HistoryManager, caller: Caller
    ) -> None:
        await history.batch_add_history(
            [{"memory_id": "m", "event": "ADD", "new_memory": "x" * 100} for _ in range(8)]
        )
        limits = WebLimits(view=ViewLimits(part=2, page_chars=300))
        async with caller(limits=limits) as page:
            first = (await page.get("/api/query_history?memory_id=m&page_size=8")).json()
            assert len(first["records"]) == 4
            rest = await page.get(
                "/api/query_history", params={"memory_id": "m", "after": first["cursor"]}
            )
            assert len(rest.json()["records"]) == 4

    async def test_a_search_reads_few_long_texts_after_it_has_found_none(
        self, history: HistoryManager, caller: Caller
    ) -> None:
        for text in ("x" * 100, "short"):
            await history.batch_add_history(
                [{"memory_id": "m", "event": "ADD", "new_memory": text} for _ in range(20)]
            )
        limits = WebLimits(view=ViewLimits(scan_first=1, search_s=60, page_chars=300))
        async with caller(limits=limits) as page:
            answer = (await page.get("/api/query_history?text=x&page_size=50")).json()
            assert len(answer["records"]) in (4, 5)

    async def test_a_search_that_takes_long_is_continued(self, caller: Caller) -> None:
        """Each answer looks at two or three records, and says whether it is the last one."""
        limits = WebLimits(view=ViewLimits(search_s=0, scan_first=2))
        async with caller(limits=limits) as page:
            asked = {"text": "likes"}
            answers: list[Any] = []
            while not answers or not answers[-1]["is_last"]:
                answers.append((await page.get("/api/query_history", params=asked)).json())
                asked["after"] = answers[-1]["cursor"]
            found = [[one["memory_id"] for one in answer["records"]] for answer in answers]
            assert found == [[], ["tea", "tea"], []]

    async def test_bad_arguments_are_named(self, caller: Caller) -> None:
        async with caller(lambda _: ALL, write=True) as page:
            for path in (
                "query_history?page_size=0",
                "query_history?page_size=201",
                "query_history?page_size=-1",
                "query_history?page_size=x",
                "query_history?page_size=1&page_size=2",
                "query_history?nothing=1",
                "query_history?token=abcdefgh",
                "query_history?event=MOVE",
                "query_history?order=sideways",
                "query_history?since=2026-01-01",
                "query_history?since=yesterday",
                "query_history?after=x",
                "query_history?cause=x",
                "query_history?cause[=x",
                "query_history?user_id=",
                "query_history?user_id=%00",
                "memory_at?memory_id=tea&when=9",
                "memory_at?memory_id=tea&when=0",
                "memory_at?memory_id=tea",
                "diff?memory_id=tea&start=1&end=3",
                "memories_at?when=1",
                "operations?after=x",
                "follow?after=x",
            ):
                answer = await page.get(f"/api/{path}")
                assert problem(answer) == (400, "InvalidInput"), path
                assert "abcdefgh" not in answer.text
            for body in (
                b"",
                b"[]",
                b"1",
                b"{",
                b"\xff",
                b"[" * 100_000,
                b'{"reason": 1, "memory_ids": ["tea"]}',
                b'{"reason": "x", "memory_ids": "tea"}',
                b'{"reason": "x", "memory_ids": [1]}',
                b'{"reason": "x", "memory_ids": ["tea"], "vacuum": "full"}',
                b'{"reason": "x", "memory_ids": ["tea"], "dry_run": "no"}',
                b'{"reason": "x", "memory_ids": ["tea"], "dry_run": 0}',
                b'{"reason": "x"}',
                b'{"reason": "x", "memory_ids": ["\\ud800"]}',
                b'{"reason": "x", "memory_ids": [""]}',
                b'{"reason": "\\u0000", "memory_ids": ["tea"]}',
                b'{"reason": "x", "user_id": "ann", "run_id": "r"}',
                b'{"memory_ids": ["tea"]}',
            ):
                headers = {"content-type": "application/json"}
                answer = await page.post("/api/erase", content=body, headers=headers)
                assert problem(answer) == (400, "InvalidInput"), body
            many = {"reason": "x", "memory_ids": [str(n) for n in range(1_001)]}
            assert problem(await page.post("/api/erase", json=many))[0] == 400
            assert problem(await page.get("/api/get_history?memory_id=none")) == (404, "NotFound")
            assert problem(await page.get("/api/nothing")) == (404, "NotFound")
            assert problem(await page.get("/api/erase"))[0] == 405

    @pytest.mark.parametrize(
        "moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999999-14:00"]
    )
    async def test_the_first_and_last_instants_are_accepted(
        self, caller: Caller, moment: str
    ) -> None:
        async with caller(lambda _: ALL, write=True) as page:
            for call in CALLS:
                for one in call.parameters:
                    if one.name in ("since", "until", "when", "start", "end", "to"):
                        answer = await ask(
                            page, call, **{**EXTRA.get(call.name, {}), one.name: moment}
                        )
                        assert answer.status_code in (200, 400), (call.name, one.name, answer.text)

    async def test_a_closed_history_is_unavailable(
        self, history: HistoryManager, caller: Caller
    ) -> None:
        async with caller() as page:
            await history.aclose()
            answer = await page.get("/api/count_history")
            assert problem(answer) == (503, "HistoryClosed")

    async def test_a_memory_that_is_too_long_must_be_read_by_pages(
        self, history: HistoryManager, caller: Caller
    ) -> None:
        async with caller(limits=WebLimits(view=ViewLimits(memory_records=1))) as page:
            answer = await page.get("/api/memory_at?memory_id=tea&when=1")
            assert problem(answer)[0] == 400
            assert "by pages" in answer.json()["detail"]
            assert (await page.get("/api/memory_at?memory_id=any&when=1")).status_code == 200


class TestMemories:
    async def test_each_memory_is_there_once_over_all_pages(self) -> None:
        async with open_history("memory://") as history:
            await history.batch_add_history(
                [
                    {
                        "memory_id": f"m{n % 7}",
                        "event": "ADD" if n < 7 else "UPDATE",
                        "new_memory": f"{n}",
                        "owner": {"user_id": "ann"},
                        "created_at": f"2026-01-{n + 1:02}T00:00:00Z",
                        "updated_at": f"2026-01-{n + 1:02}T00:00:00Z",
                    }
                    for n in range(21)
                ]
            )
            await history.add_history("m0", None, None, "DELETE", updated_at="2026-02-01T00:00:00Z")
            await self._check(history)

    async def _check(self, history: HistoryManager) -> None:
        for walked in (2_000, 3):
            limits = WebLimits(view=ViewLimits(walked=walked))
            app = new_app(history, None, write=False, limits=limits)
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as page:
                for name, query in (
                    ("memories", {}),
                    ("memories", {"user_id": "ann"}),
                    ("memories_at", {"when": "2026-01-09T12:00:00Z"}),
                    ("memories_at", {"when": "2026-01-09T12:00:00Z", "user_id": "ann"}),
                    ("memories_at", {"when": "2025-01-09T12:00:00Z"}),
                ):
                    found = await self._all(page, name, query)
                    if name == "memories":
                        wanted = [one async for one in history.memories(user_id="ann")]
                    else:
                        when = datetime.fromisoformat(query["when"])
                        wanted = [one async for one in history.memories_at(when)]
                    assert len(found) == len(set(found)), "each memory once"
                    assert sorted(found) == sorted((one.memory_id, one.id) for one in wanted)

    async def _all(
        self, page: httpx.AsyncClient, name: str, query: dict[str, Any]
    ) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        after: dict[str, str] = {}
        while True:
            asked = {**query, **after, "page_size": 2}
            answer = (await page.get(f"/api/{name}", params=asked)).json()
            found += [(one["memory_id"], one["id"]) for one in answer["records"]]
            if answer["cursor"] is None:
                return found
            after = {"after": answer["cursor"]}


class TestChanges:
    async def test_changes_are_refused_unless_page_and_caller_allow_them(
        self, history: HistoryManager, caller: Caller
    ) -> None:
        before = [one async for one in history.query_history()]
        for access, write in ((ALL, False), (Access(), True)):
            async with caller(lambda _, access=access: access, write=write) as page:
                for call in (call for call in CALLS if call.changes):
                    for dry_run in (True, False):
                        extra = EXTRA[call.name]
                        answer = await ask(page, call, **extra, dry_run=dry_run)
                        assert problem(answer) == (403, "Forbidden"), call.name
        assert [one async for one in history.query_history()] == before
        assert await history.operations() == []

    async def test_no_change_is_made_unless_preview_is_off(
        self, history: HistoryManager, caller: Caller
    ) -> None:
        before = [one async for one in history.query_history()]
        async with caller(lambda _: ALL, write=True) as page:
            for call in (call for call in CALLS if call.changes):
                answer = await ask(page, call, **EXTRA[call.name])
                assert answer.json()["done"] is False, answer.text
        assert [one async for one in history.query_history()] == before

    async def test_no_change_is_made_by_get(self, caller: Caller) -> None:
        async with caller(lambda _: ALL, write=True) as page:
            for call in (call for call in CALLS if call.changes):
                assert (await page.get(f"/api/{call.name}")).status_code == 405

    async def test_changes_name_their_actor(self, history: HistoryManager, caller: Caller) -> None:
        async with caller(lambda _: ALL, write=True) as page:
            for call in (call for call in CALLS if call.changes):
                answer = await ask(page, call, **EXTRA[call.name], dry_run=False)
                assert answer.status_code == 200
        made = await history.operations()
        assert [one.kind for one in made] == ["restore", "rollback", "undo", "erase"]
        assert {one.actor_id for one in made if one.kind != "erase"} == {"operator"}

    async def test_restoring_shows_what_it_would_do(
        self, history: HistoryManager, caller: Caller
    ) -> None:
        async with caller(lambda _: ALL, write=True) as page:
            asked = {"memory_id": "tea", "to": 1}
            answer = (await page.post("/api/restore", json=asked)).json()
            assert (answer["old_memory"], answer["new_memory"]) == ("likes mate", "likes tea")
            answer = (await page.post("/api/restore", json={**asked, "dry_run": False})).json()
            assert answer["record"]["new_memory"] == "likes tea"
            assert (await history.get_history("tea"))[-1].actor_id == "operator"
            early = {"memory_id": "tea", "to": "2020-01-01T00:00:00Z"}
            assert problem(await page.post("/api/restore", json=early))[0] == 400


BOBS: Mapping[str, Any] = {
    "memory_id": "car",
    "memory_ids": ["car"],
    "user_id": "bob",
    "run_id": "r",
    "cause": {"request_id": "7"},
    "text": "car",
    "session_scopes": ["user_id=bob"],
    "actor_id": "bob",
}
"""Arguments that name Bob's records."""


def reaching(one: Parameter, bobs_record: str, cursor: str) -> Any:
    """Return a value of a parameter that names something of Bob's; None if there is none."""
    more = {"record_ids": [bobs_record], "after": cursor}
    return {**BOBS, **more}.get(one.name)


class TestMemoriesOfAnotherOwner:
    """What Ann, who is limited to her memories, gets of Bob's, by every argument of every call."""

    @pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
    async def test_another_owners_memories_are_neither_shown_nor_changed(
        self, history: HistoryManager, caller: Caller, call: Call
    ) -> None:
        await history.add_history(
            "car", "drives a blue car", "drives a green car", "UPDATE", actor_id="bob"
        )
        await history.save_messages([{"role": "user", "content": "my car"}], "user_id=bob")
        bobs = await history.get_history("car")
        page_ = await anext(history.query_history(page_size=3).pages())
        async with caller(lambda _: ANN, write=True) as page:
            tried: list[dict[str, Any]] = [{}]
            for one in call.parameters:
                value = reaching(one, bobs[0].id, page_.cursor or "")
                if value is not None:
                    tried += [{one.name: value}, {one.name: value, **EXTRA.get(call.name, {})}]
            for given in tried:
                more = {"dry_run": False} if call.changes else {}
                answer = await ask(page, call, **given, **more)
                assert answer.status_code in (200, 400, 403, 404), (given, answer.text)
                for secret in ("drives", "bob", *(one.id for one in bobs)):
                    assert secret not in answer.text, given
                assert await history.get_history("car") == bobs, given
        assert len(await history.get_last_messages("user_id=bob")) == 1
        assert [one for one in await history.operations() if one.actor_id != "ann"] == [
            one for one in await history.operations() if one.kind == "erase"
        ]

    async def test_another_owners_memories_look_like_missing_ones(self, caller: Caller) -> None:
        async with caller(lambda _: ANN, write=True) as page:
            for call in CALLS:
                if any(one.name == "memory_id" and one.is_required for one in call.parameters):
                    known = await ask(page, call, memory_id="car")
                    unknown = await ask(page, call, memory_id="none")
                    assert (known.status_code, known.text) == (404, unknown.text), call.name
            known, unknown = [
                await page.get(f"/memories/{name}/history") for name in ("car", "none")
            ]
            assert (known.status_code, known.text) == (200, unknown.text)

    async def test_the_store_itself_is_not_shown(self, caller: Caller) -> None:
        async with caller(lambda _: ANN, write=True) as page:
            for path in ("stats", "operations"):
                assert problem(await page.get(f"/api/{path}")) == (403, "Forbidden")
            undone = await page.post("/api/undo", json={"cause": {"request_id": "7"}})
            assert problem(undone) == (403, "Forbidden")

    async def test_the_callers_own_memories_are_shown_and_changed(
        self, history: HistoryManager, caller: Caller
    ) -> None:
        async with caller(lambda _: ANN, write=True) as page:
            found = (await page.get("/api/query_history")).json()["records"]
            assert {one["memory_id"] for one in found} == {"tea"}
            assert (await page.get("/api/count_history?user_id=ann")).json() == {"count": 2}
            mine = {"memory_id": "tea", "to": 1, "dry_run": False}
            assert (await page.post("/api/restore", json=mine)).json()["done"] is True
            whole = {"user_id": "ann", "reason": "asked", "dry_run": False}
            report = (await page.post("/api/erase", json=whole)).json()
            assert (report["records"], report["copies"], report["remains"]) == (3, [], [])
            assert (await page.get("/api/query_history")).json()["records"] == []

    async def test_a_part_of_an_owner_is_not_the_whole(
        self, history: HistoryManager, caller: Caller
    ) -> None:
        """A caller limited to a user's memories with one agent can't erase the user."""
        owner = Owner(user_id="bob", run_id="r")
        async with caller(lambda _: Access(owner=owner, write=True), write=True) as page:
            asked = {"user_id": "bob", "reason": "x", "dry_run": False}
            assert problem(await page.post("/api/erase", json=asked)) == (403, "Forbidden")
        assert (await history.get_history("car"))[0].new_memory == "drives a red car"


class TestAsMem0Answers:
    async def test_the_answer_equals_get_history(
        self, history: HistoryManager, caller: Caller
    ) -> None:
        odd = ("a/b c?", "..", "a/../b", "/", "a\nb\r\n", "history", "%2F", "\u2028")
        for memory_id in odd:
            await history.add_history(memory_id, None, '<script>"', "ADD")
        await history.batch_add_history(
            [{"memory_id": "m", "event": "ADD", "new_memory": str(n)} for n in range(120)]
        )
        async with caller() as page:
            for memory_id in ("tea", "m", "none", *odd):
                path = quote(memory_id, safe="").replace(".", "%2E")
                answer = await page.get(f"/memories/{path}/history")
                assert answer.status_code == 200
                assert answer.headers["content-type"] == "application/json"
                wanted = [one.as_dict() for one in await history.get_history(memory_id)]
                assert bool(wanted) is (memory_id != "none")
                assert json.loads(answer.text) == wanted


class TestAgainstACallerWithAnOwner:
    async def test_no_field_finds_records_of_others(self, caller: Caller) -> None:
        """Whatever a caller sends, each route answers with the caller's own records, or refuses."""
        asked = {
            "memory_id": "car",
            "record_id": "x",
            "which": "new_memory",
            "start": "1",
            "end": "2",
            "version": "1",
            "when": "2100-01-01T00:00:00Z",
        }
        others = ("bob", "red car", "blue car", "no one")
        reads = [call.name for call in CALLS if not call.changes]
        paths = [*("/", "/memory", "/diff", "/at", "/search", "/live", "/stats", "/text")]
        async with caller(lambda _: ANN, write=True) as page:
            for path in (*paths, *(f"/api/{name}" for name in reads), "/memories/car/history"):
                for query in (
                    asked,
                    {"memory_id": "car"},
                    {"run_id": "r"},
                    {"cause_key": "request_id", "cause_value": "7"},
                    {"cause[request_id]": "7"},
                    {"text": "car"},
                    {"actor_id": "agent"},
                ):
                    answer = await page.get(path, params=query, headers={"accept": "text/html"})
                    assert answer.status_code < 500
                    found = [text for text in others if text in answer.text]
                    assert found == [], (path, query)

    async def test_a_name_given_twice_widens_nothing(self, caller: Caller) -> None:
        async with caller(lambda _: ANN, write=True) as page:
            for query in ("user_id=ann&user_id=bob", "user_id=bob&user_id=ann", "user_id=bob"):
                for path in ("/", "/search", "/live", "/at", "/stats", "/api/query_history"):
                    assert "car" not in (await page.get(f"{path}?{query}")).text, (path, query)
            twice = await page.get("/api/query_history?user_id=ann&user_id=ann")
            assert (twice.status_code, twice.json()["title"]) == (400, "InvalidInput")
            assert "user_id is given twice" in twice.json()["detail"]
            both = await page.get("/api/query_history?memory_id=tea&memory_id=car")
            assert {one["memory_id"] for one in both.json()["records"]} == {"tea"}

    async def test_a_change_is_made_only_to_the_callers_memories(
        self, history: HistoryManager, caller: Caller
    ) -> None:
        to = {"to": "2000-01-01T00:00:00Z", "dry_run": False}
        why = {"reason": "asked", "dry_run": False}
        async with caller(lambda _: ANN, write=True) as page:
            for name, asked in (
                ("rollback", {**to, "memory_ids": []}),
                ("rollback", {**to, "memory_ids": ["tea", "car"]}),
                ("rollback", {**to, "memory_ids": ["tea"], "user_id": "bob"}),
                ("rollback", {**to, "run_id": "r"}),
                ("erase", {**why, "memory_ids": ["tea", "car"]}),
                ("erase", {**why, "memory_ids": ["tea"], "user_id": "bob"}),
                ("erase", {**why, "run_id": "r"}),
                ("erase", {**why, "session_scopes": ["user_id=bob"]}),
                ("restore", {"memory_id": "car", "to": 1, "dry_run": False}),
            ):
                await page.post(f"/api/{name}", json=asked)
        records = [one.new_memory async for one in history.query_history()]
        assert records == ["likes tea", "likes mate", "drives a red car", "drives a blue car",
                           "no one's"]  # fmt: skip


async def test_text_that_cannot_be_stored_is_refused(caller: Caller) -> None:
    async with caller(lambda _: ALL, write=True) as page:
        for text in ("\ud800", "a\x00b"):
            for name, asked in (
                ("erase", {"memory_ids": [text], "reason": "asked"}),
                ("erase", {"memory_ids": ["tea"], "reason": text}),
                ("undo", {"cause": {text: "x"}}),
                ("undo", {"cause": {"request_id": text}}),
                ("restore", {"memory_id": text, "to": 10**30}),
            ):
                body = json.dumps({**asked, "dry_run": False})
                headers = {"content-type": "application/json"}
                answer = await page.post(f"/api/{name}", content=body, headers=headers)
                assert answer.status_code in (400, 404), (name, asked)
