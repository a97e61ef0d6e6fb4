"""The runner of this folder, and whether its check finds faults."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from agent_runner import problems, run_agents

from async_history import open_history

pytestmark = pytest.mark.once


@pytest.mark.subprocess
def test_every_acknowledged_record_is_there_once_and_in_order(tmp_path: Path) -> None:
    ran = subprocess.run(  # noqa: S603
        [sys.executable, "agent_runner.py", "--db", str(tmp_path / "history.db")],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    agents, records, verdict = ran.stdout.splitlines()
    assert agents.startswith("2,000 agents: ")
    counts = [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) (?:can|fin|late)", agents)]
    assert sum(counts) == 2_000
    assert not records.startswith("0 ")
    assert verdict == "every acknowledged record is there once and in order"


async def test_the_check_sees_what_is_wrong() -> None:
    async with open_history("memory://") as history:
        agents = await run_agents(history, 2)
        assert await problems(history, agents) == []
        ids = [record.id async for record in history.query_history()]
        agents[0].acknowledged = [ids[1], ids[0], "lost"]
        assert await problems(history, agents) == [
            "record lost of agent 0 is missing",
            "the records of agent 0 are not in order",
        ]
        await history.add_history("agent-1", "what it did not say", "x", "UPDATE")
        assert "agent-1" in (await problems(history, agents))[-1]
