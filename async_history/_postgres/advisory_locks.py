"""Locks between processes on PostgreSQL: advisory locks of one session, for all threads.

The session asks for many locks in one statement and never waits at the server: it retries a lock
that another session has. When its connection is lost, its locks are released. It reconnects at
once and takes them again; a lock that another session took meanwhile stays lost.
"""

import asyncio
import contextvars
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from random import uniform
from time import monotonic
from typing import Any, Final

from async_history._core.loop_thread import LoopThread
from async_history._postgres.connect import Connection, connect_in_turn, typed
from async_history._postgres.errors import DriverError
from async_history._postgres.pool import is_pooled
from async_history._postgres.pool_limits import PoolLimits
from async_history._postgres.url import ServerUrl
from async_history.errors import (
    HistoryClosed,
    HistoryError,
    StorageError,
    StorageReadOnly,
    StorageUnreachable,
)

_log = logging.getLogger("async_history")

_ASK: Final = """
SELECT number, pg_catalog.pg_advisory_unlock(number)
FROM pg_catalog.unnest(pg_catalog.string_to_array($1, ',')::bigint[]) AS released (number)
UNION ALL
SELECT number, pg_catalog.pg_try_advisory_lock(number)
FROM pg_catalog.unnest(pg_catalog.string_to_array($2, ',')::bigint[]) AS asked (number)
"""
"""Release locks, then ask for others: an Append plan runs its parts in order. The arguments are
text, because asyncpg would look up the type bigint[]."""
_KEEP_ALIVE: Final = """
SELECT pg_catalog.set_config('tcp_keepalives_idle', '10', false),
       pg_catalog.set_config('tcp_keepalives_interval', '10', false),
       pg_catalog.set_config('tcp_keepalives_count', '3', false),
       pg_catalog.pg_is_in_recovery()
"""
"""Otherwise the server would keep the locks of a machine that is gone for two hours."""
_SHORTEST_PAUSE_S: Final = 0.001
_LONGEST_PAUSE_S: Final = 0.01
"""The longest pause in seconds before a lock that another session has is asked for again."""
_LONGEST_RUN_S: Final = 0.2
"""Seconds that one process may pass a lock between its own calls before others may have it."""
_RECONNECT_S: Final = 0.1
Tell = Callable[[], None]


class AdvisoryLocks:
    """A process's locks in one schema. See `ProcessLocks`.

    Args:
        server, limits: where and how to connect. It uses one connection beyond the pool's.
        schema: the history's schema; each schema has its own locks.
        retry_timeout_s: how long to retry if the server can't be reached.
    """

    longest_wait_s: Final = 0.05
    most_locks = 1_000
    """Of one process at a time: those of all sessions share one table of the server, with room for
    6,400 (`max_locks_per_transaction` times `max_connections`) unless that was changed."""

    def __init__(
        self, server: ServerUrl, limits: PoolLimits, schema: str, *, retry_timeout_s: float
    ) -> None:
        self._new_session = partial(_Session, server, limits, retry_timeout_s)
        salt = blake2b(f"async_history turns {schema}".encode(), digest_size=8).digest()
        self._salt = int.from_bytes(salt, "little") >> 2
        self._lock = threading.Lock()
        self._session: _Session | None = None
        self._thread: LoopThread | None = None

    def open(self) -> None:
        """Start the session's thread, which connects when the first lock is asked for."""
        with self._lock:
            if self._thread is None:
                session = self._new_session(self.most_locks)
                self._thread = LoopThread(session.end)
                # In an empty context: the thread would keep the caller's alive.
                contextvars.Context().run(self._thread.begin, session.serve)
                self._session = session

    def take(self, number: int) -> bool:
        """Take a lock that was granted."""
        return self._session is not None and self._session.take(self._of(number))

    def ask_for(self, number: int, tell: Tell) -> None:
        """Ask for a lock; `tell` is called when it is granted or has failed."""
        self._require_session().post(_Session.ask, self._of(number), tell)

    def stop_asking(self, number: int) -> None:
        """Stop asking for a lock, and release it if it was granted but not taken."""
        if self._session is not None:
            self._session.post(_Session.stop_asking, self._of(number))

    def is_asked_for(self, number: int) -> bool:
        """Return whether a lock has been held for `_LONGEST_RUN_S`, so that other processes may
        wait for it; whether they do is not known."""
        return self._session is not None and self._session.is_held_long(self._of(number))

    def release(self, number: int) -> None:
        """Release a lock."""
        if self._session is not None:
            self._session.post(_Session.release, self._of(number))

    def is_lost(self, number: int) -> bool:
        """Return whether a lock was lost with its connection and has not been taken again."""
        return self._session is not None and self._session.is_lost(self._of(number))

    def _of(self, number: int) -> int:
        return number ^ self._salt

    def _require_session(self) -> "_Session":
        if self._session is None:
            raise HistoryClosed("the locks of this history are not open")
        return self._session

    def reset_in_child(self) -> None:
        """Start over in a forked child."""
        self._lock = threading.Lock()
        if self._session is not None:
            _inherited.append((self._thread, self._session))  # garbage collection would close them
            self._session.close_inherited()
        self._session = self._thread = None

    def __del__(self) -> None:
        # On any thread: nothing here may wait.
        thread: LoopThread | None = getattr(self, "_thread", None)
        if thread is not None and thread.is_in_own_process:
            thread.leave()


_inherited: Final[list[object]] = []


class _LockConnection(Connection):
    """A connection with its socket."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        _, transport, *_ = arguments
        self.socket = transport.get_extra_info("socket")


@dataclass(slots=True)
class _Wish:
    """A lock that is waited for.

    Attributes:
        at: when to ask for it next, by the monotonic clock.
        pause_s: how long to wait after that.
    """

    tell: Tell
    at: float = 0.0
    pause_s: float = _SHORTEST_PAUSE_S


class _Session:
    """The session with the locks, on its thread's loop; `post`, `take` and `is_*` work on any
    thread.

    A lock is held from the server's grant on; `granted` means that its caller has not taken it
    yet. It is lost when its connection is, until the next connection has it again.
    """

    def __init__(
        self, server: ServerUrl, limits: PoolLimits, retry_timeout_s: float, most_locks: int
    ) -> None:
        self._most_locks = most_locks
        self._server = server
        self._limits = limits
        self._retry_timeout_s = retry_timeout_s
        self._posted: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._is_told = False
        self._news = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wishes: dict[int, _Wish] = {}
        self._held_since: dict[int, float] = {}
        self._granted: set[int] = set()
        self._lost: set[int] = set()
        self._taken_away: set[int] = set()
        self._to_release: dict[int, None] = {}
        self._failures: dict[int, HistoryError] = {}
        self._connection: Any = None
        self._statement: Any = None
        self._failing_since: float | None = None
        self._connect_at = 0.0
        self._is_pooled = 0 in (
            limits.statement_cache_size,
            server.options.get("statement_cache_size"),
        )
        self._death: HistoryError | None = None
        self._is_ended = False

    # For every thread

    def post(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function on the session's loop, in the order of these calls."""
        self._posted.append((function, arguments))
        if self._loop is not None and not self._is_told:
            self._is_told = True
            try:
                self._loop.call_soon_threadsafe(self._news.set)
            except RuntimeError as error:
                raise HistoryClosed(
                    "the history was closed while this waited for a lock"
                ) from error

    def take(self, number: int) -> bool:
        """Take a lock that was granted.

        Raises:
            StorageError: it can't be had.
        """
        if self._is_pooled:
            return True
        failure = self._failures.pop(number, self._death)
        if failure is not None:
            raise type(failure)(str(failure)) from failure
        try:
            self._granted.remove(number)
        except KeyError:
            return False
        return True

    def is_held_long(self, number: int) -> bool:
        """Return whether a lock has been held for `_LONGEST_RUN_S`."""
        since = self._held_since.get(number)
        return since is not None and monotonic() - since > _LONGEST_RUN_S

    def is_lost(self, number: int) -> bool:
        """Return whether another session may have a lock that is held here."""
        return number in self._lost or number in self._taken_away

    # What is posted

    def ask(self, number: int, tell: Tell) -> None:
        """Queue a request for a lock. One that was just released is first left to other
        sessions."""
        just_released = number in self._to_release
        self._wishes[number] = _Wish(tell, self._after_others() if just_released else 0.0)

    def stop_asking(self, number: int) -> None:
        """Remove a request."""
        self._wishes.pop(number, None)
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
        self._taken_away.discard(number)
        wish = self._wishes.get(number)
        if wish is not None:
            wish.at = self._after_others()

    def _after_others(self) -> float:
        """Return the time when all sessions that wait will have asked again."""
        return monotonic() + 2 * _LONGEST_PAUSE_S

    # The session

    async def serve(self) -> None:
        """Run posted functions and ask for locks, until `end`."""
        self._loop = asyncio.get_running_loop()
        if self._is_pooled:
            self._warn_of_pooler()
        try:
            await self._serve()
        except Exception as error:  # raised to all callers that wait, and to later ones
            _log.exception("the locks at %s can't be asked for any more", self._server.where)
            self._death = StorageError(f"the locks at {self._server.where} failed: {error!r}")
            for number in list(self._wishes):
                self._tell(number)

    async def _serve(self) -> None:
        while not self._is_ended:
            pause = self._pause()
            if not self._posted and pause != 0:
                try:
                    async with asyncio.timeout(pause):
                        await self._news.wait()
                except TimeoutError:
                    self._close_if_idle()
            self._is_told = False
            self._news.clear()
            while self._posted:
                function, arguments = self._posted.popleft()
                function(self, *arguments)
            if self._pause() == 0:
                await self._ask_server()

    def _pause(self) -> float | None:
        """Return the seconds until the server is to be asked, 0 for now, unless work is posted."""
        now = monotonic()
        if self._connection is None and self._connect_at > now:
            return self._connect_at - now
        if self._to_release or self._lost:
            return 0
        if self._room() > 0:
            times = [wish.at for number, wish in self._wishes.items() if self._may_ask(number)]
            if times:
                return max(0, min(times) - now)
        return self._limits.idle_s

    def _asked(self) -> list[int]:
        """Return the locks to ask for now, the longest waiting first."""
        now = monotonic()
        due = (
            number
            for number, wish in self._wishes.items()
            if wish.at <= now and self._may_ask(number)
        )
        return [number for number, _ in zip(due, range(self._room()), strict=False)]

    def _room(self) -> int:
        return self._most_locks - len(self._held_since)

    def _may_ask(self, number: int) -> bool:
        return number not in self._held_since

    async def _ask_server(self) -> None:
        releasing, self._to_release = list(self._to_release), {}
        lost, asked = list(self._lost), self._asked()
        try:
            if self._connection is None:
                await self._connect()
                releasing = []  # released with the previous connection
            if self._is_pooled:
                for number in list(self._wishes):
                    self._tell(number)
                return
            rows = await self._statement.fetch(
                ",".join(map(str, releasing)),
                ",".join(map(str, lost + asked)),
                timeout=self._limits.acquire_timeout_s,
            )
        except (HistoryError, *DriverError) as error:
            self._give_up_connection()
            self._failed(error)
            return
        self._failing_since = None
        is_had = dict(rows[len(releasing) :])
        self._had_again(lost, is_had)
        for number in asked:
            self._answered(number, is_granted=is_had[number])

    def _answered(self, number: int, *, is_granted: bool) -> None:
        wish = self._wishes[number]
        if not is_granted:
            wish.at = monotonic() + uniform(wish.pause_s / 2, wish.pause_s)  # noqa: S311 - to wait
            wish.pause_s = min(2 * wish.pause_s, _LONGEST_PAUSE_S)
            return
        self._held_since[number] = monotonic()
        self._granted.add(number)
        self._tell(number)

    def _tell(self, number: int) -> None:
        """Notify the caller that waits, and remove the request; release a lock that can't be
        taken."""
        wish = self._wishes.pop(number)
        try:
            wish.tell()
        except RuntimeError:  # the caller's loop was closed
            self.stop_asking(number)

    def _had_again(self, lost: Sequence[int], is_had: dict[int, bool]) -> None:
        """Update which lost locks this connection has again."""
        gone = [number for number in lost if not is_had[number]]
        self._lost.difference_update(lost)
        self._taken_away.update(gone)
        if gone:
            _log.warning(
                "the connection to %s that held the turns of %d memories was lost, and other "
                "processes have taken %d of them: their updates can have come between",
                self._server.where,
                len(lost),
                len(gone),
            )

    # Its connection

    async def _connect(self) -> None:
        timeout_s = self._limits.acquire_timeout_s
        with typed(self._server.where):
            connection = await connect_in_turn(
                self._server,
                statement_cache_size=0,
                timeout=timeout_s,
                connection_class=_LockConnection,
            )
            try:
                async with asyncio.timeout(timeout_s):
                    if await is_pooled(connection):
                        self._is_pooled = True
                        self._warn_of_pooler()
                        connection.terminate()
                        return
                    *_, is_standby = await connection.fetchrow(_KEEP_ALIVE)
                    if is_standby:
                        raise StorageReadOnly(
                            f"{self._server.where} is a standby, where processes that write take "
                            "no turns; name the primary, or all hosts and "
                            "target_session_attrs=read-write"
                        )
                    self._statement = await connection.prepare(_ASK)
            except BaseException:
                connection.terminate()
                raise
        self._connection = connection
        connection.add_termination_listener(self._terminated)

    def _warn_of_pooler(self) -> None:
        _log.warning(
            "%s is reached through a pooler, where a session keeps no locks: updates of one memory "
            "take turns within this process only, and those of other processes can come between",
            self._server.where,
        )

    def _terminated(self, connection: Any) -> None:
        if connection is self._connection:
            self._give_up_connection()
            self._news.set()

    def _give_up_connection(self) -> None:
        connection, self._connection, self._statement = self._connection, None, None
        self._to_release.clear()
        self._lost = self._held_since.keys() - self._taken_away
        if connection is not None:
            connection.terminate()

    def _failed(self, error: BaseException) -> None:
        """Retry while the server may come back; after that, fail the requests."""
        if not isinstance(error, HistoryError):
            error = StorageUnreachable(f"{self._server.where} did not answer ({error})")
        now = monotonic()
        if self._failing_since is None:
            self._failing_since = now
        self._connect_at = now + _RECONNECT_S
        may_come_back = isinstance(error, StorageUnreachable | StorageReadOnly)
        if may_come_back and now - self._failing_since < self._retry_timeout_s:
            return
        self._failing_since = None
        for number in [number for number in self._wishes if number not in self._held_since]:
            self._failures[number] = error
            self._tell(number)

    def _close_if_idle(self) -> None:
        if not self._held_since and not self._wishes and self._connection is not None:
            self._give_up_connection()

    async def end(self) -> None:
        """Close the connection, which releases all locks."""
        self._is_ended = True
        self._news.set()
        self._give_up_connection()

    def close_inherited(self) -> None:
        """Close a forked child's descriptor; otherwise the parent's locks would outlive the
        parent."""
        descriptor = -1 if self._connection is None else self._connection.socket.fileno()
        if descriptor >= 0:
            os.close(descriptor)
