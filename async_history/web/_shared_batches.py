"""Batches of the live feed. Each is read and encoded once for all viewers at the same place.

A place is a position between two records. Its first viewer starts the read of the next batch, and
all viewers at the place get that batch. Then each moves to the end of the batch in its own time.
Viewers of the same records who began elsewhere arrive at the same places: the ids of records
decide where a batch ends, not where it began.
"""

import asyncio
import json
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakValueDictionary
from zlib import crc32

from async_history._core.reading.follow import Follower
from async_history._core.records.records import HistoryRecord
from async_history.web._json import as_json
from async_history.web._view import Followed

_DETAILS: Final = ("context", "cause")
_MEAN_RECORDS: Final = 128
"""Records of a batch, on average, if there are enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """Limits on the size and frequency of batches. Tests give smaller ones.

    Attributes:
        records: most records of a batch.
        text_chars: most characters of a text, and of a context or cause as JSON; the rest is cut.
        turn_s: seconds between any two reads, for all viewers together: writers come first.
        kept_s: seconds that a batch is kept for later viewers. The bound limits the memory that
            slow viewers hold, and how long erased texts can still be sent.
    """

    records: int = 400
    text_chars: int = 2_000
    turn_s: float = 0.02
    kept_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Batch:
    """Encoded events, and the place after them."""

    events: bytes
    end: "Place"


class Batches:
    """The places where viewers wait for the next batch.

    Args:
        limits: see `BatchLimits`.
    """

    def __init__(self, limits: BatchLimits) -> None:
        self.limits = limits
        self.turn = asyncio.Lock()
        self._waiting: WeakValueDictionary[Hashable, Place] = WeakValueDictionary()

    def place(self, followed: Followed, follower: Follower) -> "Place":
        """Return the place of a follower, shared with the viewers who already wait there.

        Args:
            followed: which records the follower returns.
            follower: the place uses it from now on, or drops it.
        """
        key = followed.key, follower.cursor
        return self._waiting.setdefault(key, Place(self, followed, follower))

    def forget(self, place: "Place") -> None:
        """Give a place no new viewers: its batch was read, and its texts may be erased later."""
        if self._waiting.get(place.key) is place:
            del self._waiting[place.key]


class Place:
    """A position between two records, and the viewers there."""

    def __init__(self, batches: Batches, followed: Followed, follower: Follower) -> None:
        self.key = followed.key, follower.cursor
        self._batches = batches
        self._followed = followed
        self._follower: Follower | None = follower
        self._viewers = 0
        self._reading: asyncio.Task[Batch] | None = None

    def enter(self) -> None:
        """Count a viewer, who must call `leave` later."""
        self._viewers += 1

    def leave(self) -> None:
        """Uncount a viewer; after the last one, cancel the read."""
        self._viewers -= 1
        if self._viewers or (self._reading is not None and self._reading.done()):
            return
        self._batches.forget(self)
        if self._reading is not None:
            self._reading.cancel()
        self._drop()

    async def batch(self, timeout_s: float) -> Batch | None:
        """Return the next batch; None if nothing is committed in time.

        Raises what the follower raises.
        """
        if self._reading is None:
            _, cursor = self.key
            follower = self._follower or self._followed.follow(cursor)
            self._follower = None
            self._reading = asyncio.create_task(self._read(follower))
        reading = self._reading
        await asyncio.wait({reading}, timeout=timeout_s)
        return reading.result() if reading.done() else None

    async def _read(self, follower: Follower) -> Batch:
        limits = self._batches.limits
        try:
            records = await follower.next_records(limit=1)
            events: list[bytes] = []
            async with self._batches.turn:
                await asyncio.sleep(limits.turn_s)
                while records:
                    events += [_event(one, follower.cursor, limits.text_chars) for one in records]
                    if len(events) >= limits.records or _ends_batch(records[-1]):
                        break
                    records = await follower.next_records(limit=1, timeout_s=0)
        finally:
            self._batches.forget(self)
        asyncio.get_running_loop().call_later(limits.kept_s, self._drop)
        return Batch(b"".join(events), self._batches.place(self._followed, follower))

    def _drop(self) -> None:
        """Forget the batch. A later viewer starts a new read from here."""
        self._reading = self._follower = None


def _ends_batch(record: HistoryRecord) -> bool:
    return crc32(record.id.encode()) % _MEAN_RECORDS == 0


def _event(record: HistoryRecord, cursor: str | None, text_chars: int) -> bytes:
    # ASCII, because some clients also end a line at U+2028.
    data = json.dumps(_cut(record, text_chars))
    return f"id: {cursor}\ndata: {data}\n\n".encode()


def _cut(record: HistoryRecord, most: int) -> dict[str, Any]:
    """Return a record as JSON, with long values cut; `cut` names the cut fields."""
    fields = as_json(record)
    cut: list[str] = []
    for name in ("old_memory", "new_memory"):
        if len(fields[name] or "") > most:
            fields[name] = fields[name][:most]
            cut.append(name)
    for name in _DETAILS:
        if name in fields and len(json.dumps(fields[name])) > most:
            del fields[name]
            cut.append(name)
    return {**fields, "cut": cut} if cut else fields
