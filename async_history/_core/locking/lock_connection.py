"""The connection that holds a process's locks, which a database provides, and its options."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class LockConnection(Protocol):
    """A connection whose session holds locks by number."""

    async def release_and_try(
        self, released: Sequence[int], tried: Sequence[int]
    ) -> Mapping[int, bool]:
        """Release locks, then try to take others; return whether each of these was taken.

        Raises:
            StorageError: the outcome is unknown; the connection can no longer be used.
        """

    def when_terminated(self, call: Callable[[], None]) -> None:
        """Call a function on the loop when the connection is lost, if the driver reports it."""

    def terminate(self) -> None:
        """Close the connection at once; the server then releases its locks."""

    @property
    def descriptor(self) -> int:
        """The descriptor of its socket; -1 if it is closed or unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """The options of a session.

    Attributes:
        connect: connects, on the session's loop; returns None behind a pooler, whose sessions keep
            no locks.
        where: the server, for messages.
        idle_s: seconds that a connection without locks is kept.
        check_s: seconds between checks of a connection with locks; None if the driver reports a
            loss.
        retry_timeout_s: seconds to retry if the server can't be reached.
    """

    connect: Callable[[], Awaitable[LockConnection | None]]
    where: str
    idle_s: float | None
    check_s: float | None = None
    retry_timeout_s: float
