"""`async-history serve`, in a process of its own."""

import asyncio
import signal
import subprocess
from pathlib import Path

import httpx
import pytest

from async_history import open_history
from tests.cli.programs import Run, Start
from tests.support.patience import LONG_S

pytestmark = [pytest.mark.subprocess, pytest.mark.once]


TOKEN = "correct-horse-battery-staple"  # noqa: S105 - a test's


@pytest.fixture
def url(tmp_path: Path) -> str:
    async def made() -> None:
        async with open_history(tmp_path / "history.db") as history:
            await history.add_history("tea", None, "likes secret tea", "ADD")

    asyncio.run(made())
    return str(tmp_path / "history.db")


def page_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().split()[0]


def ended(process: "subprocess.Popen[str]", number: int, word: str) -> list[str]:
    """End the server; return its log."""
    process.send_signal(number)
    _, err = process.communicate(timeout=LONG_S)
    assert process.returncode == 128 + number, err
    *logged, last = err.splitlines()
    assert last == f"async-history: {word}"
    return logged


def test_it_is_read_only_on_this_computer_and_logs_no_text(start: Start, url: str) -> None:
    process = start("serve", "--db", url, "--port", "0")
    page = page_of(process)
    assert page.startswith("http://127.0.0.1:")
    with httpx.Client(base_url=page) as client:
        found = client.get("/api/query_history", params={"text": "secret"}).json()["records"]
        assert [one["new_memory"] for one in found] == ["likes secret tea"]
        assert client.get("/memories/tea/history").json()[0]["memory_id"] == "tea"
        asked = {"memory_ids": ["tea"], "reason": "secret", "dry_run": False}
        assert client.post("/api/erase", json=asked).status_code == 403
        assert client.get(f"/{TOKEN}?token={TOKEN}").status_code == 404
        headers = {"authorization": f"Bearer {TOKEN}", "host": "evil.example"}
        assert client.get("/api/stats", headers=headers).status_code == 421
        with client.stream("GET", "/api/follow") as feed:
            assert next(feed.iter_lines()) == "retry: 3000"
            logged = ended(process, signal.SIGINT, "interrupted")
    assert [" ".join(line.split()[2:6]) for line in logged] == [
        "127.0.0.1 GET /api/query_history 200",
        "127.0.0.1 GET /memories/{memory_id:path}/history 200",
        "127.0.0.1 POST /api/erase 403",
        "127.0.0.1 GET - 404",
        "127.0.0.1 GET /api/stats 421",
        "127.0.0.1 GET /api/follow 200",
    ]


def test_a_token_allows_writes(start: Start, url: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    token = str(tmp_path / "token")
    process = start("serve", "--db", url, "--port", "0", "--write", "--token-file", token)
    page = page_of(process)
    asked = {"memory_ids": ["tea"], "reason": "asked", "dry_run": False}
    assert httpx.post(f"{page}api/erase", json=asked).status_code == 401
    headers = {"authorization": f"Bearer {TOKEN}"}
    answer = httpx.post(f"{page}api/erase", json=asked, headers=headers)
    assert answer.json()["records"] == 1
    assert not any(TOKEN in line for line in ended(process, signal.SIGTERM, "terminated"))


def test_a_token_from_the_environment(start: Start, url: str, environment: dict[str, str]) -> None:
    environment["ASYNC_HISTORY_TOKEN"] = TOKEN
    process = start("serve", "--db", url, "--port", "0")
    page = page_of(process)
    assert httpx.get(f"{page}api/stats").status_code == 401
    headers = {"authorization": f"Bearer {TOKEN}"}
    assert httpx.get(f"{page}api/stats", headers=headers).status_code == 200
    assert not any(TOKEN in line for line in ended(process, signal.SIGINT, "interrupted"))


def test_pages_of_an_allowed_origin_read(
    start: Start, url: str, environment: dict[str, str]
) -> None:
    environment["ASYNC_HISTORY_TOKEN"] = TOKEN
    theirs = ("http://localhost:3000", "https://dashboard.example")
    allowed = [word for origin in theirs for word in ("--allow-origin", origin)]
    process = start("serve", "--db", url, "--port", "0", *allowed)
    page = page_of(process)
    headers = {"authorization": f"Bearer {TOKEN}"}
    for origin, answered in ((theirs[0], theirs[0]), (theirs[1], theirs[1]), (page[:-1], None)):
        answer = httpx.get(f"{page}memories/tea/history", headers={**headers, "origin": origin})
        assert answer.status_code == 200
        assert answer.headers.get("access-control-allow-origin") == answered
    ended(process, signal.SIGINT, "interrupted")


def test_other_addresses_need_a_token(run: Run, url: str, tmp_path: Path) -> None:
    (tmp_path / "short").write_text("short")
    for more, said in (
        (("--host", "0.0.0.0"), "others can reach 0.0.0.0: give a token"),  # noqa: S104 - refused
        (("--token-file", str(tmp_path / "short")), "a token must have"),
        (("--token-file", str(tmp_path / "none")), "No such file"),
        (("--db", str(tmp_path / "none.db")), "no history in"),
        (("--allow-origin", "http://localhost:3000"), "may read only with a token: give a token"),
        (("--allow-origin", "*"), "'*' is not an origin: give a scheme, a host and a port"),
    ):
        done = run("serve", "--db", url, "--port", "0", *more)
        assert done.returncode in (1, 2)
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "none.db").exists()
