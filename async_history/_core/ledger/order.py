"""The order of recording, which verification compares with the order of the leaves."""

from bisect import bisect_left
from collections.abc import Sequence
from operator import ge
from typing import Final

_KEPT: Final = 4_096
"""Transactions that are kept. If more ended while a transaction was open, its records are compared
only with each other."""
_LOWEST: Final = -(1 << 63)


class RecordingOrder:
    """A check for records whose position has changed since they were recorded.

    The records of a bundle are in order. They come after those of each transaction that had ended
    before theirs began. Transactions that overlapped may have any order.
    """

    def __init__(self) -> None:
        self._turns: list[int] = []
        self._highest: list[int] = []  # of all up to that turn
        self._forgotten_turn = self._forgotten = _LOWEST
        self._last = _LOWEST

    def begin(self, after: int) -> None:
        """Begin a bundle; its records come after those of turns lower than `after`."""
        self._last = _LOWEST
        if after > self._forgotten_turn:
            below = bisect_left(self._turns, after)
            self._last = self._highest[below - 1] if below else self._forgotten

    def is_next(self, position: int) -> bool:
        """Return whether the bundle's next record may be at a position."""
        if position <= self._last:
            return False
        self._last = position
        return True

    def are_next(self, positions: Sequence[int]) -> bool:
        """Return whether the bundle's next records may be at these positions, in this order.

        If not, none of them was counted; `is_next` finds the wrong ones.
        """
        if not positions:
            return True
        if positions[0] <= self._last or any(map(ge, positions, positions[1:])):
            return False
        self._last = positions[-1]
        return True

    def end(self, turn: int) -> None:
        """End a bundle of this turn."""
        at = bisect_left(self._turns, turn)
        if at == len(self._turns) or self._turns[at] != turn:
            self._turns.insert(at, turn)
            self._highest.insert(at, self._highest[at - 1] if at else self._forgotten)
        while at < len(self._turns) and self._highest[at] < self._last:
            self._highest[at] = self._last
            at += 1
        if len(self._turns) > 2 * _KEPT:
            self._forgotten_turn, self._forgotten = self._turns[_KEPT - 1], self._highest[_KEPT - 1]
            del self._turns[:_KEPT], self._highest[:_KEPT]
