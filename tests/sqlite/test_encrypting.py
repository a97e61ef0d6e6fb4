"""Encrypting a file in place: completely, during writes, with nothing left in clear."""

import asyncio
import base64
import contextlib
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from mem0.memory.storage import SQLiteManager
from typer.testing import CliRunner

from async_history import HistoryManager, check_history, open_history
from async_history.blocking import BlockingHistoryManager
from async_history.cli.app import app
from async_history.errors import KeyMissing
from async_history.ledger import LedgerKey
from tests.support.keys import master, ring
from tests.support.legacy_files import V0_0_2, build

pytestmark = pytest.mark.once

ANN: Any = {"user_id": "ann"}
WORDS = ("OldWord", "NewWord", "ContextWord", "CauseWord", "RunWord", "ContentWord", "PlainWord")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.db"


def opened(path: Path, **options: Any) -> HistoryManager:
    return open_history(path, keys=ring("one"), **options)


async def fill(path: Path) -> list[Any]:
    """Fill a file in clear; return its records."""
    details: dict[str, Any] = {
        "context": {"ContextWord": "ContextWord"},
        "cause": {"why": "CauseWord", "run_id": "RunWord"},
    }
    async with open_history(path) as history:
        await history.batch_add_history(
            [
                {
                    "memory_id": f"m{n % 40}",
                    "old_memory": "OldWord",
                    "new_memory": f"NewWord {n}",
                    "event": "UPDATE",
                    **(details if n % 2 else {}),
                    **({"owner": ANN} if n % 40 < 10 else {}),
                }
                for n in range(1_300)
            ]
        )
        await history.save_messages([{"role": "user", "content": "ContentWord"}] * 2, "user_id=ann")
    plain = SQLiteManager(str(path))
    plain.add_history("plain", None, "PlainWord", "ADD")
    plain.close()
    async with open_history(path) as history:
        return [record async for record in history.query_history()]


def words_in(folder: Path) -> set[str]:
    found = b"".join(file.read_bytes() for file in folder.iterdir() if file.is_file())
    return {word for word in WORDS if word.encode() in found}


async def test_everything_in_clear_is_encrypted_in_place(path: Path) -> None:
    records = await fill(path)
    assert words_in(path.parent) == set(WORDS), "the check finds what is there"
    seen: list[tuple[int, int]] = []
    async with opened(path) as history:

        async def write() -> None:
            for number in range(20):
                await history.add_history("new", None, str(number), "ADD")

        encrypting = history.encryption.encrypt(on_progress=lambda *both: seen.append(both))
        report, _ = await asyncio.gather(encrypting, write())
        assert (report.records, report.messages, report.clear) == (1_301, 2, 0)
        assert report.remains == ()
        assert [total for _, total in seen] == [1_301] * 3
        assert words_in(path.parent) == set()
        found = [record async for record in history.query_history()]
        assert [one for one in found if one.memory_id != "new"] == records
        assert await history.count_history(cause={"run_id": "RunWord"}) == 650
        assert await history.count_history(cause={"run_id": "CauseWord"}) == 0
        messages = await history.get_last_messages("user_id=ann")
        assert [message.content for message in messages] == ["ContentWord"] * 2
        assert "clear-records" not in {one.code for one in (await history.stats()).warnings}
        again = await history.encryption.encrypt()
        assert (again.records, again.messages) == (0, 0)
        kinds = [one.kind for one in await history.operations() if one.state == "finished"]
        assert kinds[-2:] == ["encrypt", "encrypt"]
    assert (await check_history(str(path), keys=ring("one"))).problems == ()


async def test_a_text_encrypted_in_place_has_its_owners_key(path: Path) -> None:
    await fill(path)
    async with opened(path) as history:
        await history.encryption.encrypt()
        with contextlib.closing(sqlite3.connect(path)) as raw:
            ((kept,),) = raw.execute(
                "SELECT new_memory FROM history WHERE memory_id = 'm1' LIMIT 1"
            ).fetchall()
        await history.erase(**ANN, reason="asked")
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as raw:
            raw.execute("UPDATE history SET new_memory = ? WHERE memory_id = 'm1'", (kept,))
        with pytest.raises(KeyMissing, match="destroyed"):
            await history.get_history("m1")
        assert (await history.get_history("m11"))[0].new_memory == "NewWord 11"


async def test_the_next_encryption_encrypts_what_plain_mem0_wrote(path: Path) -> None:
    async with opened(path) as history:
        await history.add_history("m", None, "tea", "ADD")
        plain = SQLiteManager(str(path))
        plain.add_history("m", "tea", "PlainWord", "UPDATE")
        plain.close()
        assert (await history.encryption.encrypt()).records == 1
        assert words_in(path.parent) == set()
        texts = {record.new_memory for record in await history.get_history("m")}
        assert texts == {"tea", "PlainWord"}


async def test_a_value_that_is_not_text_stays_and_is_counted(path: Path) -> None:
    async with opened(path) as history:
        await history.add_history("m", None, "tea", "ADD", id="a")
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as raw:
            raw.execute("UPDATE history SET old_memory = x'00ff' WHERE id = 'a'")
        report = await history.encryption.encrypt()
        assert (report.records, report.clear) == (0, 1)
        assert report.outcome().endswith("; 1 record in clear still")


async def test_the_report_names_copies_from_an_adoption(path: Path) -> None:
    async with opened(build(path, "", V0_0_2)) as history:
        report = await history.encryption.encrypt()
        (copy,) = path.parent.glob("*.before-adoption-*.bak")
        assert str(copy) in " ".join(report.remains)
        copy.unlink()
        assert (await history.encryption.encrypt()).remains == ()


async def test_without_space_to_rewrite_the_file_the_report_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Causes are found even without a rebuilt index."""
    await fill(path)
    usage = shutil.disk_usage(path.parent)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    async with opened(path) as history:
        report = await history.encryption.encrypt()
        assert report.clear == 0
        assert any("VACUUM" in one for one in report.remains)
        assert await history.count_history(cause={"run_id": "RunWord"}) == 650
    assert (await check_history(str(path), keys=ring("one"))).problems == ()


async def test_a_ledger_still_proves_encrypted_records(path: Path) -> None:
    async with open_history(path, ledger=True) as history:
        await history.add_history("m", None, "tea", "ADD", owner=ANN, cause={"run_id": "r"})
        kept = await history.ledger.checkpoint(LedgerKey.generate("example.org/history"))
    async with opened(path, ledger=True) as history:
        await history.encryption.encrypt()
        await history.add_history("m", "tea", "mate", "UPDATE")
        report = await history.ledger.verify(kept)
        assert report.is_intact
        assert not report.unattested


def test_encrypting_through_a_blocking_manager_and_the_command(path: Path) -> None:
    records = asyncio.run(fill(path))
    keys = path.parent / "keys"
    keys.write_text(f"one={base64.b64encode(master('one')).decode()}")
    arguments = ["--keys-file", str(keys), "encrypt", "--db", str(path)]
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code, done.stdout) == (0, "encrypted 1,301 records and 2 messages\n")
    with contextlib.closing(BlockingHistoryManager(path, keys=ring("one"))) as history:
        assert history.encryption.encrypt().records == 0
        assert len(history.get_history("m1")) == sum(one.memory_id == "m1" for one in records)
    rekey = [*arguments[:2], "rekey", "--db", str(path)]
    done = CliRunner().invoke(app, [*rekey, "--data-keys", "--user", "ann"])
    expected = "replaced 1 data key; 330 records and 2 messages are encrypted under new ones\n"
    assert (done.exit_code, done.stdout) == (0, expected)
    wrong = CliRunner().invoke(app, [*rekey, "--user", "ann"])
    assert (wrong.exit_code, "--data-keys" in wrong.stderr) == (2, True)
    with contextlib.closing(BlockingHistoryManager(path, keys=ring("one"))) as history:
        assert history.encryption.replace_data_keys().records == 1_301
    done = CliRunner().invoke(app, [*arguments[:2], "decrypt", "--db", str(path)])
    expected = "decrypted 1,301 records and 2 messages; the history is opened without keys now\n"
    assert (done.exit_code, done.stdout) == (0, expected)
    with contextlib.closing(BlockingHistoryManager(path, keys=ring("one"))) as history:
        assert history.encryption.encrypt().records == 1_301
        assert history.encryption.decrypt().records == 1_301
    with contextlib.closing(BlockingHistoryManager(path)) as history:
        assert len(history.get_history("m1")) == sum(one.memory_id == "m1" for one in records)
