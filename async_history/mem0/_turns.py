"""Turns: who may change a memory now, of all that write to one history.

A turn goes from reading a memory's old text to handing its record in. The next of the same process
follows then: a store keeps the order in which records are handed in. Another process follows when
they are durable.

Lives here: waiting for a turn on any loop or thread, first come first served, and handing it on.
Not here: the lock between processes (_process_locks).

Nothing that has a turn waits for another's, so that turns in any order all end: an operation takes
one for each change of a memory, and its acks need none.
"""

import asyncio
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from hashlib import blake2b
from types import TracebackType
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

from async_history.errors import StorageLocked
from async_history.manager import HistoryManager
from async_history.mem0._process_locks import ProcessLocks

_TURN_TIMEOUT_S: Final = 60.0
"""Longer than a change of any vector store takes, with its commit."""
_SHORTEST_WAIT_S: Final = 0.0003
_LONGEST_WAIT_S: Final = 0.002
"""How often it is looked whether another process has finished: a commit takes a millisecond."""
_MOST_IN_A_ROW: Final = 16
"""How many turns of one process follow each other where another asks for one."""

Wake = Callable[[], None]

current_turn: "ContextVar[Turn | None]" = ContextVar("async_history_turn", default=None)
"""The last turn that this task or thread, or what began it, has taken."""


class Turns:
    """One at a time for each memory, first come first served, on every loop and thread.

    Args:
        path: the SQLite file of the history, whose other processes take turns too; None for none.
        timeout_s: how long another process's turn is waited for: it may be stopped, and holds it.
    """

    def __init__(self, path: str | None = None, *, timeout_s: float = _TURN_TIMEOUT_S) -> None:
        self._path = path
        self.timeout_s = timeout_s
        self._begin()
        _all.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._places: dict[int, _Place] = {}
        self._processes = None if self._path is None else ProcessLocks(self._path)
        self._is_open = self._processes is None

    def forget(self) -> None:
        """Begin again in a forked child, without touching what the parent holds."""
        if self._processes is not None:
            self._processes.close()
        self._begin()

    def of(self, memory_id: str, store: object) -> "Turn":
        """Return this memory's turn, to be waited for and kept: `with` or `async with` it.

        Args:
            store: what its record is handed to. It keeps the order of what it is handed; another
                one's turn waits for its acks.
        """
        return Turn(self, memory_id, store)

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
        byte: int,
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
            place = self._places.get(byte)
            if place is None:
                place = self._places[byte] = _Place()
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

    def give_up(self, byte: int, turn: "Turn", wake: Wake) -> bool:
        """Leave a place's queue; return False where its turn has come already."""
        with self._lock:
            try:
                self._places[byte].waiting.remove((turn, wake))
            except ValueError:
                return False
            return True

    def hand_on(self, byte: int, turn: "Turn") -> None:
        """Let the next have a place, and other processes once all acks are there."""
        unacked = [ack for ack in turn.acks if not ack.done()]
        with self._lock:
            place = self._places.get(byte)
            if (
                place is None or place.holder is not turn
            ):  # its loop was closed over it, and another took the place
                return
            place.unacked += len(unacked)
            place.unacked_store = turn.store
            place.unacked_loop = turn.loop
        for ack in unacked:
            ack.add_done_callback(lambda _: self._acked(byte, place))
        while True:
            with self._lock:
                if not place.waiting:
                    place.holder = None
                    self._forget_if_free(byte, place)
                    return
                place.in_a_row += 1
                place.holder, wake = place.waiting.popleft()
            try:
                wake()
            except RuntimeError:  # its loop was closed over it
                continue
            return

    def _acked(self, byte: int, place: "_Place") -> None:
        with self._lock:
            place.unacked -= 1
            self._forget_if_free(byte, place)

    def _forget_if_free(self, byte: int, place: "_Place") -> None:
        if place.holder is None and not place.unacked:
            if place.is_taken and self._processes is not None:
                self._processes.leave(byte)
            del self._places[byte]

    # Between processes

    @property
    def is_open(self) -> bool:
        """Whether what other processes take turns with is open."""
        return self._is_open

    def open(self) -> None:
        """Open it. Blocking, once."""
        with self._opening:
            if self._processes is not None and not self._is_open:
                self._processes.open()
            self._is_open = True

    def take(self, byte: int, turn: "Turn") -> bool:
        """Take a place from other stores and processes, where the turn may go on at once."""
        with self._lock:
            place = self._places[byte]
            if place.unacked and place.unacked_store is not turn.store:
                if place.unacked_loop is None or not place.unacked_loop.is_closed():
                    return False
                place.unacked = 0  # nobody is left to be told
            if self._processes is None:
                return True
            if place.is_taken and place.in_a_row >= _MOST_IN_A_ROW:
                if self._processes.is_asked_for(byte):
                    if not place.unacked:
                        self._processes.leave(byte)
                        place.is_taken = False
                        place.in_a_row = 0
                    return False
                place.in_a_row = 0
            if not place.is_taken:
                place.is_taken = self._processes.take(byte)
            return place.is_taken

    def ask_for(self, byte: int) -> None:
        """Let another process know that a place of its is waited for."""
        if self._processes is not None:
            self._processes.ask_for(byte)

    def stop_asking(self, byte: int) -> None:
        """Take `ask_for` back."""
        if self._processes is not None:
            self._processes.stop_asking(byte)


class _Place:
    """What is known of one memory, for as long as anybody has or wants its turn."""

    __slots__ = (
        *("holder", "in_a_row", "is_taken", "unacked", "unacked_loop", "unacked_store", "waiting"),
    )

    def __init__(self) -> None:
        self.holder: Turn | None = None
        self.is_taken = False
        self.in_a_row = 0
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
    """

    __slots__ = ("_byte", "_turns", "acks", "is_held", "loop", "memory_id", "outer", "store")

    def __init__(self, turns: Turns, memory_id: str, store: object) -> None:
        self._turns = turns
        self._byte = byte_of(memory_id)
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
        turns, byte = self._turns, self._byte
        self.loop = loop = asyncio.get_running_loop()
        come_up = loop.create_future()

        def wake() -> None:
            loop.call_soon_threadsafe(_done, come_up)

        if not turns.enter(byte, self, wake):
            try:
                await come_up
            except BaseException:
                if not turns.give_up(byte, self, wake):
                    turns.hand_on(byte, self)
                raise
        try:
            if not turns.is_open:
                await asyncio.to_thread(turns.open)
            if not turns.take(byte, self):
                await self._asked_for()
        except BaseException:
            turns.hand_on(byte, self)
            raise
        self._begin()
        return self

    async def _asked_for(self) -> None:
        self._turns.ask_for(self._byte)
        try:
            for pause in _pauses(self._turns.timeout_s):
                await asyncio.sleep(pause)
                if self._turns.take(self._byte, self):
                    return
        finally:
            self._turns.stop_asking(self._byte)

    async def __aexit__(self, *_: object) -> None:
        self._end()

    def __enter__(self) -> "Turn":
        turns, byte = self._turns, self._byte
        if not turns.is_open:
            turns.open()
        come_up = threading.Event()
        wake = come_up.set
        if not turns.enter(byte, self, wake, stopped=_loop_here()):
            try:
                come_up.wait()
            except BaseException:
                if not turns.give_up(byte, self, wake):
                    turns.hand_on(byte, self)
                raise
        if not turns.take(byte, self):
            turns.ask_for(byte)
            try:
                for pause in _pauses(turns.timeout_s):
                    time.sleep(pause)
                    if turns.take(byte, self):
                        break
            except BaseException:
                turns.hand_on(byte, self)
                raise
            finally:
                turns.stop_asking(byte)
        self._begin()
        return self

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
        self._turns.hand_on(self._byte, self)
        # What began in this turn and lives on holds on to it.
        self.acks, self.outer, self.store = [], None, None

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


def _pauses(timeout_s: float) -> Iterator[float]:
    """Yield how long to wait for another store or process, each time it is asked for.

    Raises:
        StorageLocked: it has had the turn for `timeout_s`. Nothing was changed.
    """
    until = time.monotonic() + timeout_s
    pause = _LONGEST_WAIT_S  # whoever asked before is first
    while time.monotonic() < until:
        yield pause
        pause = random.uniform(_SHORTEST_WAIT_S, _LONGEST_WAIT_S)  # noqa: S311 - to wait
    raise StorageLocked(
        f"another process has had this memory's turn for {timeout_s:g} s; nothing was "
        "changed. Look whether a process that uses this history is stopped"
    )


def byte_of(memory_id: str) -> int:
    """Return a memory's byte: the same in every process, and no other memory's, but by a chance of
    one in 2**62."""
    digest = blake2b(str(memory_id).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2


def turns_of(name: tuple[str, ...] | None) -> Turns:
    """Return the turns of a store, the same for all of this process that use it.

    Args:
        name: the store's, see `HistoryManager.store_name`. None for one that is nobody else's.
    """
    if name is None:
        return Turns()
    with _registering:
        found = _known.get(name)
        if found is None:
            kind, *path = name
            found = _known[name] = Turns(path[0] if kind == "file" else None)
        return found


def turns_of_manager(manager: HistoryManager) -> Turns:
    """Return the turns of a manager's store, which others of its users take too."""
    name = manager.store_name
    if name is not None:
        return turns_of(name)
    with _registering:
        return _of_managers.setdefault(manager, Turns())


_registering = threading.Lock()
_all: Final["WeakSet[Turns]"] = WeakSet()
_known: Final["WeakValueDictionary[tuple[str, ...], Turns]"] = WeakValueDictionary()
_of_managers: Final["WeakKeyDictionary[HistoryManager, Turns]"] = WeakKeyDictionary()


def _forget_in_child() -> None:
    global _registering
    _registering = threading.Lock()
    for turns in list(_all):
        turns.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
