"""Cancelled reads of SQLite through SQLAlchemy do not keep the file locked."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from async_history.sql import SqlHistoryManager
from tests.support.patience import SOON_S

pytestmark = pytest.mark.once


@pytest.fixture
def impatient(tmp_path: Path) -> AsyncEngine:
    """An engine whose connections wait only briefly for locks."""
    file = tmp_path / "history.db"
    return create_async_engine(f"sqlite+aiosqlite:///{file}", connect_args={"timeout": 0.1})


async def test_a_cancelled_read_unlocks_the_file_at_once(impatient: AsyncEngine) -> None:
    """Cancelled at any moment, while the caller keeps the cancelled task."""
    rng = random.Random("moments")  # noqa: S311 - a test's random choices
    kept: list[asyncio.Future[Any]] = []
    async with SqlHistoryManager(engine=impatient, retry_timeout_s=SOON_S) as history:
        await history.batch_add_history(
            [
                {"memory_id": f"m{n % 5}", "new_memory": "x" * 200, "event": "UPDATE"}
                for n in range(4_000)
            ]
        )

        async def scan() -> None:
            async for _ in history.query_history(text="none"):
                pass

        reads: tuple[Callable[[], Awaitable[Any]], ...] = (
            scan,
            history.count_history,
            lambda: history.get_history("m1"),
            lambda: history.get_last_messages("s"),
        )
        for number in range(40):
            begun = [asyncio.ensure_future(rng.choice(reads)()) for _ in range(6)]
            await asyncio.wait(begun, timeout=rng.random() ** 2 * 0.05)
            for read in begun:
                read.cancel()
            kept += begun
            found = await asyncio.gather(*begun, return_exceptions=True)
            assert not [one for one in found if isinstance(one, Exception)]
            await history.add_history("written", None, str(number), "ADD")
        assert len(await history.get_history("written")) == 40
    assert any(read.cancelled() for read in kept)
    await impatient.dispose()
