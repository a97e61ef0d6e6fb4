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
        """Open the file or session for the locks. It blocks. Idempotent."""

    def take(self, number: int) -> bool:
        """Take a lock without waiting; return False if another process holds it.

        Raises:
            StorageError: the lock cannot be requested.
        """

    def ask_for(self, number: int, notify: Callable[[], None]) -> None:
        """Wait for a lock: `notify` may be called, on any thread, when `take` may succeed."""

    def stop_asking(self, number: int) -> None:
        """Undo `ask_for`."""

    def is_asked_for(self, number: int) -> bool:
        """Return whether a lock that is held here should next go to another process."""

    def release(self, number: int) -> None:
        """Release a lock."""

    def look(self) -> None:
        """Check whether locks were lost, if nothing reports that. It is called at most once per
        iteration of a loop, before `take` and `is_lost`.
        """

    def is_lost(self, number: int) -> bool:
        """Return whether another process may hold a lock that is held here, as far as known."""

    def reset_in_child(self) -> None:
        """Start without locks in a forked child, and keep those of the parent."""
