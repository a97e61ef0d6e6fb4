"""`async-history copy` and `backup`, as people and scripts run them."""

import asyncio
import base64
import json
import os
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from async_history import open_history
from tests.cli.programs import Run, Start, lines_of
from tests.support.patience import LONG_S

pytestmark = pytest.mark.once


CHANGES = [
    {"id": f"r{n}", "memory_id": f"m{n % 3}", "event": "ADD", "new_memory": f"tea ☃ {n}"}
    for n in range(30)
]


@pytest.fixture
def recorded(run: Run) -> Run:
    assert run("record", "-", stdin=lines_of(*CHANGES)).returncode == 0
    return run


def test_a_file_to_a_server_and_back(
    recorded: Run, new_schema: Callable[[], str], tmp_path: Path
) -> None:
    url = new_schema()
    first = recorded("copy", "history.db", url)
    assert first.returncode == 0
    assert first.stdout.startswith("30 records of it are in postgresql://")
    assert "30 written now" in first.stdout
    again = json.loads(recorded("copy", "history.db", url, "--json").stdout)
    assert (again["records"], again["written"]) == (30, 0)
    assert again["digest"] in first.stdout
    back = json.loads(recorded("copy", url, "back.db", "--json").stdout)
    assert (back["records"], back["written"], back["digest"]) == (30, 30, again["digest"])
    one = recorded("log", "m1", "--db", "back.db", "--json")
    assert one.stdout == recorded("log", "m1", "--json").stdout


def test_json_lines_out_and_in(recorded: Run, tmp_path: Path) -> None:
    out = recorded("copy", "history.db", "-")
    assert (out.returncode, out.stderr) == (0, "")
    lines = [json.loads(line) for line in out.stdout.splitlines()]
    assert [line["id"] for line in lines] == [change["id"] for change in CHANGES]
    done = recorded("copy", "history.db", "out.jsonl")
    assert done.stdout == "30 records in out.jsonl\n"
    assert (tmp_path / "out.jsonl").read_text() == out.stdout
    assert (tmp_path / "out.jsonl").stat().st_mode & 0o777 == 0o600
    assert recorded("copy", "out.jsonl", "in.db").returncode == 0
    assert recorded("copy", "-", "in.db", stdin=out.stdout).stdout.count("0 written now") == 1
    assert recorded("copy", "in.db", "-").stdout == out.stdout
    refused = recorded("copy", "history.db", "out.jsonl")
    assert (refused.returncode, refused.stderr) == (1, "async-history: out.jsonl: File exists\n")
    assert (tmp_path / "out.jsonl").read_text() == out.stdout
    assert recorded("copy", "out.jsonl", "-").returncode == 2
    bad = recorded("copy", "-", "in.db", stdin='{"id": "x"}\n')
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "line 1" in bad.stderr


def test_the_copy_of_an_encrypted_history_is_encrypted(recorded: Run, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"a={base64.b64encode(bytes(32)).decode()}")
    keys = ("--keys-file", "keys")
    assert recorded("copy", "history.db", "clear.db").returncode == 0
    assert recorded(*keys, "encrypt").returncode == 0
    as_it_was = (tmp_path / "clear.db").read_bytes()
    asyncio.run(_empty(tmp_path / "empty.db"))
    for target in ("new.db", "empty.db"):
        for written in (30, 0):
            done = json.loads(recorded(*keys, "copy", "history.db", target, "--json").stdout)
            assert (done["records"], done["written"]) == (30, written)
        assert "tea ☃".encode() not in (tmp_path / target).read_bytes()
        assert "--keys-file" in recorded("log", "m1", "--db", target).stderr
    refused = recorded(*keys, "copy", "history.db", "clear.db")
    assert (refused.returncode, "encrypt --db clear.db" in refused.stderr) == (2, True)
    assert (tmp_path / "clear.db").read_bytes() == as_it_was
    assert recorded(*keys, "encrypt", "--db", "clear.db").returncode == 0
    assert recorded(*keys, "copy", "history.db", "clear.db").returncode == 0


async def _empty(file: Path) -> None:
    async with open_history(file):
        pass


def test_an_error_of_copy_is_one_line(recorded: Run, tmp_path: Path) -> None:
    for arguments, status, words in (
        (("copy", "nowhere.db", "x.db"), 1, "no history in nowhere.db: it does not exist"),
        (("copy", "nowhere.jsonl", "x.db"), 1, "nowhere.jsonl: No such file"),
        (("copy", "history.db", "ftp://x"), 2, "no backend for 'ftp'"),
        (("copy", "sqlite:///x.db?table=y", "x.db"), 2, "table="),
        (("backup", "history.db"), 2, "exists"),
        (("backup", "x.db", "--db", "nowhere.db"), 1, "no history in nowhere.db"),
        (("backup", "x.db", "--db", "postgresql://localhost/x"), 2, "pg_dump"),
    ):
        done = recorded(*arguments)
        assert (done.returncode, done.stdout) == (status, "")
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
    with closing(sqlite3.connect(tmp_path / "history.db")) as connection, connection:
        connection.execute("UPDATE history SET new_memory = 'x' WHERE id = 'r3'")
    assert recorded("copy", "history.db", "copy.db").returncode == 0
    with closing(sqlite3.connect(tmp_path / "copy.db")) as connection, connection:
        connection.execute("DELETE FROM history WHERE id = 'r3'")
    damaged = recorded("copy", "history.db", "copy.db")
    assert damaged.returncode == 1
    assert "r3" in damaged.stderr


def test_a_backup(recorded: Run, tmp_path: Path) -> None:
    done = recorded("backup", "copy.db")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("copy.db: ")
    report = json.loads(recorded("backup", "other.db", "--json").stdout)
    assert report["path"] == "other.db"
    assert report["bytes"] == (tmp_path / "other.db").stat().st_size
    assert recorded("copy", "copy.db", "-").stdout == recorded("copy", "history.db", "-").stdout


def test_ctrl_c_says_how_to_continue(start: Start, run: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "slow.jsonl")
    process = start("copy", "slow.jsonl", "copy.db")
    with open(tmp_path / "slow.jsonl", "w") as pipe:
        pipe.write(lines_of(*CHANGES))
        pipe.flush()
        while not (tmp_path / "copy.db").exists():
            pass
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=LONG_S)
    assert process.returncode == 130
    assert "continues where this one ended" in errors
    assert run("copy", "-", "copy.db", stdin=lines_of(*CHANGES)).returncode == 0

    async def count() -> int:
        async with open_history(tmp_path / "copy.db") as history:
            return len([record async for record in history.query_history()])

    assert asyncio.run(count()) == 30
