"""Roles of a PostgreSQL server, and the calls that a role may make."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from async_history import HistoryManager

NewSchema = Callable[[], str]
ROLE_PASSWORD = "agentsecret"  # noqa: S105 - of a role that exists during a test


def server_of(url: str) -> str:
    """Return a URL without its schema."""
    return re.sub("[?&]schema=[^&]*", "", url)


def as_role(url: str, role: str) -> str:
    return re.sub("//[^@]*@", f"//{role}:{ROLE_PASSWORD}@", url)


BOB = {"user_id": "bob"}
LONG_AGO: Final = datetime(2020, 1, 1, tzinfo=UTC)


async def make_records(history: HistoryManager) -> None:
    await history.update_history("m", "mate")
    await history.add_history("new", None, "x", "ADD", owner=BOB, cause={"request_id": "r"})
    await history.add_history("late", None, "x", "ADD")
    await history.add_history("late", "x", "y", "UPDATE", owner=BOB)  # an owner given later
    await history.save_messages([{"role": "user", "content": "x"}] * 12, "s")


async def take_back(history: HistoryManager) -> None:
    await history.update_history("m", "water", cause={"request_id": "taken back"})
    await history.undo(cause={"request_id": "taken back"})
    await history.restore("m", to=1)
    await history.rollback(to=LONG_AGO, memory_ids=["late"])


async def remove(history: HistoryManager) -> None:
    await history.prune(older_than=datetime.now(UTC), keep_last=1)
    await history.erase(actor_id="carl", reason="asked", vacuum=False)
    await history.erase(user_id="bob", session_scopes=["s"], reason="asked", vacuum=False)
    await history.reset()
