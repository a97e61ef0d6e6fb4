"""The command as people and scripts run it: mostly in new processes."""

import asyncio
import contextlib
import hashlib
import io
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from mem0.memory.storage import SQLiteManager
from typer.testing import CliRunner

from async_history import HistoryRecord, StorageFull, __version__, open_history
from async_history._opening import without_secrets
from async_history.cli import demo as demo_module
from async_history.cli import line_reader as lines_module
from async_history.cli import log as log_module
from async_history.cli import record as record_module
from async_history.cli.app import app
from async_history.cli.difference import difference
from async_history.cli.record import Recording
from async_history.cli.terminal import escape_controls
from tests.cli.programs import ENDS, Run, Start, lines_of
from tests.subprocesses.commands import Result
from tests.support.patience import LONG_S

pytestmark = [pytest.mark.subprocess, pytest.mark.once]  # test_docs tries it on each CPython


def add(memory_id: str, text: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"memory_id": memory_id, "event": "ADD", "new_memory": text, **fields}


TEA = add("tea", "likes green tea", actor_id="ann", role="user")
TEA_CHANGED = {
    "memory_id": "tea",
    "event": "UPDATE",
    "old_memory": "likes green tea",
    "new_memory": "likes black tea",
    "updated_at": "2026-11-20T09:41:15.250-07:00",
}
TEA_GONE = {"memory_id": "tea", "event": "DELETE", "old_memory": "likes black tea"}


def texts_of(result: Result) -> list[str | None]:
    return [json.loads(line)["new_memory"] for line in result.stdout.splitlines()]


def state_of(folder: Path) -> dict[str, str]:
    """Return the names and digests of the files in a folder."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file()
    }


def mem0_history(file: Path, changes: Iterable[tuple[str | None, str | None, str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    manager = SQLiteManager(str(file))
    for number, (old, new, event) in enumerate(changes):
        manager.add_history(
            "m", old, new, event, created_at=f"2025-06-0{number + 1}T10:00:00-07:00"
        )
    manager.close()


# The whole


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"async-history {__version__}\n"


def test_no_arguments_show_the_help(run: Run) -> None:
    result = run()
    assert result.returncode == 2
    assert all(command in result.stdout for command in ("demo", "record", "log"))


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_a_missing_extra_is_named(missing: str, tmp_path: Path, environment: Any) -> None:
    program = (
        f"import sys; sys.modules[{missing!r}] = None; from async_history.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 1
    assert "pip install 'async-history[cli]'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["log", "m", "--db", "ftp://ann:s3cret@host/db"], 2, "no backend for 'ftp'"),
        (["log", "m", "--db", "sqlite://ann:s3cret@host/db"], 2, "names no host"),
        (["record", "nowhere.jsonl"], 1, "nowhere.jsonl: No such file"),
        (["record", "."], 1, ".: Is a directory"),
        (["log", "m", "--db", "nowhere.db"], 1, "no history in nowhere.db"),
        (["log", "m", "--db", "text.db"], 1, "not a SQLite database"),
        (["record", "--db", "text.db"], 1, "not a SQLite database"),
        (["log", "m", "--db", "empty.db"], 1, "no history in empty.db"),
    ],
)
def test_an_error_is_one_line_and_a_status(
    arguments: list[str], status: int, said: str, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "text.db").write_text("not a database, but long enough to be taken for one" * 9)
    (tmp_path / "empty.db").touch()
    before = state_of(tmp_path)
    result = run(*arguments, stdin=lines_of(TEA))
    assert result.returncode == status
    assert said in result.stderr
    assert result.stderr.startswith("async-history: ")
    assert result.stderr.count("\n") == 1
    assert "s3cret" not in result.stderr
    assert result.stdout == ""
    assert state_of(tmp_path) == before


def test_ctrl_c_anywhere_is_a_line_and_a_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(url: str, memory_id: str, *, as_json: bool) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(log_module, "log", interrupted)
    result = CliRunner().invoke(app, ["log", "m"])
    assert (result.exit_code, result.stderr) == (130, "async-history: interrupted\n")


def test_secrets_are_masked() -> None:
    shown = without_secrets("at postgresql://ann:p/a:s@s@host/db?sslpassword=word&x=1, failed")
    assert shown == "at postgresql://ann:***@host/db?sslpassword=***&x=1, failed"
    assert without_secrets("db2://ann:s3cret@host") == "db2://ann:***@host"
    for scheme in ("db2", "postgresql+psycopg2", "x10", "mysql"):
        assert without_secrets(f"no {scheme}:ann:s3cret@host/db") == f"no {scheme}:ann:***@host/db"


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////home/a:b@c.db",
        "mysql+asyncmy://ann:***@host:3306/db refuses this user ((1045, \"'ann'@'host': YES\"))",
        "postgresql://ann@host:5432/db: the memory ann@example.com has no record",
        "no record at 2030-01-01T10:00:00+00:00 of ann@example.com",
    ],
)
def test_what_holds_no_secret_is_shown(text: str) -> None:
    assert without_secrets(text) == text


def test_the_url_is_the_options_else_the_environments(run: Run, tmp_path: Path) -> None:
    run("record", stdin=lines_of(TEA), ASYNC_HISTORY_URL="sqlite:///by-name.db")
    run("record", "--db", "by-option.db", stdin=lines_of(TEA), ASYNC_HISTORY_URL="by-name.db")
    run("record", stdin=lines_of(TEA), ASYNC_HISTORY_URL="")
    assert set(state_of(tmp_path)) == {"by-name.db", "by-option.db", "history.db"}


# demo


def test_demo_then_log_of_the_memory_it_names(run: Run, tmp_path: Path) -> None:
    result = run("demo", "--agents", "20", "--memories", "3")
    assert result.returncode == 0, result.stderr
    assert "180 events of 20 agents" in result.stdout
    for figure in ("events a second", "ms p50", "ms p99", "longest stall"):
        assert figure in result.stdout
    named = re.search(r"async-history log (\S+)\n", result.stdout)
    assert named is not None
    log = run("log", named[1])
    assert log.returncode == 0
    assert re.findall("ADD|UPDATE|DELETE", log.stdout) == ["ADD", "UPDATE", "DELETE"]
    assert log.stdout.split("\n", 1)[1] in result.stdout
    with sqlite3.connect(tmp_path / "history.db") as connection:
        counted = (
            "SELECT count(*), count(DISTINCT memory_id), count(DISTINCT actor_id) FROM history"
        )
        assert connection.execute(counted).fetchone() == (180, 60, 20)
    connection.close()


@pytest.mark.parametrize("name", ["history.db", "history.db-wal", "history.db-journal"])
def test_demo_refuses_what_it_did_not_make(name: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"somebody's")
    (tmp_path / "history-2.db").touch()
    before = state_of(tmp_path)
    result = run("demo", "--agents", "2", "--memories", "1")
    assert result.returncode == 1
    assert f"{name} exists" in result.stderr
    assert "--db history-3.db" in result.stderr
    assert state_of(tmp_path) == before


def test_demo_refuses_a_link_to_nowhere(run: Run, tmp_path: Path) -> None:
    (tmp_path / "history.db").symlink_to("elsewhere.db")
    assert run("demo", "--agents", "2", "--memories", "1").returncode == 1
    assert not (tmp_path / "elsewhere.db").exists()


def test_demo_refuses_a_file_made_after_its_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "history.db"
    file.write_bytes(b"somebody's")
    monkeypatch.setattr("os.path.lexists", lambda path: False)
    assert demo_module.demo(str(file), agents=1, memories=1) == 1
    assert file.read_bytes() == b"somebody's"


async def test_demo_adds_nothing_to_a_history_without_a_file(tmp_path: Path) -> None:
    """As for a server. This tries the part after the check for a file."""
    url = str(tmp_path / "history.db")
    async with open_history(url) as history:
        await history.add_history("m", None, "tea", "ADD")
    assert await demo_module._run(url, demo_module.Run(), 1, 1) is None
    assert _count(tmp_path / "history.db") == 1


def test_demo_refuses_its_own_file_too(run: Run, tmp_path: Path) -> None:
    few = ("demo", "--agents", "2", "--memories", "1", "--db", "sqlite:///a/b/c.db")
    assert run(*few).returncode == 0
    before = state_of(tmp_path / "a/b")
    assert run(*few).returncode == 1
    assert state_of(tmp_path / "a/b") == before


@pytest.mark.parametrize("url", ["memory://", "null://", "sqlite://"])
def test_demo_without_a_file(url: str, run: Run, tmp_path: Path) -> None:
    result = run("demo", "--agents", "3", "--memories", "2", "--db", url)
    assert result.returncode == 0, result.stderr
    assert "18 events" in result.stdout
    assert "\n  async-history log " not in result.stdout
    assert not state_of(tmp_path)


@pytest.mark.parametrize(("number", "word"), ENDS)
def test_demo_interrupted_keeps_what_it_counted(
    number: int, word: str, start: Start, tmp_path: Path
) -> None:
    demo = start("demo", "--memories", "100000")
    while not _count(tmp_path / "history.db"):
        assert demo.poll() is None
    demo.send_signal(number)
    _, said = demo.communicate(timeout=LONG_S)
    assert demo.returncode == 128 + number
    counted = re.search(
        rf"^async-history: {word}; ([\d,]+) events? (?:was|were) recorded$", said, re.M
    )
    assert counted is not None, said
    connection = sqlite3.connect(tmp_path / "history.db")
    (kept,) = connection.execute("SELECT count(*) FROM history").fetchone()
    connection.close()
    assert kept == int(counted[1].replace(",", "")) > 0


# record


def test_record_names_bad_lines_and_records_the_rest(run: Run) -> None:
    bad = {
        2: b"{oops",
        3: b'["a list"]',
        4: b'{"memory_id": "tea", "event": "FORGET"}',
        5: b'{"memory_id": "tea", "event": "ADD", "colour": "red"}',
        6: b'{"event": "ADD"}',
        7: b'{"memory_id": "tea", "event": "ADD", "new_memory": "\xff"}',
        8: b'{"memory_id": "tea", "event": "ADD", "new_memory": "\\ud800"}',
        9: b'{"memory_id": "tea", "event": "ADD", "new_memory": 7}',
        10: b"[" * 100_000,
        11: b'{"memory_id": "tea", "event": "ADD", "role": ' + b"9" * 5_000 + b"}",
        12: b"null",
    }
    good = [lines_of(line).encode() for line in (TEA, TEA_CHANGED, TEA_GONE)]
    stdin = b"\xef\xbb\xbf" + good[0] + b"\n".join(bad.values()) + b"\n\n \t\r\n"
    result = run("record", "-", stdin=stdin + good[1] + good[2].rstrip())
    assert result.returncode == 1
    assert result.stdout == "recorded 3 lines, refused 11 in history.db\n"
    named = re.findall(r"^async-history: stdin: line (\d+): \S", result.stderr, re.MULTILINE)
    assert named == [str(number) for number in bad]
    for reason in (
        "'FORGET'",
        "'colour' is not a field",
        "memory_id is missing",
        "not UTF-8 at byte",
        "not JSON at character",
    ):
        assert reason in result.stderr
    assert texts_of(run("log", "tea", "--json")) == ["likes green tea", "likes black tea", None]


def test_record_a_file_in_order_many_at_once(run: Run, tmp_path: Path) -> None:
    updates = [
        {"memory_id": f"m{n % 3}", "event": "UPDATE", "new_memory": str(n)} for n in range(9_000)
    ]
    (tmp_path / "updates.jsonl").write_text(lines_of(*updates))
    result = run("record", "updates.jsonl")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "recorded 9,000 lines in history.db\n"
    for memory in range(3):
        found = texts_of(run("log", f"m{memory}", "--json"))
        assert found == [str(n) for n in range(memory, 9_000, 3)]


def test_a_repeated_id_is_one_record_or_a_bad_line(run: Run) -> None:
    other = {**TEA, "new_memory": "likes no tea", "id": "1"}
    result = run("record", stdin=lines_of({**TEA, "id": "1"}, {**TEA, "id": "1"}, other))
    assert result.returncode == 1
    assert result.stdout == "recorded 2 lines, refused 1 in history.db\n"
    assert "line 3: " in result.stderr
    assert texts_of(run("log", "tea", "--json")) == ["likes green tea"]


def test_what_log_prints_record_takes(run: Run) -> None:
    run("record", stdin=lines_of(TEA, add("tea", "ünï “x” 茶 \u2028 \x1b[2J"), TEA_GONE))
    lines = run("log", "tea", "--json").stdout
    assert run("record", "--db", "copy.db", stdin=lines).returncode == 0
    assert run("log", "tea", "--json", "--db", "copy.db").stdout == lines


def test_a_huge_line_is_recorded_and_a_longer_one_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        record_module,
        "Lines",
        lambda file: lines_module.Lines(file, line_bytes=1_000_000, chunk_bytes=4_096),
    )
    huge, longer = "é" * 450_000, "x" * 1_000_000
    file = tmp_path / "huge.jsonl"
    file.write_text(
        "".join(
            json.dumps(add("m", text), ensure_ascii=False) + "\n" for text in (huge, longer, "last")
        )
    )
    db = str(tmp_path / "h.db")
    result = CliRunner().invoke(app, ["record", str(file), "--db", db])
    assert result.exit_code == 1
    assert "line 2: longer than" in result.stderr
    log = CliRunner().invoke(app, ["log", "m", "--json", "--db", db])
    assert [json.loads(line)["new_memory"] for line in log.stdout.splitlines()] == [huge, "last"]


@pytest.mark.parametrize(("number", "word"), ENDS)
def test_lines_are_recorded_as_they_come_and_ctrl_c_keeps_them(
    number: int, word: str, start: Start, tmp_path: Path
) -> None:
    recording = start("record")
    assert recording.stdin is not None
    recording.stdin.write(lines_of(TEA))
    recording.stdin.flush()
    while not _count(tmp_path / "history.db"):
        assert recording.poll() is None
    recording.send_signal(number)  # while it waits for more: stdin stays open
    assert recording.wait(timeout=LONG_S) == 128 + number
    said, complained = recording.communicate()
    assert said == "recorded 1 line in history.db\n"
    # This check's own connection may have been noticed, and warned of, before.
    assert complained.splitlines()[-1] == f"async-history: {word}"


def _count(file: Path) -> int:
    try:
        connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
        try:
            (count,) = connection.execute("SELECT count(*) FROM history").fetchone()
        finally:
            connection.close()
    except sqlite3.OperationalError:
        return 0
    return int(count)


async def _record_until_full(source: io.FileIO) -> Recording:
    """Record into a history that has space for two records."""
    async with open_history("memory://") as history:
        add_history = history.add_history
        calls = 0

        async def add_or_fail(**fields: Any) -> HistoryRecord:
            nonlocal calls
            calls += 1
            if calls > 2:
                raise StorageFull("no space left")
            return await add_history(**fields)

        history.add_history = add_or_fail  # type: ignore[method-assign, assignment]
        recording = Recording(history, lines_module.Lines(source), "lines")
        await recording.run()
        await recording.wait_settled()
        return recording


ENDED = "async-history: lines: recording ended at line 3: no space left\n"


async def test_a_storage_failure_ends_recording_from_an_open_pipe(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reading, writing = os.pipe()
    os.write(writing, lines_of(*(add("m", str(n)) for n in range(6))).encode())
    with io.FileIO(reading) as source:
        recording = await _record_until_full(source)
        os.close(writing)
    assert recording.has_failed
    assert recording.summary() == "recorded 2 lines"
    assert capsys.readouterr().err == ENDED


async def test_after_a_storage_failure_no_further_line_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "many.jsonl"
    file.write_text(lines_of(*(add("m") for _ in range(3_000))) + "{bad\n")
    with io.FileIO(file) as source:
        recording = await _record_until_full(source)
    assert recording.summary() == "recorded 2 lines"
    assert capsys.readouterr().err == ENDED


async def test_a_file_that_is_closed_while_it_is_read_ends_there(tmp_path: Path) -> None:
    """The reading thread waits for space meanwhile. The lines that it had read are returned."""
    file = tmp_path / "many.jsonl"
    file.write_bytes(b"\n" * 256 * 1024 * 6)
    with io.FileIO(file) as source:
        lines = lines_module.Lines(source)
        while lines._chunks.qsize() < 4:  # noqa: ASYNC110 - a thread fills it
            await asyncio.sleep(0)
    async with asyncio.timeout(LONG_S):
        assert [line async for line in lines][-1] == (256 * 1024 * 4, b"")


def test_a_line_that_the_files_owner_refuses_is_named(run: Run, tmp_path: Path) -> None:
    run("record", stdin=lines_of(TEA))
    connection = sqlite3.connect(tmp_path / "history.db")
    connection.execute(
        "CREATE TRIGGER rule BEFORE INSERT ON history WHEN new.event = 'DELETE'"
        " BEGIN SELECT RAISE(ABORT, 'nothing is deleted here'); END"
    )
    connection.close()
    result = run("record", stdin=lines_of(TEA, TEA_GONE, TEA_CHANGED))
    assert result.returncode == 1
    assert result.stdout == "recorded 2 lines, refused 1 in history.db\n"
    assert result.stderr.startswith("async-history: stdin: line 2: ")
    assert "nothing is deleted here" in result.stderr


# log


def test_log_for_a_person(run: Run) -> None:
    run("record", stdin=lines_of(TEA, TEA_CHANGED, TEA_GONE))
    result = run("log", "tea")
    assert result.returncode == 0
    title, *blocks = result.stdout.rstrip().split("\n\n")
    assert title == "tea  3 changes in history.db"
    assert [block.split("\n")[1] for block in blocks] == [
        "  + likes green tea",
        "  ~ likes [-green-]{+black+} tea",
        "  - likes black tea",
    ]
    heads = [block.split("\n")[0] for block in blocks]
    assert heads[0].startswith("v1  ")
    assert heads[0].endswith("  ADD     ann (user)")
    assert heads[1] == "v2  2026-11-20 09:41:15.250-07:00  UPDATE"
    assert re.fullmatch(r"v3  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}\+00:00  DELETE", heads[2])


def test_log_numbers_versions_as_at_and_restore_do(run: Run) -> None:
    """Also when an event occurs twice, and after a deletion."""
    texts = ["one", "two", None, "four"]
    events = ["ADD", "UPDATE", "DELETE", "ADD"]
    changes = zip(events, texts, strict=True)
    lines = [{"memory_id": "m", "event": event, "new_memory": text} for event, text in changes]
    run("record", stdin=lines_of(*lines))
    versions = re.findall(r"^v(\d+)  ", run("log", "m").stdout, re.MULTILINE)
    assert versions == ["1", "2", "3", "4"]
    for version, text in zip(versions, texts, strict=True):
        assert texts_of(run("at", version, "m", "--json")) == ([text] if text else [])


def test_log_as_json(run: Run) -> None:
    run("record", stdin=lines_of({**TEA, "id": "1", "created_at": "2026-11-20T09:41:15"}))
    result = run("log", "tea", "--json")
    assert json.loads(result.stdout) == {
        "id": "1",
        "memory_id": "tea",
        "old_memory": None,
        "new_memory": "likes green tea",
        "event": "ADD",
        "created_at": "2026-11-20T09:41:15",
        "updated_at": None,
        "is_deleted": False,
        "actor_id": "ann",
        "role": "user",
    }


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_log_of_an_unknown_memory(option: list[str], run: Run) -> None:
    run("record", stdin=lines_of(TEA))
    result = run("log", "coffee", *option)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "async-history: no history of coffee in history.db\n"


def test_log_in_a_narrow_window(run: Run) -> None:
    words = " ".join(["likes", "x" * 60, *["green tea in the morning"] * 4])
    run("record", stdin=lines_of(add("tea", words, actor_id="somebody with a long name")))
    narrow = run("log", "tea", COLUMNS="40").stdout
    assert max(map(len, narrow.splitlines())) <= 40
    assert all(line[:4] in ("  + ", "    ") for line in narrow.split("likes")[1].splitlines()[1:])
    assert "".join(words.split()) in "".join(narrow.split())
    wide = run("log", "tea").stdout
    assert f"  + {words}\n" in wide


def test_colours_and_marks(run: Run) -> None:
    run("record", stdin=lines_of(TEA, TEA_CHANGED))
    marked = "likes [-green-]{+black+} tea"
    assert marked in run("log", "tea").stdout
    assert marked in run("log", "tea", FORCE_COLOR="1", NO_COLOR="1", TERM="xterm").stdout
    assert marked in run("log", "tea", FORCE_COLOR="1", TERM="dumb").stdout
    coloured = run("log", "tea", FORCE_COLOR="1", TERM="xterm").stdout
    assert "\x1b[" in coloured
    assert "likes greenblack tea" in re.sub(r"\x1b\[[\d;]*m", "", coloured)


def test_stored_text_cannot_command_the_terminal(run: Run) -> None:
    assert escape_controls("a\x1b[2J\x07\x9b\u202eb\tc\nd\r") == "a␛[2J␇\ufffd\ufffdb\tc\nd␍"
    evil = "\x1b]0;owned\x07"
    run("record", stdin=lines_of(add(evil, evil, actor_id=evil, role=evil)))
    result = run("log", evil)
    assert result.returncode == 0
    assert "\x1b" not in result.stdout
    assert "\x1b" not in run("log", f"{evil}!").stderr


def test_a_stored_name_stays_in_its_line(run: Run) -> None:
    """Names with line breaks and escapes neither control the terminal nor look like records."""
    evil = "x\x1b]0;owned\x07\nforged"
    named = {"owner": {"user_id": evil}, "cause": {"run_id": evil}, "actor_id": evil, "role": evil}
    run("record", stdin=lines_of(add(evil, "tea", **named), add(evil, "mate", **named)))
    said = []
    for arguments in (
        ("log", evil),
        ("query",),
        ("memories", "--user", evil),
        ("at", "2100-01-01"),
        ("diff", evil, "1", "2"),
        ("restore", evil, "--to", "1", "--yes"),
        ("restore", evil, "--to", "1", "--yes"),
        ("undo", "--run", evil, "--dry-run"),
        ("check",),
        ("erase", "--memory", evil, "--reason", evil, "--yes"),
        ("erasures",),
        ("operations",),
        ("migrate",),
    ):
        done = run(*arguments)
        assert done.returncode in (0, 1), done.stderr
        said += [f"{arguments[0]}: {line!r}" for line in (done.stdout + done.stderr).split("\n")]
    assert not [line for line in said if "\\x1b" in line or "\\x07" in line or ": 'forged" in line]
    assert len([line for line in said if "x␛]0;owned␇␊forged" in line]) > 15


def test_json_has_no_character_that_controls_a_terminal(run: Run) -> None:
    """JSON escapes the first 32 itself. These are C1 controls, DEL and changes of direction."""
    evil = "x\x9b2J\u202eforged\x7f\u2066"
    named = {"owner": {"user_id": evil}, "cause": {"run_id": evil}, "actor_id": evil, "role": evil}
    run("record", stdin=lines_of(add(evil, evil, **named), add(evil, f"{evil}!", **named)))
    whole = 0
    for arguments in (
        ("log", evil, "--json"),
        ("query", "--json"),
        ("memories", "--user", evil, "--json"),
        ("at", "2100-01-01", "--json"),
        ("diff", evil, "1", "2", "--json"),
        ("undo", "--run", evil, "--dry-run", "--json"),
        ("check", "--json"),
        ("restore", evil, "--to", "1", "--yes", "--json"),
        ("copy", "history.db", "-"),
        ("erase", "--memory", evil, "--reason", evil, "--yes", "--json"),
        ("erasures", "--json"),
        ("operations", "--json"),
        ("migrate", "--json"),
        ("stats", "--json"),
    ):
        done = run(*arguments)
        assert done.returncode in (0, 1), done.stderr
        assert not set(done.stdout).intersection("\x9b\u202e\x7f\u2066"), arguments
        for line in filter(None, done.stdout.split("\n")):
            whole += evil in json.dumps(json.loads(line), ensure_ascii=False)
    assert whole >= 5


@pytest.mark.parametrize("command", [[], ["serve"], ["demo"]])
def test_help_where_the_encoding_lacks_characters(command: list[str], run: Run) -> None:
    done = run(*command, "--help", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage" in done.stdout


def test_log_where_the_encoding_lacks_characters(run: Run) -> None:
    run("record", stdin=lines_of(add("m", "grün 茶")))
    assert "gr?n ?" in run("log", "m", PYTHONIOENCODING="ascii").stdout
    assert texts_of(run("log", "m", "--json", PYTHONIOENCODING="ascii")) == ["grün 茶"]


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_log_into_a_closed_pipe(option: list[str], run: Run, start: Start) -> None:
    run("record", stdin=lines_of(*(add("m", str(n) * 100) for n in range(5_000))))
    log = start("log", "m", *option)
    assert log.stdout is not None
    assert log.stdout.readline()
    log.stdout.close()
    assert log.stderr is not None
    assert log.stderr.read() == ""
    assert log.wait(timeout=LONG_S) == 0, "a reader that left is not an error"


def test_log_leaves_mem0s_file_as_it_is(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    mem0_history(folder / "h.db", [(None, "tea", "ADD"), ("tea", "no tea", "UPDATE")])
    before = state_of(folder)
    result = run("log", "m", "--db", "plain/h.db")
    assert result.returncode == 0, result.stderr
    assert "~ {+no +}tea" in result.stdout
    assert texts_of(run("log", "m", "--json", "--db", "plain/h.db")) == ["tea", "no tea"]
    assert state_of(folder) == before


def test_log_reads_the_oldest_layout_as_it_is(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    connection = sqlite3.connect(folder / "h.db")
    connection.executescript(
        """
        CREATE TABLE history (id TEXT PRIMARY KEY, memory_id TEXT, prev_value TEXT,
            new_value TEXT, event TEXT, timestamp DATETIME, is_deleted INTEGER);
        INSERT INTO history VALUES ('1', 'm', NULL, 'tea', 'ADD', '2024-07-01 10:00:00.5', 0),
            ('2', 'm', 'tea', 'no tea', 'UPDATE', '2024-07-02 10:00:00.5', 0);
        """
    )
    connection.close()
    before = state_of(folder)
    result = run("log", "m", "--db", "old/h.db")
    assert "~ {+no +}tea" in result.stdout, result.stderr
    assert state_of(folder) == before


def test_reading_falls_back_to_mem0s_own_file(run: Run, tmp_path: Path) -> None:
    mem0_history(tmp_path / "home/.mem0/history.db", [(None, "at home", "ADD")])
    mem0_history(tmp_path / "elsewhere/history.db", [(None, "elsewhere", "ADD")])
    assert texts_of(run("log", "m", "--json")) == ["at home"]
    assert ".mem0/history.db" in run("log", "m").stdout
    elsewhere = {"MEM0_DIR": str(tmp_path / "elsewhere")}
    assert texts_of(run("log", "m", "--json", **elsewhere)) == ["elsewhere"]
    assert run("log", "m", ASYNC_HISTORY_URL="nowhere.db").returncode == 1
    run("record", stdin=lines_of(add("m", "here")))
    assert texts_of(run("log", "m", "--json", **elsewhere)) == ["here"]


# Differences


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        (None, "a\nb", ["+ a", "+ b"]),
        ("a", None, ["- a"]),
        ("a", "a", []),
        ("", "a", ["- ", "+ a"]),
        ("likes tea", "moved to Berlin", ["- likes tea", "+ moved to Berlin"]),
        ("the red big car", "the old blue car", ["~ the [red big|old blue] car"]),
        ("我喜欢绿茶", "我喜欢红茶", ["~ 我喜欢[绿|红]茶"]),
        ("x y", "x y z", ["~ x y[| z]"]),
        (
            "one\ntwo\nthree\nfour\nfive\nlast word",
            "one\ntwo\nthree\nfour\nfive\nlast sentence",
            ["… 4 lines unchanged", "  five", "~ last [word|sentence]"],
        ),
        ("a\nb\nc", "a\nc", ["  a", "- b", "  c"]),
        ("a" + "\nx" * 300, "b" + "\nx" * 300, ["- a", "+ b", "  x", "… 299 lines unchanged"]),
    ],
)
def test_difference(before: str | None, after: str | None, shown: list[str]) -> None:
    assert [_plain(line) for line in difference(before, after)] == shown


def _plain(line: Any) -> str:
    text = "".join(
        {"same": piece, "removed": f"[{piece}|]", "added": f"[|{piece}]"}[kind]
        if line.sign == "~"
        else piece
        for kind, piece in line.pieces
    )
    return f"{line.sign} {text.replace('|][|', '|')}"


def test_a_difference_of_long_texts_is_fast() -> None:
    text = "a b " * 200_000
    assert [line.sign for line in difference(text, text + "c")] == ["-", "+"]
    many = "\n" * 20_000
    assert len(difference(many, many + "x")) == 40_002


def test_migrate_says_what_it_does_to_a_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(
            "CREATE TABLE history (id TEXT PRIMARY KEY, memory_id TEXT, prev_value TEXT,"
            " new_value TEXT, event TEXT, timestamp DATETIME, is_deleted INTEGER)"
        )
        connection.execute("INSERT INTO history VALUES ('1', 'm', NULL, 'tea', 'ADD', NULL, 0)")
    before = path.read_bytes()
    planned = run("migrate", "--db", str(path), "--dry-run")
    assert (planned.returncode, planned.stderr) == (0, "")
    assert "1 record of history (mem0 0.0.2) would be rewritten" in planned.stdout
    assert path.read_bytes() == before
    done = run("migrate", "--db", str(path), "--json")
    report = json.loads(done.stdout)
    assert (report["done"], report["records"], report["rewritten"]) == (True, 1, True)
    assert Path(report["backup"]).read_bytes() == before
    again = json.loads(run("migrate", "--db", str(path), "--json").stdout)
    assert (again["done"], again["records"]) == (True, 0)
    missing = run("migrate", "--db", str(tmp_path / "missing.db"))
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "missing.db" in missing.stderr


def test_a_driver_is_imported_only_when_it_is_used() -> None:
    """Each takes a fifth of a command's start time."""
    loaded = (
        "import sys, async_history.cli.app; "
        "sys.exit(bool({'asyncpg', 'aiosqlite', 'async_history._sqlite'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", loaded], check=False).returncode == 0
