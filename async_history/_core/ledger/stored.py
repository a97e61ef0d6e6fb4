"""The stored rows that a ledger reads: bundles of leaves, records and operations."""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from async_history._core.ledger.leaves import Bundle
from async_history._core.records.owners import SCOPES
from async_history._core.records.rows import Row
from async_history.errors import StorageCorrupt

_decode: Final = json.JSONDecoder().raw_decode
"""Returns the first JSON value of a text, and where it ends, in half of the time of `loads`."""
_OWNERS_KEPT: Final = 4_096
"""Size of the cache of owners: the same ones repeat."""
_DATES: Final = {str, type(None)}
_OTHER_TYPES: Final = "leaves of the ledger are damaged: they have values of other types"
BYTES: Final = (bytes, bytearray, memoryview)
"""The types in which drivers return bytes."""


class StoredBundle(NamedTuple):
    """A bundle, the place of its first leaf, and when it was written.

    Attributes:
        turn: the number of the transaction that wrote it.
        after: transactions with a lower number had ended when it began.
    """

    first: int
    turn: int
    after: int
    bundle: Bundle


class StoredRecord(NamedTuple):
    """A record's values for its leaf, and its position in the order of recording.

    Attributes:
        has_owner: whether the owner stored with it is that of its memory.
    """

    position: int
    has_owner: bool
    values: Sequence[Any]


class RecordRows(NamedTuple):
    """The values of several `StoredRecord`, one list for each field."""

    positions: Sequence[int]
    have_owner: Sequence[Any]
    values: Sequence[Row]

    def of(self, ids: Sequence[str | None]) -> "RecordRows | None":
        """Return these records, in this order; None if one is missing."""
        there = [row[0] for row in self.values]
        if there == ids:
            return self
        at = {record_id: place for place, record_id in enumerate(there)}
        places = [at[record_id] for record_id in ids if record_id in at]
        if len(places) < len(ids):
            return None
        return RecordRows(
            [self.positions[place] for place in places],
            [self.have_owner[place] for place in places],
            [self.values[place] for place in places],
        )

    def part(self, begin: int, end: int) -> "RecordRows":
        """Return some of them, by their places here."""
        part = slice(begin, end)
        return RecordRows(self.positions[part], self.have_owner[part], self.values[part])


class RecordLines(NamedTuple):
    """The positions of several records, and their values as the lines of their leaves."""

    positions: Sequence[int]
    lines: Sequence[bytes]


def lines_of(rows: Sequence[Sequence[Any]], ids: Sequence[str]) -> RecordLines | None:
    """Return these records from rows of `LedgerStatements.lines`; None if one is missing."""
    if [row[1] for row in rows] != ids:
        found = {row[1]: row for row in rows}
        rows = [found[record_id] for record_id in ids if record_id in found]
        if len(rows) < len(ids):
            return None
    return RecordLines([row[0] for row in rows], [row[2].encode() for row in rows])


class Counts(NamedTuple):
    """The numbers of records, of memories with an owner, and of operations that began and ended.

    Attributes:
        disowned: the number of records whose owner is not that of their memory; 0 if it was not
            counted.
    """

    records: int
    owners: int
    disowned: int
    begun: int
    ended: int


class StoredOperation(NamedTuple):
    """An operation's values for its two leaves: its beginning and its outcome."""

    begun: Sequence[Any]
    ended: Sequence[Any] | None


def bundle_of(parts: Sequence[Any]) -> Bundle:
    """Return a bundle from its stored columns.

    Raises:
        StorageCorrupt: one has another type.
    """
    kind, size, hashes, is_keyed, names = parts
    if (
        not isinstance(names, str)
        or not isinstance(hashes, BYTES)
        or not isinstance(size, int)
        or not isinstance(kind, str)
    ):
        raise StorageCorrupt(_OTHER_TYPES)
    return Bundle(kind, size, bytes(hashes), bool(is_keyed), names)


def stored_bundle(row: Sequence[Any]) -> StoredBundle:
    """Return a bundle from a row of the ledger.

    Raises:
        StorageCorrupt: as `bundle_of`.
    """
    first, turn, after, *parts = row
    if not isinstance(first, int) or not isinstance(turn, int) or not isinstance(after, int):
        raise StorageCorrupt(_OTHER_TYPES)
    return StoredBundle(first, turn, after, bundle_of(parts))


def record_values(row: Row) -> Sequence[Any]:
    """Return a record's values as in its leaf: times as text, `is_deleted` as 0 or 1."""
    if row[7] in (0, 1) and type(row[7]) is int and {type(row[5]), type(row[6])} <= _DATES:
        return row
    values = list(row)
    values[7] = 1 if values[7] else 0
    for at in (5, 6):
        if values[at] is not None and type(values[at]) is not str:
            values[at] = str(values[at])
    return values


def stored_owner(memory_id: str, text: str | None) -> Sequence[Any]:
    """Return an owner's values for its leaf: the memory, and its scopes from their JSON text.

    The scopes are not checked. No leaf commits to a text that is not an owner's.
    """
    return (memory_id,) if text is None else (memory_id, *_scopes_in(text))


@lru_cache(_OWNERS_KEPT)
def _scopes_in(text: str) -> Sequence[Any]:
    try:
        scopes, end = _decode(text)
        values = [scopes.get(name) for name in SCOPES]
        "".join(filter(None, values)).encode()
    except (AttributeError, TypeError, ValueError, RecursionError):
        return (repr(text),)
    return values if end == len(text) else (text,)
