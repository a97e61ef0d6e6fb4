"""The leaves of what a batch records: for databases whose drivers are awaited."""

from collections.abc import Mapping, Sequence
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
    fields = list(map(fields_in_order, records))
    given = [(name, owner) for name, owner in owners.items() if owner is not None]
    return [
        *(record_bundle(fields[at : at + _MOST], key) for at in range(0, len(fields), _MOST)),
        *(owner_bundle(dict(given[at : at + _MOST])) for at in range(0, len(given), _MOST)),
    ]
