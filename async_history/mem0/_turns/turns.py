"""Turns: locks that serialize the changes of a memory, among all writers of one history.

A turn lasts from reading a memory's old text to submitting its record. The next turn in the same
process begins then, because a store keeps the order of submission. A turn in another process begins
when the records are durable.

There is no deadlock: an operation takes one turn for each change of a memory, a holder of a turn
waits for no other turn, and acks need none.
"""

import asyncio
import threading
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from hashlib import blake2b
from types import TracebackType
from typing import Any

from async_history._core.concurrency.threads import computed
from async_history._core.concurrency.yielding import OnceATurn
from async_history.errors import StorageLocked
from async_history.mem0._turns.turn_queues import TurnQueues

current_turn: "ContextVar[Turn | None]" = ContextVar("async_history_turn", default=None)
"""The turn taken last by this task or thread, or by the one that started it."""


@dataclass(frozen=True, slots=True)
class Turns:
    """The turns of a store's memories.

    Attributes:
        queues: those of the store, shared by all of its users in this process.
        between_processes: whether these turns exclude other processes too.
    """

    queues: TurnQueues
    between_processes: bool = True
    _look: Callable[[], None] | None = None

    def on_this_loop(self) -> "Turns":
        """Return these turns for the running loop: they check for lost locks once per iteration."""
        return replace(self, _look=OnceATurn(self.queues.look))

    def of(self, memory_id: str, store: object) -> "Turn":
        """Return a turn of a memory, to be taken by `with` or `async with`.

        Args:
            store: the store that its records are submitted to. Turns with the same store follow
                each other at once; turns with another store wait for the acks.
        """
        look = self._look or self.queues.look
        return Turn(self.queues, memory_id, store, look, between_processes=self.between_processes)

    def is_held_here(self, memory_id: str) -> bool:
        """Return whether this task or thread, or the one that started it, has a memory's turn."""
        turn = current_turn.get()
        while turn is not None:
            if turn.is_held and turn.memory_id == memory_id and turn.is_of(self.queues):
                return True
            turn = turn.outer
        return False


class Turn:
    """A memory's turn, from the wait for it to its end.

    Attributes:
        acks: futures of the records submitted in it; other stores and processes wait for them.
        has_changed: whether the memory was changed in it. Until then its loss can be reported.
    """

    __slots__ = (
        *(
            "_look",
            "_number",
            "_queues",
            "acks",
            "between_processes",
            "has_changed",
            "is_held",
            "loop",
        ),
        *("memory_id", "outer", "store"),
    )

    def __init__(
        self,
        queues: TurnQueues,
        memory_id: str,
        store: object,
        look: Callable[[], None],
        *,
        between_processes: bool,
    ) -> None:
        self._queues = queues
        self._look = look
        self.between_processes = between_processes
        self._number = number_of(memory_id)
        self.has_changed = False
        self.is_held = False
        self.outer: Turn | None = None
        self.memory_id = memory_id
        self.loop: asyncio.AbstractEventLoop | None = None
        self.store = store
        self.acks: list[asyncio.Future[Any]] = []

    def is_of(self, queues: TurnQueues) -> bool:
        """Return whether it is taken in these queues."""
        return self._queues is queues

    @property
    def is_lost(self) -> bool:
        """Whether its task cannot continue, because its loop was closed."""
        return self.loop is not None and self.loop.is_closed()

    async def __aenter__(self) -> "Turn":
        await self.take()
        return self

    async def take(self) -> None:
        """Wait for the turn and begin it. End it with `end`."""
        queues, number = self._queues, self._number
        self.loop = loop = asyncio.get_running_loop()
        if not queues.enter_if_free(number, self):
            await self._wait_in_queue(loop)
        try:
            if self.between_processes and not queues.is_open:
                await computed(queues.open)
            self._look()
            if not queues.take(number, self):
                await self._wait_for_others(loop)
        except BaseException:
            queues.release(number, self)
            raise
        self._begin()

    async def _wait_in_queue(self, loop: asyncio.AbstractEventLoop) -> None:
        queues, number = self._queues, self._number
        granted = loop.create_future()

        def wake() -> None:
            loop.call_soon_threadsafe(_set_done, granted)

        if not queues.enter(number, self, wake):
            try:
                await granted
            except BaseException:
                if not queues.give_up(number, self, wake):
                    queues.release(number, self)
                raise

    async def _wait_for_others(self, loop: asyncio.AbstractEventLoop) -> None:
        notified = loop.create_future()

        def notify() -> None:
            loop.call_soon_threadsafe(_set_done, notified)

        self._queues.ask_for(self._number, notify)
        try:
            for pause in self._queues.pauses():
                timer = loop.call_later(pause, _set_done, notified)
                try:
                    await notified
                finally:
                    timer.cancel()
                notified = loop.create_future()
                self._look()
                if self._queues.take(self._number, self):
                    return
        finally:
            self._queues.stop_asking(self._number, notify)

    async def __aexit__(self, *_: object) -> None:
        self.end()

    def __enter__(self) -> "Turn":
        queues, number = self._queues, self._number
        if self.between_processes and not queues.is_open:
            queues.open()
        granted = threading.Event()
        wake = granted.set
        if not queues.enter(number, self, wake, stopped=_running_loop()):
            try:
                granted.wait()
            except BaseException:
                if not queues.give_up(number, self, wake):
                    queues.release(number, self)
                raise
        try:
            self._look()
            if not queues.take(number, self):
                self._wait_for_others_blocking()
        except BaseException:
            queues.release(number, self)
            raise
        self._begin()
        return self

    def _wait_for_others_blocking(self) -> None:
        notified = threading.Event()
        notify = notified.set
        self._queues.ask_for(self._number, notify)
        try:
            for pause in self._queues.pauses():
                notified.wait(pause)
                notified.clear()
                self._look()
                if self._queues.take(self._number, self):
                    return
        finally:
            self._queues.stop_asking(self._number, notify)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    def _begin(self) -> None:
        self.outer = current_turn.get()
        current_turn.set(self)
        self.is_held = True

    def end(self) -> None:
        """End the turn: the next one begins."""
        current_turn.set(self.outer)
        self.is_held = False
        self._queues.release(self._number, self)
        # Tasks started in this turn may outlive it and refer to it.
        self.acks, self.outer, self.store = [], None, None

    def require_kept(self) -> None:
        """Check, until the memory is changed, that no other process can have the turn.

        Raises:
            StorageLocked: the connection or the file with its lock is gone.
        """
        if not self.is_held or self.has_changed:
            return
        self._look()
        if self._queues.is_lost(self._number):
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

    Two memories share a number with a probability of one in 2**62; then they share a turn.
    """
    digest = blake2b(str(memory_id).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2
