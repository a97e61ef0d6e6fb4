"""Programs that encrypt or decrypt a file in place, and checks of the file wherever one ended."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from async_history import HistoryManager
from async_history._core.encryption.key_statements import MARKS
from async_history._core.encryption.sealing import BEGIN
from async_history.errors import KeyMissing
from tests.subprocesses.checks import check_index, check_levels, check_sound, looking
from tests.subprocesses.opened import opened
from tests.support.keys import ring
from tests.support.look_alikes import LOOK_SEALED, fill_with_look_alikes, require_look_alikes

_WORD: Final = "a word in clear"
_RECORDS: Final = 30


async def _filled(path: Path, **options: Any) -> None:
    details: dict[str, Any] = {"context": {"why": _WORD}, "cause": {"run_id": _WORD}}
    records = [
        {"id": f"{n:02}", "memory_id": f"m{n % 3}", "new_memory": _WORD, "event": "UPDATE"}
        for n in range(_RECORDS)
    ]
    async with opened(path, **options) as history:
        await history.batch_add_history(
            [{**one, **(details if n % 2 else {})} for n, one in enumerate(records)]
        )
        await history.save_messages([{"role": "user", "content": _WORD}] * 3, "scope")
        await fill_with_look_alikes(history)


async def _check_texts(history: HistoryManager) -> None:
    found = [record async for record in history.query_history()]
    records = [record for record in found if record.memory_id.startswith("m")]
    assert [record.id for record in records] == [f"{n:02}" for n in range(_RECORDS)]
    assert {record.new_memory for record in records} == {_WORD}
    assert [record.context is None for record in records] == [n % 2 == 0 for n in range(_RECORDS)]
    assert await history.count_history(cause={"run_id": _WORD}) == _RECORDS // 2
    messages = await history.get_last_messages("scope")
    assert [message.content for message in messages] == [_WORD] * 3
    await require_look_alikes(history)


async def encrypt(path: Path, report: Callable[[str], None], *, arm: Callable[[], None]) -> None:
    """Fill a file in clear; then open it with keys, encrypt it and close, being killed at some
    call."""
    await _filled(path)
    arm()
    report("encrypting")
    async with opened(path, keys=ring("one")) as history:
        await history.encryption.encrypt()
        report("closing")
    report("closed")


async def encrypt_again(path: Path) -> None:
    """Read all of a file as a kill left it, encrypt it again, and read it again."""
    async with opened(path, keys=ring("one")) as history:
        await _check_texts(history)
        assert (await history.encryption.encrypt()).clear == 0
        await _check_texts(history)
        assert (await history.operations())[-1].state == "finished"


async def decrypt(path: Path, report: Callable[[str], None], *, arm: Callable[[], None]) -> None:
    """Fill an encrypted file; then decrypt it and close, being killed at some call."""
    await _filled(path, keys=ring("one"))
    async with opened(path, keys=ring("one")) as history:
        arm()
        report("decrypting")
        await history.encryption.decrypt()
        report("closing")
    report("closed")


async def decrypt_again(path: Path) -> None:
    """Read all of a file as a kill left it, decrypt it if it needs keys, and read it again."""
    try:
        async with opened(path) as history:
            await _check_texts(history)
    except KeyMissing:
        async with opened(path, keys=ring("one")) as history:
            await _check_texts(history)
            await history.encryption.decrypt()
            await _check_texts(history)
            assert (await history.operations())[-1].state == "finished"
        async with opened(path) as history:
            await _check_texts(history)


def check_decrypted(path: Path) -> None:
    """Check that the file is sound, and that nothing in it is encrypted."""
    with looking(path, "rw") as connection:
        check_sound(connection)
        check_index(connection)
        check_levels(connection)
        rows = [
            *connection.execute("SELECT * FROM history"),
            *connection.execute("SELECT * FROM async_history_details"),
            *connection.execute("SELECT * FROM messages"),
        ]
        named = re.findall(f"{BEGIN}([0-9a-f]{{16}})", str(rows))
        assert set(named) == {LOOK_SEALED[-1][len(BEGIN) :][:16]}


def check_encrypted(path: Path) -> None:
    """Check that the file is sound, and that no file of its folder has a text in clear."""
    for file in path.parent.iterdir():
        assert _WORD.encode() not in file.read_bytes(), file
    with looking(path, "rw") as connection:
        check_sound(connection)
        check_index(connection)
        check_levels(connection)
        keys = {
            key_id for (key_id,) in connection.execute("SELECT id FROM async_history_data_keys")
        }
        assert not keys.intersection(MARKS)
