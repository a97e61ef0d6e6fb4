"""Queues for each memory's turn: its holder and the waiting ones, here and in other processes."""

import asyncio
import contextlib
import functools
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from async_history._core.locking.locks import ProcessLocks
from async_history.errors import StorageLocked
from async_history.mem0._threads.forks import forget_in_child

_TURN_TIMEOUT_S: Final = 60.0
"""Seconds to wait for another process: longer than a change of any vector store and its commit."""
_LONGEST_WAIT_S: Final = 0.002
"""Longest pause in seconds between attempts, while another store of this process has the turn."""
_SHORTEST_WAIT: Final = 0.15
"""The shortest pause, as a fraction of the longest."""
_MOST_IN_A_ROW: Final = 16
"""Consecutive turns of one process while another process waits."""

Wake = Callable[[], None]


class Holder(Protocol):
    """An operation or part that waits for a memory's turn and holds it.

    Attributes:
        acks: futures of the records submitted in the turn.
        between_processes: whether to exclude other processes too.
        loop: the event loop that it needs to continue; None on a thread without one.
        store: the store that its records are submitted to.
    """

    acks: list[asyncio.Future[Any]]
    between_processes: bool
    loop: asyncio.AbstractEventLoop | None
    store: object

    @property
    def is_lost(self) -> bool:
        """Whether it cannot continue, because its loop was closed."""


class TurnQueues:
    """A queue for each memory: one holder at a time, first come first served, on every loop and
    thread.

    Args:
        locks: locks shared with other processes; None to serialize within this process only.
        timeout_s: seconds to wait for a turn of another process, which may be stopped.
    """

    def __init__(
        self, locks: ProcessLocks | None = None, *, timeout_s: float = _TURN_TIMEOUT_S
    ) -> None:
        self._locks = locks
        self._timeout_s = timeout_s
        self._begin()
        forget_in_child(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._memories: dict[int, _MemoryQueue] = {}
        self._is_open = self._locks is None

    def forget(self) -> None:
        """Start without turns in a forked child, without touching the parent's locks."""
        if self._locks is not None:
            self._locks.reset_in_child()
        self._begin()

    @property
    def is_idle(self) -> bool:
        """Whether no turn is held or waited for."""
        return not self._memories

    # Within the process

    def enter(
        self,
        number: int,
        turn: Holder,
        wake: Wake,
        *,
        stopped: asyncio.AbstractEventLoop | None = None,
    ) -> bool:
        """Take a turn and return True, or queue for it: `wake` is called when it is granted.

        Args:
            stopped: the event loop that the wait would block.

        Raises:
            StorageLocked: the turn depends on that loop, so the wait would not end.
        """
        with self._lock:
            memory = self._memories.get(number)
            if memory is None:
                memory = self._memories[number] = _MemoryQueue()
            if stopped is not None and memory.depends_on(stopped):
                raise StorageLocked(
                    "AsyncMemory is changing this memory on the event loop that this call blocks; "
                    "nothing was changed. Use AsyncMemory on a loop, or call Memory in a thread"
                )
            if memory.holder is not None and not memory.holder.is_lost:
                memory.waiting.append((turn, wake))
                return False
            memory.holder = turn
            return True

    def enter_if_free(self, number: int, turn: Holder) -> bool:
        """Take a turn if it is free and has no queue; return whether it was taken."""
        with self._lock:
            if number in self._memories:
                return False
            memory = self._memories[number] = _MemoryQueue()
            memory.holder = turn
            return True

    def give_up(self, number: int, turn: Holder, wake: Wake) -> bool:
        """Leave the queue; return False if the turn was granted already."""
        with self._lock:
            try:
                self._memories[number].waiting.remove((turn, wake))
            except ValueError:
                return False
            return True

    def release(self, number: int, turn: Holder) -> None:
        """End a turn: grant the next one, and unlock it for other processes after all acks."""
        unacked = [ack for ack in turn.acks if not ack.done()]
        with self._lock:
            memory = self._memories.get(number)
            if (
                memory is None or memory.holder is not turn
            ):  # its loop was closed, and another turn replaced it
                return
            memory.unacked += len(unacked)
            memory.unacked_store = turn.store
            memory.unacked_loop = turn.loop
        for ack in unacked:
            ack.add_done_callback(functools.partial(self._on_ack, number, memory))
        while True:
            with self._lock:
                if not memory.waiting:
                    memory.holder = None
                    self._remove_if_free(number, memory)
                    return
                memory.in_a_row += 1
                memory.holder, wake = memory.waiting.popleft()
            try:
                wake()
            except RuntimeError:  # its loop was closed
                continue
            return

    def _on_ack(self, number: int, memory: "_MemoryQueue", _: "asyncio.Future[Any]") -> None:
        with self._lock:
            memory.unacked -= 1
            self._remove_if_free(number, memory)
            notify = None if memory.unacked else memory.notify
        if notify is not None:
            with contextlib.suppress(RuntimeError):  # the waiting loop was closed
                notify()

    def _remove_if_free(self, number: int, memory: "_MemoryQueue") -> None:
        if memory.holder is None and not memory.unacked:
            if memory.is_taken and self._locks is not None:
                self._locks.release(number)
            del self._memories[number]

    # Between processes

    @property
    def is_open(self) -> bool:
        """Whether the locks shared with other processes are open."""
        return self._is_open

    def open(self) -> None:
        """Open the locks. It blocks. Idempotent."""
        with self._opening:
            if self._locks is not None and not self._is_open:
                self._locks.open()
            self._is_open = True

    def take(self, number: int, turn: Holder) -> bool:
        """Exclude other stores and processes, or return False if one has the memory."""
        with self._lock:
            memory = self._memories[number]
            if memory.unacked and memory.unacked_store is not turn.store:
                if memory.unacked_loop is None or not memory.unacked_loop.is_closed():
                    return False
                memory.unacked = 0  # their loop was closed
            if self._locks is None or not turn.between_processes:
                return True
            if memory.is_taken and memory.in_a_row >= _MOST_IN_A_ROW:
                if self._locks.is_asked_for(number):
                    if not memory.unacked:
                        self._locks.release(number)
                        memory.is_taken = False
                        memory.in_a_row = 0
                    return False
                memory.in_a_row = 0
            if not memory.is_taken:
                memory.is_taken = self._locks.take(number)
            return memory.is_taken

    def ask_for(self, number: int, notify: Wake) -> None:
        """Wait for other stores and processes: `notify` may be called when `take` may succeed."""
        with self._lock:
            self._memories[number].notify = notify
        if self._locks is not None:
            self._locks.ask_for(number, notify)

    def stop_asking(self, number: int, notify: Wake) -> None:
        """Undo `ask_for`."""
        with self._lock:
            memory = self._memories.get(number)
            if memory is None or memory.notify is not notify:
                return  # its loop was closed, and another turn replaced it
            memory.notify = None
        if self._locks is not None:
            self._locks.stop_asking(number)

    def pauses(self) -> Iterator[float]:
        """Yield the seconds to pause before each attempt to exclude another store or process.

        Raises:
            StorageLocked: `timeout_s` has passed. Nothing was changed.
        """
        until = time.monotonic() + self._timeout_s
        longest = pause = _LONGEST_WAIT_S if self._locks is None else self._locks.longest_wait_s
        while time.monotonic() < until:  # the first is the longest: earlier waiters go first
            yield pause
            pause = longest * random.uniform(_SHORTEST_WAIT, 1)  # noqa: S311 - to wait
        raise StorageLocked(
            f"another process has had this memory's turn for {self._timeout_s:g} s; nothing was "
            "changed. Check whether a process that uses this history is stopped"
        )

    def look(self) -> None:
        """Check whether locks that are held here were lost; see `ProcessLocks.look`."""
        if self._locks is not None:
            with self._lock:
                self._locks.look()

    def is_lost(self, number: int) -> bool:
        """Return whether another process may have a lock that is held here."""
        if self._locks is None:
            return False
        with self._lock:
            return self._locks.is_lost(number)


class _MemoryQueue:
    """The queue of one memory: its holder, the waiting ones, and the missing acks."""

    __slots__ = (
        *("holder", "in_a_row", "is_taken", "notify", "unacked", "unacked_loop", "unacked_store"),
        "waiting",
    )

    def __init__(self) -> None:
        self.holder: Holder | None = None
        self.is_taken = False
        self.in_a_row = 0
        self.notify: Wake | None = None
        self.unacked = 0
        self.unacked_store: object = None
        self.unacked_loop: asyncio.AbstractEventLoop | None = None
        self.waiting: deque[tuple[Holder, Wake]] = deque()

    def depends_on(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Return whether the holder, a waiting turn or a missing ack needs this loop to run."""
        turns = [turn for turn, _ in self.waiting]
        if self.holder is not None:
            turns.append(self.holder)
        return (self.unacked > 0 and self.unacked_loop is loop) or any(
            turn.loop is loop for turn in turns
        )
