"""The cases of `async_history.testing` that read texts, and every way to write texts."""

from typing import Any, Final

from async_history import HistoryManager
from async_history.testing import (
    ContractCases,
    EraseOwnerCases,
    FollowCases,
    OwnerCases,
    QueryCases,
    RandomCallCases,
    RecordCases,
    RollbackCases,
    TextCases,
)


class EncryptedCases(
    ContractCases,
    RecordCases,
    TextCases,
    QueryCases,
    OwnerCases,
    EraseOwnerCases,
    RollbackCases,
    FollowCases,
    RandomCallCases,
): ...


ANN: Final[Any] = {"user_id": "ann"}
BOB: Final[Any] = {"user_id": "bob", "agent_id": "helper"}


async def texts(history: HistoryManager, memory_id: str) -> list[str | None]:
    """Return a memory's texts, oldest first."""
    return [record.new_memory for record in await history.get_history(memory_id)]


async def write_each_way(history: HistoryManager, number: int, word: str = "tea") -> list[str]:
    """Write a memory in each kind of batch; return the memories."""
    names = [f"{kind}{number}" for kind in ("lone", "owned", "latest", "named", "many0", "many49")]
    await history.add_history(names[0], None, word, "ADD")
    await history.add_history(names[1], None, word, "ADD", owner=ANN)
    await history.update_history(names[2], word)
    await history.batch_add_history([{"memory_id": names[3], "new_memory": word, "event": "ADD"}])
    await history.batch_add_history(
        [
            {"memory_id": f"many{n}{number}", "new_memory": word, "event": "ADD", "owner": BOB}
            for n in range(50)
        ]
    )
    return names
