"""Several processes write one ledger, and are killed."""

import asyncio
import random
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from async_history import HistoryManager, MigrationError, open_history
from tests.conftest import stores, url_of
from tests.ledger.ledgers import KEY
from tests.subprocesses.processes import ROOT, command, started
from tests.support.patience import LONG_S

pytestmark = [pytest.mark.once, pytest.mark.subprocess]


@contextmanager
def doomed(url: str, name: str) -> "Iterator[subprocess.Popen[str]]":
    """Start a program that writes; it is killed at the end if not before."""
    with subprocess.Popen(
        command("ledger", url, name),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
            yield program
        finally:
            program.kill()
            program.wait(LONG_S)


@pytest.mark.parametrize("store", stores("file", "postgres", "mariadb"))
async def test_processes_share_one_tree(
    store: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = url_of(store, request, tmp_path)
    async with open_history(url, ledger=True) as history:
        kept = [await history.ledger.checkpoint(KEY)]
        with ExitStack() as stack:
            for name in ("a", "b"):
                stack.enter_context(started("ledger", url, name))
            with doomed(url, "c"):
                kept.append(await history.ledger.checkpoint(KEY))
                while_they_write = await history.ledger.verify(*kept)
            kept.append(await history.ledger.checkpoint(KEY))
        report = await history.ledger.verify(*kept)
        assert while_they_write.is_intact, while_they_write.faults
        assert report.is_intact, report.faults
        assert not report.unattested
        assert report.records == await history.count_history()
        assert report.erased
        assert report.unattested_operations == report.unattested_owners == 0
        await history.ledger.prove_growth(kept[0], kept[-1])


@pytest.mark.parametrize("store", stores("postgres", "mariadb"))
@pytest.mark.parametrize(
    "rounds", [1, pytest.param(12, marks=[pytest.mark.nightly, pytest.mark.timeout(3_600)])]
)
async def test_four_processes_are_killed_at_any_moment(
    store: str, request: pytest.FixtureRequest, tmp_path: Path, rounds: int
) -> None:
    url = url_of(store, request, tmp_path)
    chance = random.Random("kills")  # noqa: S311 - a test's random choices
    async with open_history(url, ledger=True) as history:
        kept = [await history.ledger.checkpoint(KEY)]
        for turn in range(rounds):
            with ExitStack() as stack:
                writers = [stack.enter_context(doomed(url, f"{turn} {n}")) for n in range(4)]
                for writer in writers:
                    await _recorded(history, chance.randrange(100))
                    writer.kill()
                    kept.append(await history.ledger.checkpoint(KEY))
            report = await history.ledger.verify(*kept)
            assert report.is_intact, report.faults
            assert not report.unattested
            assert report.records == await history.count_history()
            assert report.unattested_owners == report.unattested_operations == 0
        await history.ledger.prove_growth(kept[0], kept[-1])


async def _recorded(history: HistoryManager, wanted: int) -> None:
    """Wait until the others have recorded so many more records."""
    new = history.follow(after=await history.end_cursor())
    async with asyncio.timeout(LONG_S):
        for _ in range(wanted):
            await anext(new)


@pytest.mark.parametrize("store", stores("file", "postgres", "mariadb"))
async def test_a_manager_from_before_the_ledger_removes_nothing_unnoted(
    store: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """A file notes its removals. On a server they are refused."""
    url = url_of(store, request, tmp_path)
    noted: AbstractContextManager[Any] = nullcontext()
    if store != "file":
        noted = pytest.raises(MigrationError, match="given a ledger since")
    async with open_history(url) as before, open_history(url, ledger=True) as history:
        for call in (
            lambda: before.prune(older_than=timedelta(days=1), keep_last=0),
            lambda: before.erase(memory_ids=["m"], reason="asked", vacuum=False),
            before.reset,
        ):
            long_ago = datetime(2020, 1, 1, tzinfo=UTC)
            await history.add_history("m", None, "tea", "ADD", created_at=long_ago)
            with noted:
                await call()
            report = await history.ledger.verify()
            assert report.is_intact, report.faults
