"""What processes that write to the same store lock its memories with."""

from collections.abc import Callable
from typing import Protocol


class ProcessLocks(Protocol):
    """A process's locks: one for each memory, by a number. Gone with the process.

    Only one caller at a time asks for a number, waits for it, has it or leaves it.
    """

    @property
    def longest_wait_s(self) -> float:
        """How often to try `take` again while nothing was told."""

    def open(self) -> None:
        """Open what the locks are held on. Blocking; nothing if it is open."""

    def take(self, number: int) -> bool:
        """Take a lock, or return False where it is not to be had yet. Does not wait.

        Raises:
            StorageError: it can't be asked for.
        """

    def ask_for(self, number: int, tell: Callable[[], None]) -> None:
        """Wait for a lock: `tell` may be called, from any thread, when `take` is worth a try."""

    def stop_asking(self, number: int) -> None:
        """Take `ask_for` back."""

    def is_asked_for(self, number: int) -> bool:
        """Whether a lock that is held here ought to be left to another process for once."""

    def leave(self, number: int) -> None:
        """Give a lock up."""

    def is_lost(self, number: int) -> bool:
        """Whether a lock that is held here may be another process's by now."""

    def forget(self) -> None:
        """Begin again in a forked child, without touching what the parent holds."""
