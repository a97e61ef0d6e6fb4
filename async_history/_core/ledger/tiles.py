"""Tiles: the stored form of the tree, with 256 hashes in a row, as in transparency logs.

The tile `(level, number)` has the hashes of the nodes of the tree's level 8 * level, from number *
256 on. The last tile of each level may have fewer. (C2SP tlog-tiles.)
"""

from collections.abc import Iterable, Mapping
from typing import Final

from async_history._core.ledger.tree import HASH_BYTES, Node, Range, fold, nodes_of, root_of

_HEIGHT: Final = 8
WIDTH: Final = 1 << _HEIGHT

Tile = tuple[int, int]
"""A tile's level and number."""


def _tile_of(node: Node) -> tuple[Tile, int, int]:
    """Return the tile for a node, the index of the node's first hash in it, and their number."""
    level, index = node
    first = index << (level % _HEIGHT)
    return (level // _HEIGHT, first // WIDTH), first % WIDTH, 1 << (level % _HEIGHT)


def tiles_of(ranges: Iterable[Range]) -> set[Tile]:
    """Return the tiles from which the roots of ranges are computed."""
    return {_tile_of(node)[0] for leaves in ranges for node in nodes_of(leaves)}


def roots_from(ranges: Iterable[Range], tiles: Mapping[Tile, bytes]) -> list[bytes]:
    """Return the roots of ranges of a tree.

    Raises:
        KeyError, IndexError: a tile is missing, or too short.
    """

    def hash_of(node: Node) -> bytes:
        tile, first, count = _tile_of(node)
        hashes = tiles[tile][first * HASH_BYTES : (first + count) * HASH_BYTES]
        if len(hashes) < count * HASH_BYTES:
            raise IndexError(f"tile {tile} is too short")
        return fold(hashes)

    return [root_of(leaves, hash_of) for leaves in ranges]


def last_tiles(size: int) -> list[Tile]:
    """Return the tiles of a tree that have a hash and are not full."""
    found = []
    level, count = 0, size
    while count:
        if count % WIDTH:
            found.append((level, count // WIDTH))
        level, count = level + 1, count // WIDTH
    return found


def grown(size: int, last: Mapping[Tile, bytes], leaves: bytes) -> dict[Tile, bytes]:
    """Return the tiles that change when leaves are appended to a tree.

    Args:
        size: the number of leaves.
        last: the tiles of the tree that are not full.
        leaves: the joined hashes of the new leaves.
    """
    changed: dict[Tile, bytes] = {}
    level, count, new = 0, size, leaves
    while new:
        number = count // WIDTH
        hashes = last.get((level, number), b"") + new
        above = []
        for start in range(0, len(hashes), WIDTH * HASH_BYTES):
            tile = hashes[start : start + WIDTH * HASH_BYTES]
            changed[level, number] = tile
            number += 1
            if len(tile) == WIDTH * HASH_BYTES:
                above.append(fold(tile))
        level, count, new = level + 1, count // WIDTH, b"".join(above)
    return changed
