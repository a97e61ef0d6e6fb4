"""Notification of a manager's commits."""

import asyncio
from weakref import WeakSet


class CommitSignal:
    """Wakes the followers of one manager after a commit."""

    def __init__(self) -> None:
        self._subscribers: WeakSet[asyncio.Event] | None = None
        self.commits = 0

    def subscribe(self) -> asyncio.Event:
        """Return an event that is set at every commit, as long as a reference to it exists."""
        event = asyncio.Event()
        if self._subscribers is None:
            self._subscribers = WeakSet()
        self._subscribers.add(event)
        return event

    def notify(self) -> None:
        """Wake all subscribers."""
        self.commits += 1
        if self._subscribers is not None:  # iterating over an empty set takes ten times as long
            for event in self._subscribers:
                event.set()
