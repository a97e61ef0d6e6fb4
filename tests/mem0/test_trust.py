"""A memory whose history is encrypted and has a ledger."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from async_history import open_history
from async_history.ledger import LedgerKey
from async_history.mem0 import AsyncMemory, Memory
from tests.mem0.memories import Configured, call, close, make_instant
from tests.support.keys import ring

_KEY = LedgerKey.generate("example.org/history")


@pytest.mark.parametrize("made", [AsyncMemory, Memory])
async def test_texts_are_encrypted_in_every_file_and_records_are_proven(
    made: Any, configured: Configured, tmp_path: Path
) -> None:
    path = tmp_path / "history.db"
    memory = await asyncio.to_thread(made.from_config, configured(), keys=ring("one"), ledger=True)
    make_instant(memory)
    options = {"user_id": "ann", "infer": False}
    added = await call(memory, "add", "likes TeaWord", **options, metadata={"why": "WhyWord"})
    memory_id = added["results"][0]["id"]
    await call(memory, "update", memory_id, "likes MilkWord")
    texts = [one["new_memory"] for one in await call(memory, "history", memory_id)]
    assert texts == ["likes TeaWord", "likes MilkWord"]
    files = b"".join(file.read_bytes() for file in tmp_path.glob("history.db*"))
    assert memory_id.encode() in files, "the check finds what is there"
    assert not [word for word in (b"TeaWord", b"MilkWord", b"WhyWord") if word in files]
    await close(memory)
    async with open_history(path, keys=ring("one")) as history:
        checkpoint = await history.ledger.checkpoint(_KEY)
        report = await history.ledger.verify(checkpoint)
        assert report.is_intact
        assert not report.unattested
        assert (report.records, report.owners) == (2, 1)
