"""The leaves of what a batch records: for databases whose drivers are awaited."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from async_history._core.ledger.leaves import Bundle, owner_bundle, record_bundle
from async_history._core.owners import Owner
from async_history._core.records import HistoryRecord, fields_in_order
from async_history._core.threads import computed

T = TypeVar("T", bound=Sequence[Any])

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
    given = [(name, owner) for name, owner in owners.items() if owner is not None]
    return [
        *(record_bundle(part, key) for part in _parts(list(map(fields_in_order, records)))),
        *(owner_bundle(dict(part)) for part in _parts(given)),
    ]


def _parts(named: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield what has a name in front, as much at a time as a bundle takes."""
    begin, size = 0, 0
    for at, (name, *_) in enumerate(named):
        if at - begin == _MOST or size > _NAMES:
            yield named[begin:at]
            begin, size = at, 0
        size += len(name)
    if begin < len(named):
        yield named[begin:]
