"""Locks on memories, shared by the processes that write to the same store."""

from collections.abc import Callable
from typing import Protocol


class ProcessLocks(Protocol):
    """A process's locks: one for each memory, by a number. They end with the process.

    Only one caller at a time asks for a number, waits for it, takes it or releases it.
    """

    @property
    def longest_wait_s(self) -> float:
        """The longest pause in seconds between two attempts to take a lock."""

    def open(self) -> None:
        """Open what the locks are held on. It blocks. Idempotent."""

    def take(self, number: int) -> bool:
        """Take a lock; return False if another process has it. It does not wait.

        Raises:
            StorageError: the lock can't be asked for.
        """

    def ask_for(self, number: int, notify: Callable[[], None]) -> None:
        """Wait for a lock: `notify` may be called, on any thread, when `take` may succeed."""

    def stop_asking(self, number: int) -> None:
        """Undo `ask_for`."""

    def is_asked_for(self, number: int) -> bool:
        """Return whether a lock that is held here should be left to another process for once."""

    def release(self, number: int) -> None:
        """Release a lock."""

    def look(self) -> None:
        """Look whether locks were lost, where nothing tells. Called at most once in a turn of a
        loop, before `take` and `is_lost`."""

    def is_lost(self, number: int) -> bool:
        """Return whether another process may have a lock that is held here, as far as is known."""

    def reset_in_child(self) -> None:
        """Start without locks in a forked child, without touching those of the parent."""
