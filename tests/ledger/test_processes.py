"""Four processes that write one ledger, one of which is killed."""

import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from async_history import open_history
from async_history.ledger import LedgerKey
from tests.subprocesses.processes import ROOT, command, started
from tests.support.patience import LONG_S

pytestmark = [pytest.mark.once, pytest.mark.subprocess]
KEY = LedgerKey.generate("example.org/history")


async def test_they_share_one_tree(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    async with open_history(path, ledger=True) as history:
        kept = [await history.ledger.checkpoint(KEY)]
        with ExitStack() as stack:
            for name in ("a", "b"):
                stack.enter_context(started("ledger", path, name))
            doomed = stack.enter_context(
                subprocess.Popen(
                    command("ledger", path, "c"),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=ROOT,
                )
            )
            assert doomed.stdout is not None
            assert doomed.stdout.readline() == "ready\n"
            kept.append(await history.ledger.checkpoint(KEY))
            while_they_write = await history.ledger.verify(*kept)
            doomed.kill()
            doomed.wait(LONG_S)
            kept.append(await history.ledger.checkpoint(KEY))
        report = await history.ledger.verify(*kept)
        assert while_they_write.is_intact, while_they_write.faults
        assert report.is_intact, report.faults
        assert not report.unattested
        assert report.records == await history.count_history()
        assert report.erased
        assert report.unattested_operations == report.unattested_owners == 0
        await history.ledger.prove_growth(kept[0], kept[-1])
