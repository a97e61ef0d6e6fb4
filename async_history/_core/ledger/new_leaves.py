"""The leaves of what a batch records: for databases whose drivers are awaited."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Final

from async_history._core.ledger.leaves import Bundle, owner_bundle, record_bundle
from async_history._core.owners import Owner
from async_history._core.records import HistoryRecord, fields_in_order
from async_history._core.threads import computed

_HASHED_HERE: Final = 64
"""Records whose leaves are computed on the event loop: a third of a millisecond. More go to a
thread."""
_MOST: Final = 512
"""Leaves in a bundle, which a proof reads as a whole."""
_NAMES: Final = 65_536
"""Characters of the names in a bundle, after which it takes no more: a server takes statements of
some size only."""


async def new_leaves(
    records: Sequence[HistoryRecord], owners: Mapping[str, Owner | None], key: bytes | None
) -> Sequence[Bundle]:
    """Return the leaves of new records, and of the owners that memories get.

    Args:
        key: of the salts; None where the store is not encrypted.
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
    """Yield which of these names a bundle takes, and those that follow, until it has all."""
    begin, size = 0, 0
    for at, name in enumerate(names):
        if at - begin == _MOST or size > _NAMES:
            yield slice(begin, at)
            begin, size = at, 0
        size += len(name)
    if begin < len(names):
        yield slice(begin, len(names))
