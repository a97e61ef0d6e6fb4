"""`async-history tail`, as people and scripts run it: in new processes."""

import asyncio
import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from async_history import open_history
from tests.cli.programs import ENDS, Run, Start, interrupted, lines
from tests.conftest import url_of
from tests.subprocesses.commands import COMMAND
from tests.support.patience import LONG_S

pytestmark = [pytest.mark.subprocess, pytest.mark.once]


def add(url: str, *texts: str, memory_id: str = "tea", **fields: Any) -> None:
    async def added() -> None:
        async with open_history(url) as history:
            for text in texts:
                await history.add_history(memory_id, None, text, "ADD", **fields)

    asyncio.run(added())


def test_operations_are_followed(url: str, start: Start) -> None:
    add(url, "green")
    process = start("operations", "--follow", "--json", "--db", url)

    async def restored() -> None:
        async with open_history(url) as history:
            await history.update_history("tea", "black")
            await history.restore("tea", to=1)
            await history.reset()

    asyncio.run(restored())
    found: list[dict[str, Any]] = []
    while len(found) < 2:
        (one,) = map(json.loads, lines(process, 1))
        if one["state"] != "unfinished":  # it may have looked meanwhile
            found.append(one)
    assert [(one["kind"], one["state"]) for one in found] == [
        ("restore", "finished"),
        ("reset", "finished"),
    ]
    process.send_signal(signal.SIGINT)
    assert process.wait(LONG_S) == 130


def _whole_lines(file: Path) -> list[str]:
    return [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "history.db")


class TestTail:
    def test_changes_are_shown_as_they_are_committed(self, url: str, start: Start) -> None:
        add(url, "likes tea", actor_id="ann", role="user", created_at="2026-11-20T09:41:15+00:00")
        tail = start("tail", "--db", url)
        first = ["tea  2026-11-20 09:41:15.000+00:00  ADD     ann (user)", "  + likes tea"]
        assert lines(tail, 2) == first
        add(url, "by\x1b[2J another", memory_id="\x1bcoffee")
        title, text = lines(tail, 2)
        assert title.startswith("␛coffee  2")
        assert text == "  + by␛[2J another"
        assert interrupted(tail)[0] == ""

    @pytest.mark.parametrize(
        ("number", "word", "store"),
        [
            (*ENDS[0], "file"),
            pytest.param(*ENDS[1], "postgres", marks=pytest.mark.postgres),
        ],
    )
    def test_a_run_continues_where_the_last_one_ended(
        self,
        store: str,
        number: int,
        word: str,
        request: pytest.FixtureRequest,
        tmp_path: Path,
        start: Start,
    ) -> None:
        """Each record once, in order, over interrupted runs, during writes of several processes."""
        url = url_of(store, request, tmp_path)
        add(url, *map(str, range(5)))
        options = ["--json", "-n", "3"]
        shown: list[str] = []
        for round_ in range(2):
            tail = start("tail", "--db", url, *options)
            shown += [json.loads(line)["new_memory"] for line in lines(tail, 3)]
            more = [str(5 + round_ * 5 + n) for n in range(5)]
            add(url, *more[:2])
            shown += [json.loads(line)["new_memory"] for line in lines(tail, 2)]
            rest, cursor = interrupted(tail, number, word)
            assert rest == ""
            add(url, *more[2:])
            options = ["--json", "--after", cursor]
        assert shown == [str(n) for n in range(2, 12)]

    def test_sigterm_ends_a_background_job(self, url: str, tmp_path: Path) -> None:
        """A shell script ignores SIGINT for it, and stdout is a file."""
        add(url, "1")
        out, err = tmp_path / "out", tmp_path / "err"
        with open(out, "w") as stdout, open(err, "w") as stderr:
            tail = subprocess.Popen(
                [*COMMAND, "tail", "--db", url, "--json"],
                stdout=stdout,
                stderr=stderr,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
            )
            while not out.read_text():
                assert tail.poll() is None
            add(url, "2")
            while "2" not in {json.loads(line)["new_memory"] for line in _whole_lines(out)}:
                assert tail.poll() is None
            tail.send_signal(signal.SIGINT)
            add(url, "3")
            while "3" not in {json.loads(line)["new_memory"] for line in _whole_lines(out)}:
                assert tail.poll() is None
            tail.terminate()
            assert tail.wait(LONG_S) == 143
        assert [json.loads(line)["new_memory"] for line in _whole_lines(out)] == ["1", "2", "3"]
        assert "--after" in err.read_text()

    def test_record_takes_the_lines_of_tail(self, url: str, start: Start) -> None:
        add(url, "grün")
        tail = start("tail", "--db", url, "--json")
        (line,) = map(json.loads, lines(tail, 1))
        interrupted(tail)

        async def stored() -> dict[str, Any]:
            async with open_history(url) as history:
                return (await history.get_history("tea"))[0].as_dict()

        assert line == asyncio.run(stored())

    def test_one_memory(self, url: str, start: Start) -> None:
        add(url, "1", "2")
        add(url, "no", memory_id="coffee")
        tail = start("tail", "--db", url, "--memory", "tea", "-n1", "--json")
        assert json.loads(lines(tail, 1)[0])["new_memory"] == "2"
        add(url, "no", memory_id="coffee")
        add(url, "3")
        assert json.loads(lines(tail, 1)[0])["new_memory"] == "3"
        interrupted(tail)

    def test_only_new_records_are_shown(self, url: str, start: Start) -> None:
        """-n 0. The second line shows a record that was committed after the first was awaited."""
        add(url, "old")
        before = start("tail", "--db", url, "-n", "1", "--json")
        lines(before, 1)
        _, cursor = interrupted(before)
        add(url, "new")
        tail = start("tail", "--db", url, "--after", cursor, "--json")
        assert json.loads(lines(tail, 1)[0])["new_memory"] == "new"
        interrupted(tail)
        with open(url + ".out", "w") as out:
            nothing = subprocess.Popen(
                [*COMMAND, "tail", "--db", url, "-n", "0", "--json"], stdout=out
            )
            wanted: list[str] = []
            while not wanted:  # until tail has begun: then the next record is shown
                add(url, "later")
                wanted = _whole_lines(Path(out.name))
            nothing.send_signal(signal.SIGINT)
            assert nothing.wait(LONG_S) == 130
        assert {json.loads(line)["new_memory"] for line in wanted} == {"later"}

    def test_tail_ends_when_its_cursor_is_gone(self, url: str, start: Start) -> None:
        add(url, "1")
        tail = start("tail", "--db", url, "--json")
        lines(tail, 1)

        async def reset() -> None:
            async with open_history(url) as history:
                await history.reset()

        asyncio.run(reset())
        _, err = tail.communicate(timeout=LONG_S)
        assert tail.returncode == 1
        assert "is gone or has moved" in err
        assert len(err.splitlines()) == 1

    def test_bad_arguments_are_refused(self, url: str, run: Run) -> None:
        missing = run("tail", "--db", url)
        assert (missing.returncode, missing.stdout) == (1, "")
        assert "does not exist" in missing.stderr
        add(url, "1")
        for arguments, words in (
            (("--after", "x"), "is not a cursor of follow"),
            (("--after", "x", "-n", "1"), "give one"),
            (("-n", "-1"), "Invalid value"),
        ):
            result = run("tail", "--db", url, *arguments)
            assert result.returncode == 2
            assert words in result.stderr

    def test_a_reader_that_leaves(self, url: str, start: Start) -> None:
        add(url, "1")
        tail = start("tail", "--db", url, "--json")
        lines(tail, 1)
        assert tail.stdout is not None
        tail.stdout.close()
        tail.stdout = None
        while tail.poll() is None:
            add(url, "2")
        assert tail.returncode == 0
        assert tail.stderr is not None
        assert "Traceback" not in tail.stderr.read()
