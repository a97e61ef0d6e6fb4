"""Turns: who may change a memory now, of all that write to one history.

A turn goes from reading a memory's old text to handing its record in. The next of the same process
follows then: a store keeps the order in which records are handed in. Another process follows when
they are durable.

Nothing that has a turn waits for another's, so that turns in any order all end: an operation takes
one for each change of a memory, and its acks need none.
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
"""Longer than a change of any vector store takes, with its commit."""
_LONGEST_WAIT_S: Final = 0.002
"""How often it is looked whether another store of this process has finished."""
_SHORTEST_WAIT: Final = 0.15
"""The part of the longest wait that the shortest takes."""
_MOST_IN_A_ROW: Final = 16
"""How many turns of one process follow each other where another asks for one."""

Wake = Callable[[], None]

current_turn: "ContextVar[Turn | None]" = ContextVar("async_history_turn", default=None)
"""The last turn that this task or thread, or what began it, has taken."""


class Turns:
    """One at a time for each memory, first come first served, on every loop and thread.

    Args:
        locks: what other processes take turns by; None where they take none.
        timeout_s: how long another process's turn is waited for: it may be stopped, and holds it.
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
        self._places: dict[int, _Place] = {}
        self._is_open = self._locks is None

    def forget(self) -> None:
        """Begin again in a forked child, without touching what the parent holds."""
        if self._locks is not None:
            self._locks.forget()
        self._begin()

    def of(self, memory_id: str, store: object, *, between_processes: bool = True) -> "Turn":
        """Return this memory's turn, to be waited for and kept: `with` or `async with` it.

        Args:
            store: what its record is handed to. It keeps the order of what it is handed; another
                one's turn waits for its acks.
            between_processes: whether to take it from other processes too.
        """
        return Turn(self, memory_id, store, between_processes=between_processes)

    def is_held_here(self, memory_id: str) -> bool:
        """Whether this task or thread, or what began it, has this memory's turn."""
        turn = current_turn.get()
        while turn is not None:
            if turn.is_held and turn.memory_id == memory_id and turn.is_of(self):
                return True
            turn = turn.outer
        return False

    @property
    def is_idle(self) -> bool:
        """Whether no turn is held or waited for, here and for other processes."""
        return not self._places

    # Within the process

    def enter(
        self,
        number: int,
        turn: "Turn",
        wake: Wake,
        *,
        stopped: asyncio.AbstractEventLoop | None = None,
    ) -> bool:
        """Take a place, or a number in its queue: `wake` is called when it has come up.

        Args:
            stopped: the loop that would stop while the turn is waited for.

        Raises:
            StorageLocked: the turn would be waited for until that loop has gone on.
        """
        with self._lock:
            place = self._places.get(number)
            if place is None:
                place = self._places[number] = _Place()
            if stopped is not None and place.needs(stopped):
                raise StorageLocked(
                    "AsyncMemory is changing this memory on the event loop that this call stops; "
                    "nothing was changed. Use AsyncMemory on a loop, or call Memory in a thread"
                )
            if place.holder is not None and not place.holder.is_lost:
                place.waiting.append((turn, wake))
                return False
            place.holder = turn
            return True

    def give_up(self, number: int, turn: "Turn", wake: Wake) -> bool:
        """Leave a place's queue; return False where its turn has come already."""
        with self._lock:
            try:
                self._places[number].waiting.remove((turn, wake))
            except ValueError:
                return False
            return True

    def hand_on(self, number: int, turn: "Turn") -> None:
        """Let the next have a place, and other processes once all acks are there."""
        unacked = [ack for ack in turn.acks if not ack.done()]
        with self._lock:
            place = self._places.get(number)
            if (
                place is None or place.holder is not turn
            ):  # its loop was closed over it, and another took the place
                return
            place.unacked += len(unacked)
            place.unacked_store = turn.store
            place.unacked_loop = turn.loop
        for ack in unacked:
            ack.add_done_callback(lambda _: self._acked(number, place))
        while True:
            with self._lock:
                if not place.waiting:
                    place.holder = None
                    self._forget_if_free(number, place)
                    return
                place.in_a_row += 1
                place.holder, wake = place.waiting.popleft()
            try:
                wake()
            except RuntimeError:  # its loop was closed over it
                continue
            return

    def _acked(self, number: int, place: "_Place") -> None:
        with self._lock:
            place.unacked -= 1
            self._forget_if_free(number, place)
            tell = None if place.unacked else place.tell
        if tell is not None:
            with contextlib.suppress(RuntimeError):  # the loop of who waits was closed
                tell()

    def _forget_if_free(self, number: int, place: "_Place") -> None:
        if place.holder is None and not place.unacked:
            if place.is_taken and self._locks is not None:
                self._locks.leave(number)
            del self._places[number]

    # Between processes

    @property
    def is_open(self) -> bool:
        """Whether what other processes take turns with is open."""
        return self._is_open

    def open(self) -> None:
        """Open it. Blocking, once."""
        with self._opening:
            if self._locks is not None and not self._is_open:
                self._locks.open()
            self._is_open = True

    def take(self, number: int, turn: "Turn") -> bool:
        """Take a place from other stores and processes, where the turn may go on at once."""
        with self._lock:
            place = self._places[number]
            if place.unacked and place.unacked_store is not turn.store:
                if place.unacked_loop is None or not place.unacked_loop.is_closed():
                    return False
                place.unacked = 0  # nobody is left to be told
            if self._locks is None or not turn.between_processes:
                return True
            if place.is_taken and place.in_a_row >= _MOST_IN_A_ROW:
                if self._locks.is_asked_for(number):
                    if not place.unacked:
                        self._locks.leave(number)
                        place.is_taken = False
                        place.in_a_row = 0
                    return False
                place.in_a_row = 0
            if not place.is_taken:
                place.is_taken = self._locks.take(number)
            return place.is_taken

    def ask_for(self, number: int, tell: Wake) -> None:
        """Wait for a place: `tell` may be called when `take` is worth a try."""
        with self._lock:
            self._places[number].tell = tell
        if self._locks is not None:
            self._locks.ask_for(number, tell)

    def stop_asking(self, number: int, tell: Wake) -> None:
        """Take `ask_for` back."""
        with self._lock:
            place = self._places.get(number)
            if place is None or place.tell is not tell:
                return  # its loop was closed over it, and another took the place
            place.tell = None
        if self._locks is not None:
            self._locks.stop_asking(number)

    def pauses(self) -> Iterator[float]:
        """Yield how long to wait for another store or process, each time it is asked for.

        Raises:
            StorageLocked: it has had the turn for `timeout_s`. Nothing was changed.
        """
        until = time.monotonic() + self._timeout_s
        longest = pause = _LONGEST_WAIT_S if self._locks is None else self._locks.longest_wait_s
        while time.monotonic() < until:  # whoever asked before is first
            yield pause
            pause = longest * random.uniform(_SHORTEST_WAIT, 1)  # noqa: S311 - to wait
        raise StorageLocked(
            f"another process has had this memory's turn for {self._timeout_s:g} s; nothing was "
            "changed. Look whether a process that uses this history is stopped"
        )

    def is_lost(self, number: int) -> bool:
        """Whether another process may have a place that is held here."""
        if self._locks is None:
            return False
        with self._lock:
            return self._locks.is_lost(number)


class _Place:
    """What is known of one memory, for as long as anybody has or wants its turn."""

    __slots__ = (
        *("holder", "in_a_row", "is_taken", "tell", "unacked", "unacked_loop", "unacked_store"),
        "waiting",
    )

    def __init__(self) -> None:
        self.holder: Turn | None = None
        self.is_taken = False
        self.in_a_row = 0
        self.tell: Wake | None = None
        self.unacked = 0
        self.unacked_store: object = None
        self.unacked_loop: asyncio.AbstractEventLoop | None = None
        self.waiting: deque[tuple[Turn, Wake]] = deque()

    def needs(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether who has it, or comes next, or an ack, needs this loop to go on."""
        turns = [turn for turn, _ in self.waiting]
        if self.holder is not None:
            turns.append(self.holder)
        return (self.unacked > 0 and self.unacked_loop is loop) or any(
            turn.loop is loop for turn in turns
        )


class Turn:
    """One wait for a memory's turn, and the turn.

    `acks` are of what was handed in meanwhile: other stores and processes wait for them.
    `has_changed` says whether the memory was changed in it: until then its loss may be told.
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
        """Whether these turns gave it."""
        return self._turns is turns

    @property
    def is_lost(self) -> bool:
        """Whether its task can't go on: its loop was closed."""
        return self.loop is not None and self.loop.is_closed()

    async def __aenter__(self) -> "Turn":
        turns, number = self._turns, self._number
        self.loop = loop = asyncio.get_running_loop()
        come_up = loop.create_future()

        def wake() -> None:
            loop.call_soon_threadsafe(_done, come_up)

        if not turns.enter(number, self, wake):
            try:
                await come_up
            except BaseException:
                if not turns.give_up(number, self, wake):
                    turns.hand_on(number, self)
                raise
        try:
            if self.between_processes and not turns.is_open:
                await asyncio.to_thread(turns.open)
            if not turns.take(number, self):
                await self._asked_for(loop)
        except BaseException:
            turns.hand_on(number, self)
            raise
        self._begin()
        return self

    async def _asked_for(self, loop: asyncio.AbstractEventLoop) -> None:
        told = loop.create_future()

        def tell() -> None:
            loop.call_soon_threadsafe(_done, told)

        self._turns.ask_for(self._number, tell)
        try:
            for pause in self._turns.pauses():
                timer = loop.call_later(pause, _done, told)
                try:
                    await told
                finally:
                    timer.cancel()
                told = loop.create_future()
                if self._turns.take(self._number, self):
                    return
        finally:
            self._turns.stop_asking(self._number, tell)

    async def __aexit__(self, *_: object) -> None:
        self._end()

    def __enter__(self) -> "Turn":
        turns, number = self._turns, self._number
        if self.between_processes and not turns.is_open:
            turns.open()
        come_up = threading.Event()
        wake = come_up.set
        if not turns.enter(number, self, wake, stopped=_loop_here()):
            try:
                come_up.wait()
            except BaseException:
                if not turns.give_up(number, self, wake):
                    turns.hand_on(number, self)
                raise
        try:
            if not turns.take(number, self):
                self._ask_for()
        except BaseException:
            turns.hand_on(number, self)
            raise
        self._begin()
        return self

    def _ask_for(self) -> None:
        told = threading.Event()
        tell = told.set
        self._turns.ask_for(self._number, tell)
        try:
            for pause in self._turns.pauses():
                told.wait(pause)
                told.clear()
                if self._turns.take(self._number, self):
                    return
        finally:
            self._turns.stop_asking(self._number, tell)

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
        self._turns.hand_on(self._number, self)
        # What began in this turn and lives on holds on to it.
        self.acks, self.outer, self.store = [], None, None

    def require_kept(self) -> None:
        """Require, until the memory is changed, that no other process can have the turn.

        Raises:
            StorageLocked: the connection or the file that holds it is gone.
        """
        if self.is_held and not self.has_changed and self._turns.is_lost(self._number):
            raise StorageLocked(
                "what held this memory's turn is gone (the connection to the server, or the file "
                "beside the history), and another process may have it; nothing was changed. Try "
                "again"
            )

    def note(self, ack: "asyncio.Future[Any]") -> None:
        """Let other stores and processes wait for this ack."""
        if self.is_held:
            self.acks.append(ack)


def _loop_here() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _done(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def number_of(memory_id: str) -> int:
    """Return a memory's number, in every process the same: no other memory's, but by a chance of
    one in 2**62."""
    digest = blake2b(str(memory_id).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2


@dataclass(frozen=True, slots=True)
class TurnTaker:
    """Takes the turns of a store, the same for all of this process that use it.

    Attributes:
        between_processes: whether it takes them from other processes too.
    """

    turns: Turns
    between_processes: bool

    def of(self, memory_id: str, store: object) -> Turn:
        """Return a memory's turn, see `Turns.of`."""
        return self.turns.of(memory_id, store, between_processes=self.between_processes)

    def is_held_here(self, memory_id: str) -> bool:
        """Whether this task or thread, or what began it, has a memory's turn."""
        return self.turns.is_held_here(memory_id)


def turns_of(manager: HistoryManager, *, between_processes: bool = True) -> TurnTaker:
    """Return what takes the turns of a manager's store.

    Raises:
        InvalidInput: `between_processes` is no bool.
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
"""Instead of those of a store that is closed: its locks are closed with the last who has them."""


def _forget_in_child() -> None:
    global _registering
    _registering = threading.Lock()
    for turns in list(_all):
        turns.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
