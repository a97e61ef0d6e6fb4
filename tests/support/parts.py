"""A test that runs at some of many places, and at all of them with `--nightly`.

The nightly run has parts, each of which ends within ten minutes on two processors.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import pytest


@dataclass(frozen=True, slots=True)
class Places:
    """Every `stride`th number, from `begin` or from a random one below `stride`."""

    stride: int
    begin: int | None = None

    def __iter__(self) -> Iterator[int]:
        begin = random.randrange(self.stride) if self.begin is None else self.begin  # noqa: S311
        return count(begin, self.stride)

    def __str__(self) -> str:
        return f"one in {self.stride}" if self.begin is None else f"part {self.begin}"


def in_parts(stride: int, *, nightly: int) -> pytest.MarkDecorator:
    """Return the parametrization of a test by `places`.

    Args:
        stride: of an ordinary run, which begins at a random place.
        nightly: how many parts a nightly run has.
    """
    parts = [Places(nightly, begin) for begin in range(nightly)]
    nights = [pytest.param(one, marks=pytest.mark.nightly) for one in parts]
    return pytest.mark.parametrize("places", [Places(stride), *nights], ids=str)
