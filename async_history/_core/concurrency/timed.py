"""Measures how long something takes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic


@contextmanager
def timed(report: Callable[[float], None]) -> Iterator[None]:
    """Report the seconds that the body takes, also if it fails."""
    begun = monotonic()
    try:
        yield
    finally:
        report(monotonic() - begun)


def unreported(_: float) -> None:
    """Report nothing: for a transaction of the user, whose waits are the user's."""
