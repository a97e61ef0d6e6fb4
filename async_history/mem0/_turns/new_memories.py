"""Turns of memories that an operation adds, held before they appear in the vector store.

Other tasks of this process can find a new memory and delete it before mem0 has recorded it: the
DELETE would come before the ADD. So its turn is held until its record is submitted. Other processes
are not excluded: they would have to find the memory, read it and record its deletion within that
moment.
"""

import asyncio
from typing import Any

from async_history.mem0._turns.turns import Turns, number_of


class NewMemories:
    """The memories that an operation has begun to add and not yet recorded.

    Args:
        turns: the turns of the store.
        store: the store that the records are submitted to.
        loop: the loop that the operation runs on; None on a thread without one.
    """

    def __init__(self, turns: Turns, store: object, loop: asyncio.AbstractEventLoop | None) -> None:
        self._turns = turns
        self._store = store
        self._loop = loop
        self._held: dict[str, _Held] = {}

    def __contains__(self, memory_id: str) -> bool:
        return memory_id in self._held

    def begin(self, memory_id: str) -> None:
        """Hold the turn of a memory that is about to be added, unless it is taken."""
        if memory_id not in self._held and not self._turns.is_held_here(memory_id):
            held = _Held(self._store, self._loop)
            if self._turns.queues.enter_if_free(number_of(memory_id), held):
                self._held[memory_id] = held

    def recorded(self, memory_id: str, ack: "asyncio.Future[Any] | None" = None) -> None:
        """End the turn of a memory whose record was submitted; other stores wait for its ack."""
        held = self._held.pop(memory_id, None)
        if held is not None:
            if ack is not None:
                held.acks.append(ack)
            self._turns.queues.release(number_of(memory_id), held)

    def end(self) -> None:
        """End the turns of memories that were not recorded: their operation has ended."""
        for memory_id in list(self._held):
            self.recorded(memory_id)


class _Held:
    """A turn whose holder waits for nothing: see `Holder`."""

    __slots__ = ("acks", "between_processes", "loop", "store")

    def __init__(self, store: object, loop: asyncio.AbstractEventLoop | None) -> None:
        self.acks: list[asyncio.Future[Any]] = []
        self.between_processes = False
        self.loop = loop
        self.store = store

    @property
    def is_lost(self) -> bool:
        """Whether its operation cannot continue, because its loop was closed."""
        return self.loop is not None and self.loop.is_closed()
