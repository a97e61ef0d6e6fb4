"""Programs that change the keys of an encrypted file, and checks of the file wherever one ended."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from async_history import HistoryManager, Owner
from async_history._core.encryption.key_statements import owner_digest
from tests.subprocesses.checks import check_index, check_levels, check_sound, looking
from tests.subprocesses.opened import opened
from tests.support.keys import ring
from tests.support.look_alikes import LOOK_SEALED, fill_with_look_alikes, require_look_alikes

_ANN: Final[dict[str, Any]] = {"user_id": "ann"}
_OWNERS: Final[Sequence[dict[str, Any] | None]] = (_ANN, {"user_id": "bob"}, None)
_RECORDS: Final = 30
_SCOPE: Final = "user_id=ann"


def _text(number: int) -> str:
    return f"a word in clear {number}"


async def _filled(path: Path) -> None:
    async with opened(path, keys=ring("one")) as history:
        await history.batch_add_history(
            [
                {
                    "id": f"{n:02}",
                    "memory_id": f"m{n % 3}",
                    "new_memory": _text(n),
                    "event": "UPDATE",
                    "owner": _OWNERS[n % 3],
                    "context": {"why": _text(n)},
                    "cause": {"run_id": _text(n)},
                }
                for n in range(_RECORDS)
            ]
        )
        await history.save_messages([{"content": _text(n)} for n in range(3)], _SCOPE)
        await fill_with_look_alikes(history, "scope")


async def _check_texts(history: HistoryManager) -> None:
    found = [record async for record in history.query_history()]
    records = [record for record in found if record.memory_id.startswith("m")]
    assert [record.id for record in records] == [f"{n:02}" for n in range(_RECORDS)]
    for number, record in enumerate(records):
        assert record.new_memory == _text(number)
        assert record.context == {"why": _text(number)}
        assert await history.count_history(cause={"run_id": _text(number)}) == 1
    messages = await history.get_last_messages(_SCOPE)
    assert [message.content for message in messages] == [_text(n) for n in range(3)]
    await require_look_alikes(history, "scope")


async def rotate(path: Path, report: Callable[[str], None], *, arm: Callable[[], None]) -> None:
    """Fill a file; then wrap its keys by a new master key and close, being killed at some call."""
    await _filled(path)
    async with opened(path, keys=ring("two", "one")) as history:
        arm()
        report("rotating")
        await history.encryption.rotate_keys()
        report("closing")
    report("closed")


async def rotate_again(path: Path) -> None:
    """Read all of a file as a kill left it, and repeat the call. Then only the new key opens it."""
    async with opened(path, keys=ring("two", "one")) as history:
        await _check_texts(history)
        await history.encryption.rotate_keys()
        assert (await history.operations())[-1].state == "finished"
    async with opened(path, keys=ring("two")) as history:
        await _check_texts(history)
        await history.add_history("m0", None, "later", "ADD")


async def replace(path: Path, report: Callable[[str], None], *, arm: Callable[[], None]) -> None:
    """Fill a file; then replace its data keys and close, being killed at some call."""
    await _filled(path)
    async with opened(path, keys=ring("one")) as history:
        arm()
        report("replacing")
        await history.encryption.replace_data_keys()
        report("closing")
    report("closed")


async def replace_again(path: Path) -> None:
    """Read all of a file as a kill left it, replace its data keys again, and read it again."""
    async with opened(path, keys=ring("one")) as history:
        await _check_texts(history)
        replaced = await history.encryption.replace_data_keys()
        assert replaced.records == _RECORDS + 3 * len(LOOK_SEALED)
        await _check_texts(history)
        assert (await history.operations())[-1].state == "finished"


async def forget(path: Path, report: Callable[[str], None], *, arm: Callable[[], None]) -> None:
    """Fill a file; then erase an owner and close, being killed at some call."""
    await _filled(path)
    async with opened(path, keys=ring("one")) as history:
        arm()
        report("forgetting")
        await history.erase(**_ANN, reason="asked")
        report("closing")
    report("closed")


async def forget_again(path: Path) -> None:
    """Read all of a file as a kill left it, and erase the owner again."""
    async with opened(path, keys=ring("one")) as history:
        await _check_others(history)
        for record in await history.get_history("m0"):
            assert record.new_memory in (_text(int(record.id)), None)
        await history.erase(**_ANN, reason="asked")
        assert {one.new_memory for one in await history.get_history("m0")} == {None}
        assert await history.get_last_messages(_SCOPE) == []
        await _check_others(history)
        assert (await history.erasures())[-1].finished_at is not None


async def _check_others(history: HistoryManager) -> None:
    for memory in (1, 2):
        records = await history.get_history(f"m{memory}")
        assert [one.new_memory for one in records] == [_text(n) for n in range(memory, 30, 3)]


def _check(path: Path, owners: Sequence[dict[str, Any] | None]) -> None:
    for file in path.parent.iterdir():
        assert b"a word in clear" not in file.read_bytes(), file
    with looking(path, "rw") as connection:
        check_sound(connection)
        check_index(connection)
        check_levels(connection)
        wrapping = connection.execute("SELECT id FROM async_history_wrapping_keys").fetchall()
        keys = connection.execute(
            "SELECT owner, wrapping_key FROM async_history_data_keys ORDER BY owner"
        ).fetchall()
    digests = [owner_digest(None if one is None else Owner(**one)) for one in owners]
    assert keys == [(owner, *wrapping[0]) for owner in sorted((*digests, "index"))]
    assert len(wrapping) == 1


def check_changed(path: Path) -> None:
    """Check that the file is sound, and has one key for each owner."""
    _check(path, _OWNERS)


def check_forgotten(path: Path) -> None:
    """Check that the file is sound, and has no key of the erased owner."""
    _check(path, _OWNERS[1:])
