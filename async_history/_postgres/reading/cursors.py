"""A follower's position in a PostgreSQL history: snapshots, the witness, and the cursor's text."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import pairwise
from typing import Final

from async_history._core.reading.cursors import CursorCodec

_CURSORS: Final = CursorCodec("postgresql", "follow on a PostgreSQL history")
_DIGITS: Final = 16
_FIRST_XACT: Final = 3
"""The lowest number of a transaction; the server reserves smaller ones."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The set of ended transactions: those below `xmax`, except the `running` ones."""

    xmax: int
    running: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Snapshot":
        """Parse a pg_snapshot. If it lists no running ones, only those below xmin count as
        ended."""
        xmin, xmax, running = text.split(":")
        if not running:
            return cls(int(xmin))
        return cls(int(xmax), tuple(map(int, running.split(","))))

    @classmethod
    def read_back(cls, text: str) -> "Snapshot":
        """Parse the text of a snapshot in a cursor.

        Raises:
            ValueError: the server would not accept it as a snapshot.
        """
        snapshot = cls.parse(text)
        numbers = (*snapshot.running, snapshot.xmax)
        is_in_order = all(a < b for a, b in pairwise(numbers))
        if str(snapshot) != text or not is_in_order or not 0 < numbers[0] <= numbers[-1] < 1 << 63:
            raise ValueError(text)
        return snapshot

    def __str__(self) -> str:
        running = ",".join(map(str, self.running))
        return f"{self.running[0] if running else self.xmax}:{self.xmax}:{running}"

    def sees(self, xact: int) -> bool:
        """Return whether a transaction had ended at this snapshot."""
        return xact < self.xmax and xact not in self.running

    def up_to(self, xact: int) -> "Snapshot":
        """Return the snapshot that sees the same up to this transaction, and nothing above it."""
        xmax = min(self.xmax, xact + 1)
        return Snapshot(xmax, tuple(x for x in self.running if x < xmax))

    def next_xact(self, age: int) -> int:
        """Return the next transaction number of the server, from the age of the first number.

        The server counts ages with 32 bits.
        """
        return self.xmax + (_FIRST_XACT + age - self.xmax) % (1 << 32)

    def joined(self, other: "Snapshot") -> "Snapshot":
        """Return the union of two snapshots: it sees what either sees."""
        candidates = sorted({*self.running, *other.running})
        return Snapshot(
            max(self.xmax, other.xmax),
            tuple(x for x in candidates if not self.sees(x) and not other.sees(x)),
        )


NOTHING: Final = Snapshot(1)
"""Sees no transaction: the lowest number is 3."""


@dataclass(frozen=True, slots=True)
class Witness:
    """The newest record, by its transaction, that a position's snapshots see.

    If the server has another record there, or never had this one, its timeline differs from the
    position's.

    Args:
        seq: the record's `seq`.
        digest: a digest of the record's id.
        issued: the last `seq` that the server had issued at that time; None if the role may not
            read it.
        next_xact: the lowest number that no transaction had at that time. Records of this
            transaction and of all above have a higher `seq` than this record. None if the server
            can't guarantee that, and in cursors of earlier versions.
    """

    seq: int
    digest: str
    issued: int | None
    next_xact: int | None = None

    @classmethod
    def of(cls, seq: int, record_id: str, issued: int | None, next_xact: int | None) -> "Witness":
        """Return the witness for a record."""
        return cls(seq, _digest(record_id), issued, next_xact)

    def is_of(self, record_id: str) -> bool:
        """Return whether a record has the witness's id."""
        return self.digest == _digest(record_id)


def _digest(record_id: str) -> str:
    return sha256(record_id.encode()).hexdigest()[:_DIGITS]


@dataclass(frozen=True, slots=True)
class FollowPosition:
    """A follower's position: after all records of `done`, and those of `window` up to `seq`.

    Positions are equal if the same records come next.

    Args:
        store: identifies the cluster and table.
        foreign: the last `seq` of records that came from another cluster, at the start.
        upto: the highest `seq` in the window, if known.
        witness: None in a cursor of an earlier version, and if there were no records.
    """

    store: str
    foreign: int
    done: Snapshot
    window: Snapshot | None = None
    seq: int = 0
    upto: int | None = field(default=None, compare=False)
    witness: Witness | None = field(default=None, compare=False)

    @property
    def newest(self) -> int:
        """The transaction of the newest record that the snapshots see."""
        return (self.window or self.done).xmax - 1

    @property
    def after_window(self) -> "FollowPosition":
        """The position after the whole window."""
        return replace(self, done=self.window or self.done, window=None, seq=0, upto=None)

    def ranges(self, before: int | None) -> list[tuple[int, int]]:
        """Return the ranges, with exclusive ends, of the window's transaction numbers.

        Args:
            before: leave out this number and all above; None: leave out nothing.
        """
        window = self.window or self.done
        end = window.xmax if before is None else min(before, window.xmax)
        running = [x for x in window.running if self.done.xmax <= x < end]
        late = [(x - 1, x + 1) for x in self.done.running if window.sees(x)]
        new = pairwise([self.done.xmax - 1, *running, end])
        return [*late, *((after, until) for after, until in new if until - after > 1)]

    def __str__(self) -> str:
        window = None if self.window is None else str(self.window)
        parts = (self.store, self.foreign, str(self.done), window, self.seq, self.upto)
        if self.witness is None:
            return _CURSORS.text(*parts)
        witness = self.witness
        return _CURSORS.text(*parts, witness.seq, witness.digest, witness.issued, witness.next_xact)


def position_from_cursor(cursor: str) -> FollowPosition:
    """Return the position of a cursor. Cursors of earlier versions lack some parts.

    Raises:
        InvalidInput: it is not a cursor of this backend.
    """
    return _CURSORS.parse(cursor, _read_position)


def _read_position(parts: Sequence[str | int | None]) -> FollowPosition | None:
    match parts:
        case [str(store), int(foreign), str(done), str() | None as window, int(seq), *more]:
            with contextlib.suppress(ValueError):
                parsed = None if window is None else Snapshot.read_back(window)
                position = FollowPosition(store, foreign, Snapshot.read_back(done), parsed, seq)
                return _with_more(position, more)
    return None


def _with_more(position: FollowPosition, more: Sequence[str | int | None]) -> FollowPosition:
    """Return a position with a cursor's optional parts: `upto`, and a witness.

    Raises:
        ValueError: the parts are not valid.
    """
    match more:
        case []:
            return position
        case [int() | None as upto]:
            return replace(position, upto=upto)
        case [int() | None as upto, int(seq), str(digest), int() | None as issued]:
            return replace(position, upto=upto, witness=Witness(seq, digest, issued))
        case [
            int() | None as upto,
            int(seq),
            str(digest),
            int() | None as issued,
            int() | None as next_xact,
        ]:
            return replace(position, upto=upto, witness=Witness(seq, digest, issued, next_xact))
    raise ValueError(more)
