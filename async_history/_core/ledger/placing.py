"""The places of new leaves, and the keys under which leaves are found by name."""

from collections.abc import Iterable
from hashlib import sha256
from typing import NamedTuple

from async_history._core.ledger.leaves import ENTRY, RECORD, REST, Bundle


class Placed(NamedTuple):
    """New leaves with their places.

    Attributes:
        places: the number of each bundle, and the place of its first leaf.
        names: the key of each leaf's name, and its place; entries have no name.
        hashes: the hashes of the leaves in the tree.
    """

    places: list[tuple[int, int]]
    names: list[tuple[int, int]]
    hashes: list[bytes]


def placed(waiting: Iterable[tuple[int, Bundle]], size: int) -> Placed:
    """Return places for the leaves of bundles.

    Args:
        waiting: the bundles without a place, with their numbers, in order.
        size: the number of leaves with a place.

    Raises:
        StorageCorrupt: as `Bundle.leaf_names`.
    """
    found = Placed([], [], [])
    for number, bundle in waiting:
        first = size + len(found.hashes)
        found.places.append((number, first))
        for place, name in enumerate(bundle.leaf_names(), start=first):
            if bundle.kind != ENTRY and name is not None:
                found.names.append((key_of(bundle.kind, name), place))
        found.hashes.extend(bundle.leaf_hashes())
    return found


def named_as(kind: str) -> str:
    """Return the kind under which a leaf is found by name: a rest has the name of its record."""
    return RECORD if kind == REST else kind


def key_of(kind: str, name: str) -> int:
    """Return the key of a leaf's name: 64 bits of its digest, with a sign."""
    digest = sha256(f"{named_as(kind)} {name}".encode()).digest()
    return int.from_bytes(digest[:8], signed=True)
