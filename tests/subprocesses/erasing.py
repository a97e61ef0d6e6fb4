"""A program that prunes and erases, and checks of its file wherever it was killed."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from async_history import HistoryManager
from async_history._core.removing.erase_request import EraseLimits
from async_history._core.removing.prune_request import PruneLimits
from tests.subprocesses.checks import check_index, check_levels, check_sound, looking
from tests.subprocesses.opened import journal, opened
from tests.support.limits import limited

_CUTOFF: Final = datetime(2026, 6, 1, tzinfo=UTC)
_OLD, _NEW = _CUTOFF - timedelta(days=1), _CUTOFF
_TEXT: Final = "what ann told"
_STEP: Final = 12
"""Records of a step. A small file is checked quickly."""
_SECRETS: Final = 20
_OTHERS: Final = 20
_MEMORIES: Final = 6


def _opened(path: Path, **options: Any) -> HistoryManager:
    return limited(
        opened(path, **options),
        prune=PruneLimits(records=_STEP, most_records=_STEP),
        erase=EraseLimits(records=_STEP),
    )


def _records() -> list[dict[str, Any]]:
    """Deleted memories, existing ones with old records, and one to erase."""
    secrets = [
        {"id": f"s{n}", "memory_id": "ann", "event": "UPDATE", "new_memory": f"{_TEXT} {n}"}
        for n in range(_SECRETS)
    ]
    past = [
        {"memory_id": f"{'dead' if n % 2 else 'alive'} {n % _MEMORIES}", "event": "UPDATE"}
        for n in range(_OTHERS)
    ]
    ends = [
        {"memory_id": f"{'dead' if n % 2 else 'alive'} {n}", "event": "DELETE" if n % 2 else "ADD"}
        for n in range(_MEMORIES)
    ]
    old = [{**record, "updated_at": _OLD, "created_at": _OLD} for record in (*past, *ends)]
    return [*old, *({**record, "updated_at": _NEW} for record in secrets)]


async def prune_and_erase(
    path: Path, report: Callable[[str], None], *, arm: Callable[[], None]
) -> None:
    """Fill a file; then prune, erase and close, being killed at some call."""
    async with _opened(path) as history:
        await history.batch_add_history(_records())
        await history.save_messages([{"role": "user", "content": _TEXT}] * 12, "scope")
        arm()
        report("pruning")
        await _do_both(history, report)
        report("closing")
    report("closed")


async def _do_both(history: HistoryManager, report: Callable[[str], None]) -> None:
    await history.prune(older_than=_CUTOFF)
    report("erasing")
    await history.erase(memory_ids=["ann"], session_scopes=["scope"], reason="asked")


async def prune_and_erase_again(path: Path) -> None:
    """Prune and erase again in the file as a kill left it."""
    async with _opened(path, create=False) as history:
        await _do_both(history, lambda _: None)
        for n in range(_MEMORIES):
            left = 0 if n % 2 else 1
            name = f"{'dead' if n % 2 else 'alive'} {n}"
            assert [r.event for r in await history.get_history(name)] == ["ADD"] * left
        assert len(await history.get_history("ann")) == _SECRETS
        assert (await history.erasures())[-1].finished_at is not None


def check_pruned_and_erased(path: Path, lines: list[str]) -> None:
    """Check a file after a kill: no call is half there, no memory is back at an earlier state."""
    with looking(path, "ro" if journal() == "wal" else "rw") as connection:
        check_sound(connection)
        check_index(connection)
        latest = dict(
            connection.execute("SELECT memory_id, event FROM history ORDER BY rowid").fetchall()
        )
        for n in range(_MEMORIES):
            if n % 2:
                assert latest.get(f"dead {n}", "DELETE") == "DELETE"
            else:
                assert latest[f"alive {n}"] == "ADD"
        (count, told) = connection.execute(
            "SELECT count(*), count(new_memory) FROM history WHERE memory_id = 'ann'"
        ).fetchone()
        assert count == _SECRETS
        (noted,) = connection.execute(
            "SELECT coalesce(sum(records), 0) FROM async_history_operations WHERE kind = 'erase'"
        ).fetchone()
        assert told + noted == _SECRETS, "each step is recorded with what it erased"
        (messages,) = connection.execute("SELECT count(*) FROM messages").fetchone()
        assert messages in (0, 10)
        finished = connection.execute(
            "SELECT ended_at FROM async_history_operations WHERE kind = 'erase'"
        ).fetchall()
        if "closing" in lines:
            assert finished
            assert finished[0][0] is not None
        if finished and finished[0][0] is not None:
            assert not told
            assert not messages


def check_gone(path: Path) -> None:
    """Check that the file is sound, and that no file of its folder has an erased text."""
    for file in path.parent.iterdir():
        assert _TEXT.encode() not in file.read_bytes(), file
    with looking(path, "rw") as connection:
        check_sound(connection)
        check_index(connection)
        check_levels(connection)
