"""Notification of a manager's commits."""

import asyncio
from weakref import WeakSet


class CommitSignal:
    """Wakes the followers of one manager after a commit."""

    def __init__(self) -> None:
        self._subscribers: WeakSet[asyncio.Event] = WeakSet()
        self.commits = 0

    def subscribe(self) -> asyncio.Event:
        """Return an event that is set at every commit, as long as a reference to it exists."""
        event = asyncio.Event()
        self._subscribers.add(event)
        return event

    @property
    def has_subscribers(self) -> bool:
        """Return whether there are followers."""
        return len(self._subscribers) > 0

    def notify(self) -> None:
        """Wake all subscribers."""
        self.commits += 1
        if self.has_subscribers:  # iterating over an empty set takes ten times as long
            for event in self._subscribers:
                event.set()
