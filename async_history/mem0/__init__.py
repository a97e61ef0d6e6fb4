"""mem0's `AsyncMemory` and `Memory`, with their history in this library.

    from async_history.mem0 import AsyncMemory  # was: from mem0 import AsyncMemory

Nothing else changes: the constructor, results and errors are the same, on mem0ai 1.0 and 2.x. For a
program that builds mem0's classes itself, call `install()`.
"""

from async_history.mem0 import _version  # noqa: F401, I001 - first: it refuses other versions
from async_history.mem0 import _to_thread_patch  # noqa: F401 - patches mem0's asyncio.to_thread
from async_history._core.public import show_as
from async_history.mem0._async_memory import AsyncMemory
from async_history.mem0._checking.differences import (
    Difference,
    MemoryCheck,
    MemoryDifference,
    Repair,
)
from async_history.mem0._errors import HistoryNotWritten, RollbackIncomplete
from async_history.mem0._forgetting.forget_request import ForgetReport
from async_history.mem0._install import install, uninstall
from async_history.mem0._checking.learning import LearnedOwners
from async_history.mem0._memory import Memory

__all__ = [
    "AsyncMemory",
    "Difference",
    "ForgetReport",
    "HistoryNotWritten",
    "LearnedOwners",
    "Memory",
    "MemoryCheck",
    "MemoryDifference",
    "Repair",
    "RollbackIncomplete",
    "install",
    "uninstall",
]

show_as(__name__, __all__, globals())
