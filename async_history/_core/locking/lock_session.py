"""The database session that holds a process's locks, on a separate thread.

It requests many locks in one statement and never waits on the server: it retries a lock that
another session holds. When its connection is lost, the server releases its locks. It reconnects at
once and takes them again; a lock that another session has taken since is lost.
"""

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import uniform
from time import monotonic
from typing import Any, Final

from async_history._core.locking.lock_connection import LockConnection, SessionOptions
from async_history._core.wording import counted
from async_history.errors import (
    HistoryClosed,
    HistoryError,
    StorageError,
    StorageReadOnly,
    StorageUnreachable,
)

_log = logging.getLogger("async_history")

_SHORTEST_PAUSE_S: Final = 0.001
_LONGEST_PAUSE_S: Final = 0.01
"""The longest pause in seconds before a lock of another session is requested again."""
LONGEST_RUN_S: Final = 0.2
"""Seconds for which a process may pass a lock between its own calls before it yields to others."""
_RECONNECT_S: Final = 0.1
Notify = Callable[[], None]


@dataclass(slots=True)
class _Request:
    """A request for a lock.

    Attributes:
        notify: called when the lock was granted, or has failed.
        at: the monotonic time of the next request to the server.
        pause_s: seconds to wait after that.
    """

    notify: Notify
    at: float = 0.0
    pause_s: float = _SHORTEST_PAUSE_S


class LockSession:
    """A session with locks, on its thread's loop. `post`, `take` and `is_*` work on any thread.

    A lock is held from the server's grant on; `granted` means that its caller has not taken it
    yet. It is lost when its connection is, until the next connection has it again.
    """

    def __init__(self, options: SessionOptions, most_locks: int) -> None:
        self._most_locks = most_locks
        self._options = options
        self._check_at: float | None = None
        self._posted: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._is_woken = False
        self._wakeup = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._requests: dict[int, _Request] = {}
        self._held_since: dict[int, float] = {}
        self._granted: set[int] = set()
        self._lost: set[int] = set()
        self._taken_by_others: set[int] = set()
        self._to_release: dict[int, None] = {}
        self._failures: dict[int, HistoryError] = {}
        self._connection: LockConnection | None = None
        self._failing_since: float | None = None
        self._connect_at = 0.0
        self._is_pooled = False
        self._final_error: HistoryError | None = None
        self._is_ended = False

    # Called on any thread

    def post(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function on the session's loop, in the order of these calls."""
        self._posted.append((function, arguments))
        if self._loop is not None and not self._is_woken:
            self._is_woken = True
            try:
                self._loop.call_soon_threadsafe(self._wakeup.set)
            except RuntimeError as error:
                raise HistoryClosed(
                    "the history was closed while this waited for a lock"
                ) from error

    def take(self, number: int) -> bool:
        """Take a lock that was granted.

        Raises:
            StorageError: the lock cannot be taken.
        """
        if self._is_pooled:
            return True
        failure = self._failures.pop(number, self._final_error)
        if failure is not None:
            raise type(failure)(str(failure)) from failure
        try:
            self._granted.remove(number)
        except KeyError:
            return False
        return True

    def is_held_long(self, number: int) -> bool:
        """Return whether a lock has been held for `LONGEST_RUN_S`."""
        since = self._held_since.get(number)
        return since is not None and monotonic() - since > LONGEST_RUN_S

    def is_lost(self, number: int) -> bool:
        """Return whether another session may hold a lock that is held here."""
        return number in self._lost or number in self._taken_by_others

    # Posted functions

    def ask(self, number: int, notify: Notify) -> None:
        """Queue a request for a lock. A lock that was just released is first offered to other
        sessions.
        """
        just_released = number in self._to_release
        self._requests[number] = _Request(notify, self._after_others() if just_released else 0.0)

    def stop_asking(self, number: int) -> None:
        """Remove a request."""
        self._requests.pop(number, None)
        self._failures.pop(number, None)
        try:
            self._granted.remove(number)
        except KeyError:
            return  # taken, or never granted
        self.release(number)

    def release(self, number: int) -> None:
        """Release a lock; if it is requested here again, other sessions may try first."""
        if self._held_since.pop(number, None) is not None and not self.is_lost(number):
            self._to_release[number] = None
        self._lost.discard(number)
        self._taken_by_others.discard(number)
        request = self._requests.get(number)
        if request is not None:
            request.at = self._after_others()

    def _after_others(self) -> float:
        """Return the time by which all waiting sessions will have requested again."""
        return monotonic() + 2 * _LONGEST_PAUSE_S

    # The session

    async def serve(self) -> None:
        """Run posted functions and ask for locks, until `end`."""
        self._loop = asyncio.get_running_loop()
        where = self._options.where
        try:
            await self._serve()
        except Exception as error:  # raised to all waiting and later callers
            _log.exception("the locks at %s can't be asked for any more", where)
            self._final_error = StorageError(f"the locks at {where} failed: {error!r}")
            for number in list(self._requests):
                self._notify(number)

    async def _serve(self) -> None:
        while not self._is_ended:
            pause = self._pause()
            if not self._posted and pause != 0:
                try:
                    async with asyncio.timeout(pause):
                        await self._wakeup.wait()
                except TimeoutError:
                    self._close_if_idle()
            self._is_woken = False
            self._wakeup.clear()
            while self._posted:
                function, arguments = self._posted.popleft()
                function(self, *arguments)
            if self._pause() == 0:
                await self._ask_server()

    def _pause(self) -> float | None:
        """Return the seconds until the next request to the server; 0 for now."""
        now = monotonic()
        if self._connection is None and self._connect_at > now:
            return self._connect_at - now
        if self._to_release or self._lost:
            return 0
        checked = self._check_at if self._held_since else None
        times = [] if checked is None else [checked]
        if self._room() > 0:
            times += [
                request.at for number, request in self._requests.items() if self._may_ask(number)
            ]
        return max(0, min(times) - now) if times else self._options.idle_s

    def _due(self) -> list[int]:
        """Return the locks to request now, the longest waiting first."""
        now = monotonic()
        due = (
            number
            for number, request in self._requests.items()
            if request.at <= now and self._may_ask(number)
        )
        return [number for number, _ in zip(due, range(self._room()), strict=False)]

    def _room(self) -> int:
        return self._most_locks - len(self._held_since)

    def _may_ask(self, number: int) -> bool:
        return number not in self._held_since

    async def _ask_server(self) -> None:
        released, self._to_release = list(self._to_release), {}
        lost, due = list(self._lost), self._due()
        try:
            if self._connection is None:
                await self._connect()
                released = []  # with the previous connection
            if self._connection is None or self._is_pooled:
                for number in list(self._requests):
                    self._notify(number)
                return
            taken = await self._connection.release_and_try(released, lost + due)
        except HistoryError as error:
            self._drop_connection()
            self._on_failure(error)
            return
        self._failing_since = None
        if self._options.check_s is not None:
            self._check_at = monotonic() + self._options.check_s
        self._take_again(lost, taken)
        for number in due:
            self._on_answer(number, is_granted=taken[number])

    def _on_answer(self, number: int, *, is_granted: bool) -> None:
        request = self._requests[number]
        if not is_granted:
            pause_s = request.pause_s
            request.at = monotonic() + uniform(pause_s / 2, pause_s)  # noqa: S311 - to wait
            request.pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            return
        self._held_since[number] = monotonic()
        self._granted.add(number)
        self._notify(number)

    def _notify(self, number: int) -> None:
        """Notify the waiting caller and remove the request; release a lock that cannot be taken."""
        request = self._requests.pop(number)
        try:
            request.notify()
        except RuntimeError:  # the caller's loop was closed
            self.stop_asking(number)

    def _take_again(self, lost: Sequence[int], taken: Mapping[int, bool]) -> None:
        """Update which lost locks this connection has again."""
        gone = [number for number in lost if not taken[number]]
        self._lost.difference_update(lost)
        self._taken_by_others.update(gone)
        if gone:
            _log.warning(
                "the connection to %s that held the turns of %s was lost, and other "
                "processes have taken %d of them: their updates can have come between",
                self._options.where,
                counted(len(lost), "memory", "memories"),
                len(gone),
            )

    # Its connection

    async def _connect(self) -> None:
        connection = await self._options.connect()
        if connection is None:
            self._is_pooled = True
            self._warn_of_pooler()
            return
        self._connection = connection
        connection.when_terminated(partial(self._on_terminated, connection))

    def _warn_of_pooler(self) -> None:
        _log.warning(
            "%s is reached through a pooler, where a session keeps no locks: updates of one memory "
            "take turns within this process only, and those of other processes can come between",
            self._options.where,
        )

    def _on_terminated(self, connection: LockConnection) -> None:
        if connection is self._connection:
            self._drop_connection()
            self._wakeup.set()

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        self._to_release.clear()
        self._lost = self._held_since.keys() - self._taken_by_others
        if connection is not None:
            connection.terminate()

    def _on_failure(self, error: HistoryError) -> None:
        """Retry while the server may come back; after that, fail the requests."""
        now = monotonic()
        if self._failing_since is None:
            self._failing_since = now
        self._connect_at = now + _RECONNECT_S
        may_come_back = isinstance(error, StorageUnreachable | StorageReadOnly)
        if may_come_back and now - self._failing_since < self._options.retry_timeout_s:
            return
        self._failing_since = None
        for number in [number for number in self._requests if number not in self._held_since]:
            self._failures[number] = error
            self._notify(number)

    def _close_if_idle(self) -> None:
        if not self._held_since and not self._requests and self._connection is not None:
            self._drop_connection()

    async def end(self) -> None:
        """Close the connection, which releases all locks."""
        self._is_ended = True
        self._wakeup.set()
        self._drop_connection()

    def close_inherited(self) -> None:
        """Close a forked child's descriptor; otherwise the parent's locks would outlive the
        parent."""
        descriptor = -1 if self._connection is None else self._connection.descriptor
        if descriptor >= 0:
            os.close(descriptor)
