"""Vector stores in this process that are not thread-safe: Qdrant's local store.

mem0 calls its vector store in several threads. Two calls of Qdrant's local store at the same time
fail ("cannot start a transaction within a transaction") or mix up its points. So its calls are
serialized.
"""

import threading
import weakref
from collections.abc import Callable
from typing import Any, Final

from async_history.mem0._threads.forks import forget_in_child
from async_history.mem0._threads.workers import in_thread


class _Locks:
    """A lock for each client in one process: a forked child starts without locks."""

    def __init__(self) -> None:
        self.forget()
        forget_in_child(self)

    def forget(self) -> None:
        """Drop all locks, even if threads of the parent hold some."""
        self._making = threading.Lock()
        self._of: weakref.WeakKeyDictionary[Any, threading.RLock] = weakref.WeakKeyDictionary()

    def of(self, client: object) -> "threading.RLock":
        with self._making:
            return self._of.setdefault(client, threading.RLock())


_locks: Final = _Locks()


def lock_of(owner: object) -> "threading.RLock | None":
    """Return the lock for calls of a vector store, or of a memory's; None if none is needed.

    The store of mem0's entities shares its client with the store of memories.
    """
    client = getattr(getattr(owner, "vector_store", owner), "client", None)
    if client is None or type(getattr(client, "_client", None)).__name__ != "QdrantLocal":
        return None
    return _locks.of(client)


def call_alone(
    lock: "threading.RLock", function: Callable[..., Any], /, *arguments: Any, **options: Any
) -> Any:
    """Call a function of a vector store under its lock."""
    with lock:
        return function(*arguments, **options)


async def in_store_thread(memory: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function that uses a memory's vector store in a thread, under the store's lock."""
    lock = lock_of(memory)
    if lock is None:
        return await in_thread(function, *arguments)
    return await in_thread(call_alone, lock, function, *arguments)
