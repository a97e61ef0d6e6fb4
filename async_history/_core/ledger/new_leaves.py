"""The leaves of a batch, for databases with async drivers."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from threading import Lock
from typing import Final

from async_history._core.concurrency.threads import computed
from async_history._core.concurrency.yielding import in_slices
from async_history._core.ledger.leaves import (
    Bundle,
    bundle_of_records,
    new_leaves_of_records,
    owner_bundle,
)
from async_history._core.records.owners import Owner
from async_history._core.records.records import Fields
from async_history._core.writing.ahead import ComputedAhead, fields_waiting

_HASHED_HERE: Final = 64
"""Most records whose leaves are computed on the event loop; a thread computes those of more."""
_HASHED_AT_ONCE: Final = 16
"""Most leaves computed in one iteration of the event loop (a tenth of a millisecond)."""
_OWNERS_A_RECORD: Final = 3
"""Leaves of owners that take as long as one of a record."""
MOST_LEAVES: Final = 512
"""Most leaves of a bundle: a proof reads a whole bundle."""
MOST_CHARACTERS: Final = 65_536
"""Characters of names after which a bundle is full, because servers limit statements."""


class NewLeaves:
    """The leaves of new records, computed with their batch or before it.

    Args:
        turn: see `ComputedAhead`.
        salt_key: returns the key of the salts; None if the store is not encrypted now.
    """

    def __init__(self, turn: Lock, salt_key: Callable[[], bytes | None]) -> None:
        self._salt_key = salt_key
        self._ahead = ComputedAhead[tuple[bytes | None, bytes]](turn)

    def begin(self, submissions: Iterable[object]) -> None:
        """Begin to compute the leaves of single records that wait for the next batch."""
        if not self._ahead.has_begun:
            fields = fields_waiting(submissions)
            if len(fields) > _HASHED_HERE:
                self._ahead.begin(fields, partial(_under, self._salt_key()))

    def drop(self) -> None:
        """Forget what was computed before its batch."""
        self._ahead.drop()

    async def of(
        self, fields: Sequence[Fields], owners: Mapping[str, Owner | None]
    ) -> Sequence[Bundle]:
        """Return the leaves of a batch's records, and of the new owners of memories."""
        key = self._salt_key()
        ahead = await self._ahead.of(fields)
        leaves = [one[1] if one is not None and one[0] == key else None for one in ahead]
        missing = [one for one, leaf in zip(fields, leaves, strict=True) if leaf is None]
        hashed = partial(_hashed, key)
        bundles = partial(_bundles, fields, leaves, owners, key)
        if len(missing) + len(owners) // _OWNERS_A_RECORD <= _HASHED_HERE:
            return bundles(await in_slices(hashed, missing, _HASHED_AT_ONCE))
        return await computed(lambda: bundles(hashed(missing)))


def _hashed(key: bytes | None, fields: Sequence[Fields]) -> Iterator[bytes]:
    return new_leaves_of_records(fields, len(fields), key)


def _under(key: bytes | None, fields: Sequence[Fields]) -> Iterator[tuple[bytes | None, bytes]]:
    """Yield the key of the salts and the leaf of each record."""
    return ((key, leaf) for leaf in _hashed(key, fields))


def _bundles(
    fields: Sequence[Fields],
    leaves: Sequence[bytes | None],
    owners: Mapping[str, Owner | None],
    key: bytes | None,
    missing: Iterable[bytes],
) -> list[Bundle]:
    """Return the bundles of records and owners, with the missing leaves in place of None."""
    rest = iter(missing)
    whole = [next(rest) if leaf is None else leaf for leaf in leaves]
    ids = [one[0] for one in fields]
    owned = {name: owner for name, owner in owners.items() if owner is not None}
    memories = list(owned)
    return [
        *(bundle_of_records(ids[part], whole[part], key) for part in _parts(ids)),
        *(
            owner_bundle({name: owned[name] for name in memories[part]})
            for part in _parts(memories)
        ),
    ]


def _parts(names: Sequence[str]) -> Iterator[slice]:
    """Yield the slices of names that go into each bundle."""
    begin, size = 0, 0
    for at, name in enumerate(names):
        if at - begin == MOST_LEAVES or size > MOST_CHARACTERS:
            yield slice(begin, at)
            begin, size = at, 0
        size += len(name)
    if begin < len(names):
        yield slice(begin, len(names))
