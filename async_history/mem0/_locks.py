"""Turns: locks that serialize the changes of a memory, among all writers of one history.

A turn lasts from reading a memory's old text to submitting its record. The next turn in the same
process begins then, because a store keeps the order of submission. A turn in another process begins
when the records are durable.

There is no deadlock: an operation takes one turn for each change of a memory, a holder of a turn
waits for no other turn, and acks need none.
"""

import asyncio
import contextlib
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import blake2b
from types import TracebackType
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

from async_history._core.locks import ProcessLocks
from async_history._core.manager import HistoryManager
from async_history._core.validation import check_flag
from async_history.errors import StorageLocked
from async_history.mem0._process_locks import FileLocks

_TURN_TIMEOUT_S: Final = 60.0
"""Seconds to wait for another process: longer than a change of any vector store and its commit."""
_LONGEST_WAIT_S: Final = 0.002
"""Longest pause in seconds between attempts, while another store of this process has the turn."""
_SHORTEST_WAIT: Final = 0.15
"""The shortest pause, as a fraction of the longest."""
_MOST_IN_A_ROW: Final = 16
"""Consecutive turns of one process while another process waits."""

Wake = Callable[[], None]

current_turn: "ContextVar[Turn | None]" = ContextVar("async_history_turn", default=None)
"""The turn taken last by this task or thread, or by the one that started it."""


class Turns:
    """One turn at a time for each memory, first come first served, on every loop and thread.

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
        _all.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._memories: dict[int, _MemoryTurns] = {}
        self._is_open = self._locks is None

    def forget(self) -> None:
        """Start without turns in a forked child, without touching the parent's locks."""
        if self._locks is not None:
            self._locks.forget()
        self._begin()

    def of(self, memory_id: str, store: object, *, between_processes: bool = True) -> "Turn":
        """Return a turn of a memory, to be taken by `with` or `async with`.

        Args:
            store: the store that its records are submitted to. Turns with the same store follow
                each other at once; turns with another store wait for the acks.
            between_processes: whether to exclude other processes too.
        """
        return Turn(self, memory_id, store, between_processes=between_processes)

    def is_held_here(self, memory_id: str) -> bool:
        """Return whether this task or thread, or the one that started it, has a memory's turn."""
        turn = current_turn.get()
        while turn is not None:
            if turn.is_held and turn.memory_id == memory_id and turn.is_of(self):
                return True
            turn = turn.outer
        return False

    @property
    def is_idle(self) -> bool:
        """Whether no turn is held or waited for."""
        return not self._memories

    # Within the process

    def enter(
        self,
        number: int,
        turn: "Turn",
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
                memory = self._memories[number] = _MemoryTurns()
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

    def give_up(self, number: int, turn: "Turn", wake: Wake) -> bool:
        """Leave the queue; return False if the turn was granted already."""
        with self._lock:
            try:
                self._memories[number].waiting.remove((turn, wake))
            except ValueError:
                return False
            return True

    def release(self, number: int, turn: "Turn") -> None:
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
            ack.add_done_callback(lambda _: self._on_ack(number, memory))
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

    def _on_ack(self, number: int, memory: "_MemoryTurns") -> None:
        with self._lock:
            memory.unacked -= 1
            self._remove_if_free(number, memory)
            notify = None if memory.unacked else memory.notify
        if notify is not None:
            with contextlib.suppress(RuntimeError):  # the waiting loop was closed
                notify()

    def _remove_if_free(self, number: int, memory: "_MemoryTurns") -> None:
        if memory.holder is None and not memory.unacked:
            if memory.is_taken and self._locks is not None:
                self._locks.leave(number)
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

    def take(self, number: int, turn: "Turn") -> bool:
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
                        self._locks.leave(number)
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
            StorageLocked: `timeout_s` is over. Nothing was changed.
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

    def is_lost(self, number: int) -> bool:
        """Return whether another process may have a lock that is held here."""
        if self._locks is None:
            return False
        with self._lock:
            return self._locks.is_lost(number)


class _MemoryTurns:
    """The turns of one memory: who holds it, who waits, which acks are missing."""

    __slots__ = (
        *("holder", "in_a_row", "is_taken", "notify", "unacked", "unacked_loop", "unacked_store"),
        "waiting",
    )

    def __init__(self) -> None:
        self.holder: Turn | None = None
        self.is_taken = False
        self.in_a_row = 0
        self.notify: Wake | None = None
        self.unacked = 0
        self.unacked_store: object = None
        self.unacked_loop: asyncio.AbstractEventLoop | None = None
        self.waiting: deque[tuple[Turn, Wake]] = deque()

    def depends_on(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Return whether the holder, a waiting turn or a missing ack needs this loop to run."""
        turns = [turn for turn, _ in self.waiting]
        if self.holder is not None:
            turns.append(self.holder)
        return (self.unacked > 0 and self.unacked_loop is loop) or any(
            turn.loop is loop for turn in turns
        )


class Turn:
    """A memory's turn, from the wait for it to its end.

    Attributes:
        acks: futures of the records submitted in it; other stores and processes wait for them.
        has_changed: whether the memory was changed in it. Until then its loss can be reported.
    """

    __slots__ = (
        *("_number", "_turns", "acks", "between_processes", "has_changed", "is_held", "loop"),
        *("memory_id", "outer", "store"),
    )

    def __init__(
        self, turns: Turns, memory_id: str, store: object, *, between_processes: bool
    ) -> None:
        self._turns = turns
        self.between_processes = between_processes
        self._number = number_of(memory_id)
        self.has_changed = False
        self.is_held = False
        self.outer: Turn | None = None
        self.memory_id = memory_id
        self.loop: asyncio.AbstractEventLoop | None = None
        self.store = store
        self.acks: list[asyncio.Future[Any]] = []

    def is_of(self, turns: Turns) -> bool:
        """Return whether it belongs to these turns."""
        return self._turns is turns

    @property
    def is_lost(self) -> bool:
        """Whether its task cannot continue, because its loop was closed."""
        return self.loop is not None and self.loop.is_closed()

    async def __aenter__(self) -> "Turn":
        turns, number = self._turns, self._number
        self.loop = loop = asyncio.get_running_loop()
        granted = loop.create_future()

        def wake() -> None:
            loop.call_soon_threadsafe(_set_done, granted)

        if not turns.enter(number, self, wake):
            try:
                await granted
            except BaseException:
                if not turns.give_up(number, self, wake):
                    turns.release(number, self)
                raise
        try:
            if self.between_processes and not turns.is_open:
                await asyncio.to_thread(turns.open)
            if not turns.take(number, self):
                await self._wait_for_others(loop)
        except BaseException:
            turns.release(number, self)
            raise
        self._begin()
        return self

    async def _wait_for_others(self, loop: asyncio.AbstractEventLoop) -> None:
        notified = loop.create_future()

        def notify() -> None:
            loop.call_soon_threadsafe(_set_done, notified)

        self._turns.ask_for(self._number, notify)
        try:
            for pause in self._turns.pauses():
                timer = loop.call_later(pause, _set_done, notified)
                try:
                    await notified
                finally:
                    timer.cancel()
                notified = loop.create_future()
                if self._turns.take(self._number, self):
                    return
        finally:
            self._turns.stop_asking(self._number, notify)

    async def __aexit__(self, *_: object) -> None:
        self._end()

    def __enter__(self) -> "Turn":
        turns, number = self._turns, self._number
        if self.between_processes and not turns.is_open:
            turns.open()
        granted = threading.Event()
        wake = granted.set
        if not turns.enter(number, self, wake, stopped=_running_loop()):
            try:
                granted.wait()
            except BaseException:
                if not turns.give_up(number, self, wake):
                    turns.release(number, self)
                raise
        try:
            if not turns.take(number, self):
                self._wait_for_others_blocking()
        except BaseException:
            turns.release(number, self)
            raise
        self._begin()
        return self

    def _wait_for_others_blocking(self) -> None:
        notified = threading.Event()
        notify = notified.set
        self._turns.ask_for(self._number, notify)
        try:
            for pause in self._turns.pauses():
                notified.wait(pause)
                notified.clear()
                if self._turns.take(self._number, self):
                    return
        finally:
            self._turns.stop_asking(self._number, notify)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def _begin(self) -> None:
        self.outer = current_turn.get()
        current_turn.set(self)
        self.is_held = True

    def _end(self) -> None:
        current_turn.set(self.outer)
        self.is_held = False
        self._turns.release(self._number, self)
        # Tasks started in this turn may outlive it and refer to it.
        self.acks, self.outer, self.store = [], None, None

    def require_kept(self) -> None:
        """Check, until the memory is changed, that no other process can have the turn.

        Raises:
            StorageLocked: the connection or the file with its lock is gone.
        """
        if self.is_held and not self.has_changed and self._turns.is_lost(self._number):
            raise StorageLocked(
                "the lock of this memory's turn was lost (the connection to the server, or the "
                "file <history>-turns, is gone), and another process may have the turn; nothing "
                "was changed. Try again"
            )

    def note(self, ack: "asyncio.Future[Any]") -> None:
        """Make other stores and processes wait for this ack."""
        if self.is_held:
            self.acks.append(ack)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _set_done(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def number_of(memory_id: str) -> int:
    """Return the number of a memory's lock: the same in every process, below 2**62.

    Two memories share a number by a chance of one in 2**62: they then take turns together.
    """
    digest = blake2b(str(memory_id).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2


@dataclass(frozen=True, slots=True)
class TurnTaker:
    """The turns of a store, shared by all of its users in this process.

    Attributes:
        between_processes: whether its turns exclude other processes too.
    """

    turns: Turns
    between_processes: bool

    def of(self, memory_id: str, store: object) -> Turn:
        """Return a turn of a memory; see `Turns.of`."""
        return self.turns.of(memory_id, store, between_processes=self.between_processes)

    def is_held_here(self, memory_id: str) -> bool:
        """See `Turns.is_held_here`."""
        return self.turns.is_held_here(memory_id)


def turns_of(manager: HistoryManager, *, between_processes: bool = True) -> TurnTaker:
    """Return the turns of a manager's store.

    Raises:
        InvalidInput: `between_processes` is not a bool.
    """
    check_flag("turns_between_processes", between_processes)
    name = manager.backend.store_name
    with _registering:
        if name is None:
            found = _of_managers.setdefault(manager, Turns())
        else:
            found = _known.get(name) or Turns(_locks_of(manager))
            _known[name] = found
    return TurnTaker(found, between_processes)


def _locks_of(manager: HistoryManager) -> ProcessLocks | None:
    name = manager.backend.store_name
    if name is not None and name[0] == "file":
        return FileLocks(name[1])
    return manager.backend.new_locks()


_registering = threading.Lock()
_all: Final["WeakSet[Turns]"] = WeakSet()
_known: Final["WeakValueDictionary[tuple[str, ...], Turns]"] = WeakValueDictionary()
_of_managers: Final["WeakKeyDictionary[HistoryManager, Turns]"] = WeakKeyDictionary()
NO_TURNS: Final = TurnTaker(Turns(), between_processes=False)
"""Replaces the turns of a closed store, so that its locks are closed with their last user."""


def _forget_in_child() -> None:
    global _registering
    _registering = threading.Lock()
    for turns in list(_all):
        turns.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
