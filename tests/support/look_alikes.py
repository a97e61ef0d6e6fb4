"""Clear texts that look encrypted, in every place where a history has texts."""

from typing import Any, Final

from async_history import HistoryManager
from tests.support.encrypted_stores import ANN, all_of, contents

LOOK_SEALED: Final = (
    "ahs1:",
    "tea :ahs1",
    "ahs1:0123456789abcdef:AAAA:ahs1",
    f"ahs1:0123456789abcdef:{'A' * 80}:ahs1",
)
"""Clear texts in the form, or a part of the form, of encrypted ones."""


async def fill_with_look_alikes(history: HistoryManager) -> None:
    """Record texts that look encrypted beside others, and buffer them as messages."""
    for n, text in enumerate(LOOK_SEALED):
        why = {"sealed": text, "run_id": text}
        await history.add_history(f"a{n}", text, text, "UPDATE", context=why, cause=why)
        await history.add_history(f"b{n}", None, "tea", "ADD", context={"sealed": text})
        await history.add_history(f"c{n}", "tea", text, "UPDATE", owner=ANN)
    await history.save_messages([{"content": one} for one in LOOK_SEALED], "user_id=ann")


async def add_look_alikes(history: HistoryManager, name: str) -> None:
    """Record a memory with such texts, and buffer one as a message."""
    first, second, *_ = LOOK_SEALED
    why = {"sealed": first, "run_id": name}
    await history.add_history(name, None, first, "ADD", context=why, cause=why)
    await history.batch_add_history(
        [
            {"memory_id": name, "old_memory": first, "new_memory": second, "event": "UPDATE"},
            {"memory_id": f"{name} of ann", "new_memory": second, "event": "ADD", "owner": ANN},
        ]
    )
    await history.save_messages([{"content": second}], "user_id=ann")


async def all_texts(history: HistoryManager) -> tuple[list[Any], list[Any], list[int]]:
    """Return all records and messages, and how many records each cause finds."""
    found = [await history.count_history(cause={"run_id": text}) for text in LOOK_SEALED]
    return await all_of(history), await contents(history), found
