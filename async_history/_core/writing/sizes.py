"""Estimates of the memory of a queued submission."""

from typing import Final

from async_history._core.records.json_object import json_text
from async_history._core.records.records import Fields, HistoryRecord, fields_in_order

RECORD_BYTES: Final = 1024
"""Estimated memory of a queued record without its texts: objects, future, timer.
benchmarks/peers.py compares the real use with the queue's limits.
"""
_CHARACTER_BYTES: Final = 4
"""Maximum memory of a character in a str; names are short, so this bound is close enough."""


def record_bytes(record: HistoryRecord) -> int:
    """Return the estimated bytes of a queued record."""
    return bytes_of(fields_in_order(record))


def bytes_of(fields: Fields) -> int:
    """Return the estimated bytes of a queued record with these fields."""
    _, memory_id, old, new, _, _, _, _, actor_id, role, _, _, context, cause = fields
    # `__sizeof__` takes a third of the time of `getsizeof`, which is the same for texts.
    size: int = (
        RECORD_BYTES + old.__sizeof__() + new.__sizeof__() + _CHARACTER_BYTES * len(memory_id)
    )
    if actor_id is not None:
        size += _CHARACTER_BYTES * len(actor_id)
    if role is not None:
        size += _CHARACTER_BYTES * len(role)
    if context is not None:
        size += json_text(context).__sizeof__()
    if cause is not None:
        size += json_text(cause).__sizeof__()
    return size
