"""The leaves of a batch, for databases with async drivers."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Final

from async_history._core.ledger.leaves import Bundle, owner_bundle, record_bundle
from async_history._core.owners import Owner
from async_history._core.records import HistoryRecord, fields_in_order
from async_history._core.threads import computed

_HASHED_HERE: Final = 64
"""Most records whose leaves are computed on the event loop, in a third of a millisecond. A thread
computes those of more."""
MOST_LEAVES: Final = 512
"""Most leaves of a bundle: a proof reads a whole bundle."""
MOST_CHARACTERS: Final = 65_536
"""Characters of names after which a bundle is full, because servers limit statements."""


async def new_leaves(
    records: Sequence[HistoryRecord], owners: Mapping[str, Owner | None], key: bytes | None
) -> Sequence[Bundle]:
    """Return the leaves of new records, and of the new owners of memories.

    Args:
        key: the key of the salts; None if the store is not encrypted.
    """
    make = partial(_leaves, records, owners, key)
    return make() if len(records) <= _HASHED_HERE else await computed(make)


def _leaves(
    records: Sequence[HistoryRecord], owners: Mapping[str, Owner | None], key: bytes | None
) -> list[Bundle]:
    ids = [record.id for record in records]
    owned = {name: owner for name, owner in owners.items() if owner is not None}
    memories = list(owned)
    return [
        *(
            record_bundle(ids[part], map(fields_in_order, records[part]), key)
            for part in _parts(ids)
        ),
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
