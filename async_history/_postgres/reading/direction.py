"""The two directions in which records are read, as SQL."""

from typing import Final, NamedTuple

_LOWEST, _HIGHEST = -(1 << 63), (1 << 63) - 1


class Direction(NamedTuple):
    """A direction of the order of `seq`.

    Attributes:
        order: the word of ORDER BY.
        onward: the comparison of a position with the one where reading begins.
        until: the comparison of a position with the one where reading ends.
        step: from a position to the next one.
        begin, end: the first and the last position that may exist.
    """

    order: str
    onward: str
    until: str
    step: int
    begin: int
    end: int

    def following(self, seq: int | None) -> int:
        """Return the position after this one; for None, the first."""
        if seq is None:
            return self.begin
        return max(_LOWEST, min(seq + self.step, _HIGHEST))


FORWARD: Final = Direction("ASC", ">=", "<=", 1, _LOWEST, _HIGHEST)
BACKWARD: Final = Direction("DESC", "<=", ">=", -1, _HIGHEST, _LOWEST)
