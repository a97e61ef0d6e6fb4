"""Several processes give memories owners: each memory gets one, and the others are refused."""

import asyncio
import json
import subprocess
from pathlib import Path

import pytest

from async_history import open_history
from tests.conftest import stores, url_of
from tests.subprocesses import processes
from tests.support.patience import LONG_S

USERS = ("ann", "bob", "eve")
COUNT = 200
_LATE = 3
"""One memory in how many has a record, but no owner, before."""


@pytest.mark.once
@pytest.mark.subprocess
@pytest.mark.parametrize("store", stores("file", "postgres"))
async def test_each_memory_has_the_owner_of_one_process(
    store: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = url_of(store, request, tmp_path)
    names = [f"m{number}" for number in range(COUNT)]
    async with open_history(url) as history:
        late = [{"memory_id": name, "event": "ADD"} for name in names[::_LATE]]
        await history.batch_add_history(late)
    given = await asyncio.to_thread(give_at_once, url)
    assert sorted(name for mine in given.values() for name in mine) == sorted(names)
    async with open_history(url) as history:
        for user_id, mine in given.items():
            found = [one async for one in history.query_history(user_id=user_id)]
            assert {record.memory_id for record in found} == set(mine)
            assert len(found) == len(mine) + len(set(mine) & set(names[::_LATE]))
        assert (await history.check()).problems == ()


def give_at_once(url: str) -> dict[str, list[str]]:
    """Return which memories each process gave its user, by its acknowledgements."""
    programs = {
        user_id: subprocess.Popen(
            processes.command("giving_owners", url, user_id, COUNT),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=processes.ROOT,
        )
        for user_id in USERS
    }
    try:
        for program in programs.values():
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
        for program in programs.values():
            assert program.stdin is not None
            program.stdin.close()
        given = {}
        for user_id, program in programs.items():
            assert program.stdout is not None
            given[user_id] = json.loads(program.stdout.read())
            assert program.wait(LONG_S) == 0
        return given
    finally:
        for program in programs.values():
            program.kill()  # has no effect on a process that has ended
            program.wait()
            if program.stdout is not None:
                program.stdout.close()
