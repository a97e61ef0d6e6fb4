"""The Merkle tree of RFC 6962 and RFC 9162: its hashes, its proofs, and their checks.

The tree of n leaves is stored as its complete subtrees: the node `(level, index)` covers the
2**level leaves from index * 2**level on. All other nodes are computed from these.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from struct import Struct
from typing import Final

HASH_BYTES: Final = 32
_pairs: Final = Struct(f"{2 * HASH_BYTES}s").iter_unpack
"""Yields each two of joined hashes, which must be an even number."""
EMPTY_ROOT: Final = sha256(b"").digest()
"""The root of the tree without leaves."""

Node = tuple[int, int]
"""The level and index of a complete subtree."""
Range = tuple[int, int]
"""The first leaf, and the one after the last."""


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf."""
    return sha256(b"\x00" + data).digest()


def leaf_hashes(leaves: Iterable[bytes]) -> list[bytes]:
    """Return the hashes of several leaves."""
    return [sha256(b"\x00" + data).digest() for data in leaves]


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of a node from the hashes of its two halves."""
    return sha256(b"\x01" + left + right).digest()


def fold(hashes: bytes) -> bytes:
    """Return the root of a complete subtree from the joined hashes of one level, a power of two."""
    while len(hashes) > HASH_BYTES:
        hashes = b"".join([sha256(b"\x01" + pair).digest() for (pair,) in _pairs(hashes)])
    return hashes


def _split(size: int) -> int:
    """Return the largest power of two below a size of at least 2."""
    return 1 << ((size - 1).bit_length() - 1)


def nodes_of(leaves: Range) -> Iterator[Node]:
    """Yield the complete subtrees of a range of a tree, in order."""
    first, end = leaves
    while first < end:
        size = end - first
        level = size.bit_length() - 1
        yield level, first >> level
        first += 1 << level


def root_of(leaves: Range, get: Callable[[Node], bytes]) -> bytes:
    """Return the root of a range of a tree, from the hashes of complete subtrees."""
    root: bytes | None = None
    for node in reversed(list(nodes_of(leaves))):
        root = get(node) if root is None else node_hash(get(node), root)
    return EMPTY_ROOT if root is None else root


def inclusion_ranges(index: int, size: int) -> list[Range]:
    """Return the ranges whose roots prove that a leaf is in a tree (RFC 9162, 2.1.3.1)."""
    first, end = 0, size
    found: list[Range] = []
    while end - first > 1:
        middle = first + _split(end - first)
        if index < middle:
            found.append((middle, end))
            end = middle
        else:
            found.append((first, middle))
            first = middle
    return found[::-1]


def growth_ranges(old: int, new: int) -> list[Range]:
    """Return the ranges whose roots prove that a tree has grown from another (2.1.4.1)."""
    first, end, is_whole = 0, new, True
    found: list[Range] = []
    while old != end:
        middle = first + _split(end - first)
        if old <= middle:
            found.append((middle, end))
            end = middle
        else:
            found.append((first, middle))
            first, is_whole = middle, False
    if not is_whole:
        found.append((first, end))
    return found[::-1]


def is_included(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Return whether a path proves that a leaf's hash is in a tree (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    place, last, computed = index, size - 1, leaf
    for other in path:
        if last == 0:
            return False
        if place & 1 or place == last:
            computed = node_hash(other, computed)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            computed = node_hash(computed, other)
        place, last = place >> 1, last >> 1
    return last == 0 and computed == root


def has_grown(old: int, new: int, path: Sequence[bytes], old_root: bytes, new_root: bytes) -> bool:
    """Return whether a path proves that a tree has grown from another (RFC 9162, 2.1.4.2)."""
    if not 0 <= old <= new:
        return False
    if old == new:
        return not path and old_root == new_root
    if old == 0:
        return not path and old_root == EMPTY_ROOT
    hashes = list(path)
    if old & (old - 1) == 0:
        hashes.insert(0, old_root)
    if not hashes:
        return False
    place, last = old - 1, new - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    before = after = hashes[0]
    for other in hashes[1:]:
        if last == 0:
            return False
        if place & 1 or place == last:
            before, after = node_hash(other, before), node_hash(other, after)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            after = node_hash(after, other)
        place, last = place >> 1, last >> 1
    return last == 0 and before == old_root and after == new_root
