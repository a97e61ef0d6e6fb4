"""`async-history stats`: what an operator sees of a history."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from async_history import HistoryStats, open_history
from async_history._core.stats import StoreWarning
from async_history.cli.app import app
from tests.conftest import stores, url_of

pytestmark = pytest.mark.once


async def filled(url: str) -> HistoryStats:
    async with open_history(url) as history:
        for n in range(3):
            await history.add_history("m", None, f"tea {n}", "ADD")
    async with open_history(url, create=False, migrate=False) as history:
        return await history.stats()


@pytest.mark.parametrize("store", stores("file", "rollback", "postgres"))
def test_stats_show_the_state_of_a_store(
    store: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = url_of(store, request, tmp_path)
    expected = asyncio.run(filled(url))
    result = CliRunner().invoke(app, ["stats", "--db", url, "--json"])
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["records"] == 3
    assert report.keys() == {"records", "engine", *asdict(expected)}
    assert report["store"] == expected.store
    assert report["file_bytes"] > 0
    assert [(w["code"], w["severity"], w["text"]) for w in report["warnings"]] == [
        (w.code, w.severity, str(w)) for w in expected.warnings
    ]
    shown = CliRunner().invoke(app, ["stats", "--db", url])
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert f"  3 records, {report['file_bytes']:,} bytes" in shown.stdout
    assert ("SQLite 3." in shown.stdout) == (store != "postgres")


def test_warnings_are_shown_with_their_severity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "history.db")
    stats = asyncio.run(filled(url))
    warnings = [
        StoreWarning("disk-tired", "critical", "the disk is tired \x1b[2J"),
        StoreWarning("log-long", "warning", "the log is long"),
    ]

    async def with_warnings(_: object) -> HistoryStats:
        return replace(stats, file_bytes=1, wal_bytes=2, warnings=tuple(warnings))

    monkeypatch.setattr("async_history.HistoryManager.stats", with_warnings)
    shown = CliRunner().invoke(app, ["stats", "--db", url]).stdout
    assert "critical disk-tired: the disk is tired ␛[2J\n" in shown
    assert "warning log-long: the log is long\n" in shown
    assert "2 in the write-ahead log" in shown
    warnings.clear()
    assert "no warnings" in CliRunner().invoke(app, ["stats", "--db", url]).stdout


def test_a_slow_store_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`stats()` returns without figures before a slow store answers."""
    url = str(tmp_path / "history.db")
    stats = asyncio.run(filled(url))
    away = StoreWarning("store-unreachable", "critical", "it does not answer")
    answers = [((away,), 0), ((away,), 0), ((), 77)]

    async def slow(_: object) -> HistoryStats:
        warnings, size = answers.pop(0)
        return replace(stats, file_bytes=size, wal_bytes=0, warnings=warnings)

    monkeypatch.setattr("async_history.HistoryManager.stats", slow)
    shown = CliRunner().invoke(app, ["stats", "--db", url, "--json"]).stdout
    assert (json.loads(shown)["file_bytes"], answers) == (77, [])


def test_a_missing_store(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["stats", "--db", str(tmp_path / "nowhere.db")])
    assert (result.exit_code, result.stdout) == (1, "")
    assert not list(tmp_path.iterdir())


def test_stats_of_a_file_whose_name_is_not_utf8(tmp_path: Path) -> None:
    url = str(tmp_path / os.fsdecode(b"\xff.db"))
    asyncio.run(filled(url))
    told = CliRunner().invoke(app, ["stats", "--db", url, "--json"])
    assert json.loads(told.stdout)["store"] == url
    measured = CliRunner().invoke(app, ["stats", "--db", url, "--prometheus"])
    (family, *_) = text_string_to_metric_families(measured.stdout)
    assert family.samples[0].labels["store"] == str(tmp_path / "?.db")


def test_prometheus_parses_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the format's own parser. A label's value may have the format's own characters."""
    url = str(tmp_path / 'a "quoted" name.db')
    stats = asyncio.run(filled(url))
    warnings = (StoreWarning("log-long", "warning", "the log is long"),)

    async def with_warnings(_: object) -> HistoryStats:
        return replace(stats, file_bytes=10, wal_bytes=2, warnings=warnings)

    monkeypatch.setattr("async_history.HistoryManager.stats", with_warnings)
    result = CliRunner().invoke(app, ["stats", "--db", url, "--prometheus"])
    assert (result.exit_code, result.stderr) == (0, "")
    found = {
        sample.name: (sample.labels, sample.value)
        for family in text_string_to_metric_families(result.stdout)
        for sample in family.samples
    }
    store = {"store": url}
    assert found == {
        "async_history_records": (store, 3),
        "async_history_store_size_bytes": (store, 10),
        "async_history_store_log_size_bytes": (store, 2),
        "async_history_warning": ({**store, "code": "log-long", "severity": "warning"}, 1),
    }
    refused = CliRunner().invoke(app, ["stats", "--db", url, "--prometheus", "--json"])
    assert (refused.exit_code, refused.stdout) == (2, "")


def test_watch_repeats_until_it_is_interrupted(tmp_path: Path) -> None:
    """Each time with the records that others have written since."""
    url = str(tmp_path / "history.db")
    asyncio.run(filled(url))
    command = [sys.executable, "-m", "async_history", "stats", "--db", url]
    with subprocess.Popen(
        [*command, "--json", "--watch", "0.1"], stdout=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline())["records"] == 3
        asyncio.run(filled(url))
        while json.loads(watching.stdout.readline())["records"] != 6:
            pass
        watching.send_signal(signal.SIGINT)
        watching.stdout.read()
    assert watching.returncode == 130
