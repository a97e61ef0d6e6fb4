"""2,000 agents that record what they do: some finish, some are late, some are cancelled.

python agent_runner.py --db history.db
"""

import argparse
import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from async_history import HistoryManager, open_history, recording

STEPS = 4
TEAMS = 40
"""Number of teams. Each has a memory that all of its agents change."""
LONGEST_STEP_S = 0.2
"""Longest simulated model call, in seconds."""


@dataclass
class Agent:
    """One agent, and the ids of its records that were acknowledged, in order."""

    number: int
    acknowledged: list[str] = field(default_factory=list)
    outcome: str = "not begun"

    async def run(self, history: HistoryManager, deadline_s: float) -> None:
        """Work until it is done, late or cancelled."""
        try:
            async with asyncio.timeout(deadline_s):
                with recording(cause={"run_id": f"run-{self.number}"}):
                    await self._work(history)
            self.outcome = "finished"
        except TimeoutError:
            self.outcome = "late"
        except asyncio.CancelledError:
            self.outcome = "cancelled"
            raise

    async def _work(self, history: HistoryManager) -> None:
        for step in range(STEPS):
            await asyncio.sleep(random.uniform(0, LONGEST_STEP_S))  # noqa: S311 - guards nothing
            for memory in (f"agent-{self.number}", f"team-{self.number % TEAMS}"):
                text = f"agent {self.number} did step {step}"
                record = await history.update_history(memory, text, actor_id=str(self.number))
                self.acknowledged.append(record.id)


async def run_agents(history: HistoryManager, count: int) -> list[Agent]:
    """Run agents concurrently, each with its deadline; cancel every tenth at a random moment."""
    agents = [Agent(number) for number in range(count)]
    longest_s = STEPS * LONGEST_STEP_S
    async with asyncio.TaskGroup() as group:
        for agent in agents:
            deadline_s = random.uniform(0.25, 6) * longest_s  # noqa: S311
            task = group.create_task(agent.run(history, deadline_s))
            if agent.number % 10 == 0:
                delay_s = random.uniform(0, longest_s)  # noqa: S311
                asyncio.get_running_loop().call_later(delay_s, task.cancel)
    return agents


async def problems(history: HistoryManager, agents: Sequence[Agent]) -> list[str]:
    """Return the faults: acknowledged records that are missing, duplicated or out of order.

    An agent makes one call after the other, so its records are in the order of their
    acknowledgements in the whole history, across memories.
    """
    places: dict[str, int] = {}
    found: list[str] = []
    async for record in history.query_history():
        if record.id in places:
            found.append(f"record {record.id} is there twice")
        places[record.id] = len(places)
    for agent in agents:
        missing = [one for one in agent.acknowledged if one not in places]
        found += [f"record {one} of agent {agent.number} is missing" for one in missing]
        order = [places[one] for one in agent.acknowledged if one in places]
        if order != sorted(set(order)):
            found.append(f"the records of agent {agent.number} are not in order")
    report = await history.check()  # whether each record continues the memory's previous one
    return [*found, *report.problems, *map(str, report.broken)]


async def main() -> None:
    """Run agents on a history, open it again, and print the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--db", default="history.db", help="URL of an empty history (history.db)")
    parser.add_argument("--agents", type=int, default=2_000)
    asked = parser.parse_args()
    async with open_history(asked.db) as history:
        agents = await run_agents(history, asked.agents)
    async with open_history(asked.db) as history:
        written = await history.count_history()
        wrong = await problems(history, agents)
    outcomes = Counter(agent.outcome for agent in agents)
    acknowledged = sum(len(agent.acknowledged) for agent in agents)
    print(f"{len(agents):,} agents:", ", ".join(f"{n:,} {what}" for what, n in outcomes.items()))
    print(f"{acknowledged:,} records acknowledged, {written - acknowledged:,} more written")
    print("\n".join(wrong) or "every acknowledged record is there once and in order")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    asyncio.run(main())
