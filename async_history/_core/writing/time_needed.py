"""The time that a server may need for a large batch."""

from collections.abc import Sequence
from typing import Final

from async_history._core.writing.submissions import Submission

_RECORD_S: Final = 0.001
_BYTES_A_S: Final = 1024 * 1024
"""Seconds per record and bytes per second that a large batch may take beyond a try's time: ten
times as slow as a slow server, over a slow network."""
_UNNOTICED_S: Final = 2.0
"""Below this, a batch gets no time of its own: setting it takes round trips."""


def time_for(batch: Sequence[Submission]) -> float:
    """Return the extra seconds that a server may need for a large batch; 0 for a usual one."""
    needed_s = 0.0
    for one in batch:
        needed_s += one.record_count * _RECORD_S + one.size_bytes / _BYTES_A_S
    return needed_s if needed_s > _UNNOTICED_S else 0.0
