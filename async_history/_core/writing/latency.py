"""Median and 99th percentile of durations in the last minute."""

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Final

_PARTS: Final = 16
"""Buckets per doubling: a figure has an error of at most a thirtieth."""
_LEAST_S: Final = 1e-6
_MOST_S: Final = 1e6
"""Shorter and longer times are counted as these, so a slot has at most 640 buckets."""
_SLOT_S: Final = 5.0
_SLOTS: Final = 12
"""A minute in parts that expire one by one: it is in fact the last 55 to 60 seconds."""
_ADDED: Final = 64
"""Durations that are put into buckets together: one by one, between other work, each takes five
times as long."""


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Seconds within which half, and 99 of 100, ended; None if nothing was measured."""

    p50_s: float | None
    p99_s: float | None


class Latencies:
    """Counts durations of the last minute in exponential buckets.

    Adding takes constant time and memory. `now` is a monotonic time in seconds.
    """

    def __init__(self) -> None:
        self._slots: dict[int, defaultdict[int, int]] = {}
        self._added: list[tuple[float, float, int]] = []

    def add(self, now: float, seconds: float, count: int = 1) -> None:
        """Add `count` durations of this length."""
        added = self._added
        added.append((now, seconds, count))
        if len(added) >= _ADDED:
            self._fill_buckets()

    def _fill_buckets(self) -> None:
        """Count what was added. The number of a bucket is a doubling and a part of it."""
        # First: if an exception interrupts this, none is counted twice, nor kept for ever.
        added, self._added = self._added, []
        until, slot = -math.inf, defaultdict[int, int](int)
        for now, seconds, count in added:
            if now >= until:
                number = int(now // _SLOT_S)
                until, slot = (number + 1) * _SLOT_S, self._slot(number)
            if not _LEAST_S <= seconds <= _MOST_S:
                seconds = min(max(seconds, _LEAST_S), _MOST_S)
            fraction, exponent = math.frexp(seconds)
            slot[exponent * _PARTS + int((fraction - 0.5) * 2 * _PARTS)] += count

    def _slot(self, number: int) -> defaultdict[int, int]:
        slot = self._slots.get(number)
        if slot is None:
            self._forget_before(number - _SLOTS + 1)
            slot = self._slots[number] = defaultdict(int)
        return slot

    def quantiles(self, now: float) -> Quantiles:
        """Return the figures of the last minute."""
        self._fill_buckets()
        self._forget_before(int(now // _SLOT_S) - _SLOTS + 1)
        counts: dict[int, int] = {}
        for slot in self._slots.values():
            for bucket, count in slot.items():
                counts[bucket] = counts.get(bucket, 0) + count
        return Quantiles(_quantile(counts, 0.5), _quantile(counts, 0.99))

    def _forget_before(self, number: int) -> None:
        for old in [slot for slot in self._slots if slot < number]:
            del self._slots[old]


def _middle(bucket: int) -> float:
    exponent, part = divmod(bucket, _PARTS)
    return math.ldexp(0.5 + (part + 0.5) / (2 * _PARTS), exponent)


def _quantile(counts: dict[int, int], share: float) -> float | None:
    wanted = share * sum(counts.values())
    reached = 0
    for bucket in sorted(counts):
        reached += counts[bucket]
        if reached >= wanted:
            return _middle(bucket)
    return None
