"""Clear texts that look encrypted, in every place where a history has texts."""

from collections.abc import Callable
from typing import Any, Final

from async_history import HistoryManager
from async_history.errors import KeyMissing
from tests.support.encrypted_stores import ANN, all_of, contents

LOOK_SEALED: Final = (
    "ahs1:",
    "tea :ahs1",
    "ahs1:0123456789abcdef:AAAA:ahs1",
    f"ahs1:0123456789abcdef:{'A' * 80}:ahs1",
)
"""Clear texts in the form, or a part of the form, of encrypted ones."""


async def fill_with_look_alikes(
    history: HistoryManager, session_scope: str = "user_id=ann"
) -> None:
    """Record texts that look encrypted, and others, and buffer them as messages."""
    for n, text in enumerate(LOOK_SEALED):
        why = {"sealed": text, "run_id": text}
        await history.add_history(f"a{n}", text, text, "UPDATE", context=why, cause=why)
        await history.add_history(f"b{n}", None, "tea", "ADD", context={"sealed": text})
        await history.add_history(f"c{n}", "tea", text, "UPDATE", owner=ANN)
    await history.save_messages([{"content": one} for one in LOOK_SEALED], session_scope)


async def require_look_alikes(history: HistoryManager, session_scope: str = "user_id=ann") -> None:
    """Check that all of `fill_with_look_alikes` is read as it was given."""
    for n, text in enumerate(LOOK_SEALED):
        ((a,), (b,), (c,)) = [await history.get_history(f"{name}{n}") for name in "abc"]
        why = {"sealed": text, "run_id": text}
        assert (a.old_memory, a.new_memory, a.context, a.cause) == (text, text, why, why)
        assert (b.new_memory, b.context) == ("tea", {"sealed": text})
        assert (c.old_memory, c.new_memory) == ("tea", text)
        assert await history.count_history(cause={"run_id": text}) == 1
    messages = await history.get_last_messages(session_scope)
    assert [one.content for one in messages] == list(LOOK_SEALED)


async def turn_on_and_off(
    open_with_keys: Callable[[], HistoryManager], open_in_clear: Callable[[], HistoryManager]
) -> None:
    """Encrypt a history with such texts, replace its data keys, and decrypt it, from wherever an
    earlier call of this was interrupted."""
    try:
        async with open_in_clear() as history:
            await require_look_alikes(history)
    except KeyMissing:
        pass  # it is encrypted, at least in part
    async with open_with_keys() as history:
        await require_look_alikes(history)
        for call in ("encrypt", "replace_data_keys", "decrypt"):
            await getattr(history.encryption, call)()
            await require_look_alikes(history)
    async with open_in_clear() as history:
        await require_look_alikes(history)


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
