"""Leaves: what the ledger commits to, and how a batch's leaves are stored in one row.

A leaf is the hash of a commitment. A commitment is the SHA-256 of a salt (16 random bytes) and of
the values, each as JSON on a separate line; JSON escapes line ends. Without the salt, a commitment
reveals nothing about the values. So an erasure destroys the salt, and the leaf keeps its place.

With a salt and a commitment, one can guess the values. So an encrypted store keeps only a random
value from which the salt is computed with a key (`is_keyed`). No leaf commits to this mark, so it
is ignored where it can't be true.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b, sha256
from operator import attrgetter
from struct import Struct
from typing import Any, Final, NamedTuple

from async_history._core.ledger.tree import leaf_hashes
from async_history._core.records.json_object import json_text
from async_history._core.records.owners import SCOPES, Owner
from async_history._core.records.records import Fields
from async_history._core.records.values import plain
from async_history.errors import StorageCorrupt

SALT_BYTES: Final = 16
_COMMITMENT_BYTES: Final = 32
_LEAF_BYTES: Final = SALT_BYTES + _COMMITMENT_BYTES
_salts_and_commitments: Final = Struct(f"{SALT_BYTES}s{_COMMITMENT_BYTES}s").iter_unpack
"""Yields the salt and the commitment of each leaf in a bundle's hashes."""
_PERSON: Final = b"ledger salt"
NO_SALT: Final = bytes(SALT_BYTES)
"""The value that replaces an erased salt."""
RECORD: Final = "record"
REST: Final = "rest"
OWNER: Final = "owner"
BEGUN: Final = "begun"
ENDED: Final = "ended"
ENTRY: Final = "entry"
_KINDS: Final = (RECORD, REST, OWNER, BEGUN, ENDED, ENTRY)
"""The kinds of leaves: a record, the rest of an erased record, the owner of a memory, the beginning
of an operation, its outcome, and an entry about removed leaves."""
_NAMES: Final = {str, type(None)}
"""The types of leaves' names."""
_KEYED_KINDS: Final = (RECORD, REST)
"""The kinds whose salts may be keyed."""


def _no_json(value: object) -> dict[str, str]:
    """Return a form that no recorded value has, for a BLOB that another program has stored."""
    return {"other": repr(value)}


_encode_rows: Final = json.JSONEncoder(
    ensure_ascii=False, separators=("\n", ": "), default=_no_json
).encode
_encode_names: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Bundle(NamedTuple):
    """Leaves that are written together, in order.

    Attributes:
        kind: the kind of all leaves.
        size: the number of leaves.
        hashes: the salt and commitment of each leaf.
        is_keyed: whether the salts are computed from the stored values with a key.
        names: a JSON list: the id of a record or an operation, the memory of an owner, or the text
            of an entry.
    """

    kind: str
    size: int
    hashes: bytes
    is_keyed: bool
    names: str

    def leaf_names(self) -> list[str | None]:
        """Return its leaves' names; None for pruned ones.

        Raises:
            StorageCorrupt: the row does not have the form of leaves.
        """
        try:
            names = json.loads(self.names)
        except (RecursionError, ValueError):
            names = None
        if (
            self.kind not in _KINDS
            or not isinstance(names, list)
            or not self.size == len(names) == len(self.hashes) / _LEAF_BYTES
            or not set(map(type, names)) <= _NAMES
        ):
            raise StorageCorrupt("leaves of the ledger are damaged")
        return names

    def leaves(self) -> "list[Leaf]":
        """Return its leaves.

        Raises:
            StorageCorrupt: as `leaf_names`.
        """
        return self.leaves_at(range(self.size))

    def leaves_at(self, at: Iterable[int]) -> "list[Leaf]":
        """Return some of its leaves.

        Args:
            at: their indexes, from 0.

        Raises:
            StorageCorrupt: as `leaf_names`.
        """
        names = self.leaf_names()
        return [
            Leaf(self.kind, names[each], self.is_keyed, *_parted(self.hashes, each * _LEAF_BYTES))
            for each in at
        ]

    def leaf_hashes(self) -> list[bytes]:
        """Return the hashes of its leaves in the tree."""
        return leaf_hashes(commitment for _, commitment in _salts_and_commitments(self.hashes))

    @property
    def has_keyed_salts(self) -> bool:
        """Whether its salts are computed, if the store is encrypted."""
        return self.is_keyed and self.kind in _KEYED_KINDS

    def holds(self, rows: Sequence[Sequence[Any]], key: bytes | None) -> bool:
        """Return whether each leaf has its salt, and commits to its row's values."""
        return self.holds_lines(_texts(self.kind, rows), key)

    def holds_lines(self, texts: Iterable[bytes], key: bytes | None) -> bool:
        """Return the same for values that are given as the lines of a commitment, in UTF-8."""
        if NO_SALT in self.hashes:
            return False
        leaves = list(_salts_and_commitments(self.hashes))
        salts = [salt for salt, _ in leaves]
        if key is not None and self.has_keyed_salts:
            salts = [_keyed(salt, key) for salt in salts]
        prefix = _prefix(self.kind)
        computed = [
            sha256(salt + prefix + text).digest() for salt, text in zip(salts, texts, strict=True)
        ]
        return computed == [commitment for _, commitment in leaves]


class Leaf(NamedTuple):
    """One leaf: its kind, its name (None if pruned), its stored salt, and its commitment."""

    kind: str
    name: str | None
    is_keyed: bool
    kept: bytes
    commitment: bytes

    @property
    def is_erased(self) -> bool:
        """Whether its salt was destroyed."""
        return self.kept == NO_SALT

    @property
    def has_keyed_salt(self) -> bool:
        """Whether its salt is computed, if the store is encrypted."""
        return self.is_keyed and self.kind in _KEYED_KINDS

    def salt(self, key: bytes | None) -> bytes:
        """Return the salt of the commitment.

        Args:
            key: the key of the salts; None if the store is not encrypted.
        """
        return self.kept if key is None or not self.has_keyed_salt else _keyed(self.kept, key)

    def holds(self, values: Sequence[Any], key: bytes | None = None) -> bool:
        """Return whether the leaf commits to values.

        Args:
            key: as in `salt`.
        """
        return commitment_of(self.kind, self.salt(key), values) == self.commitment


def record_values(fields: Fields) -> list[Any]:
    """Return the values of a record's leaf: mem0's ten columns, its context and its cause."""
    id_, memory_id, old, new, event, created, updated, deleted, actor, role, _, _, *why = fields
    context, cause = why
    return [
        id_,
        memory_id,
        old,
        new,
        plain(event),
        created,
        updated,
        1 if deleted else 0,
        actor,
        role,
        None if context is None else json_text(context),
        None if cause is None else json_text(cause),
    ]


def owner_values(memory_id: str, owner: Owner | None) -> list[Any]:
    """Return the values of an owner's leaf: the memory, and the four scopes of its owner."""
    return [memory_id, *(_NO_SCOPES if owner is None else _scopes(owner))]


_scopes: Final[Callable[[Owner], tuple[str | None, ...]]] = attrgetter(*SCOPES)
_NO_SCOPES: Final = (None,) * len(SCOPES)


def record_bundle(ids: Sequence[str], records: Iterable[Fields], key: bytes | None) -> Bundle:
    """Return the leaves of new records.

    Args:
        ids: the ids of the records.
        key: the key of the salts; None if the store is not encrypted.
    """
    return values_bundle(RECORD, ids, map(record_values, records), key)


def new_leaves_of_records(
    records: Iterable[Fields], count: int, key: bytes | None
) -> Iterator[bytes]:
    """Yield the salt and commitment of each of `count` new records, for `bundle_of_records`."""
    return _new_leaves(RECORD, map(record_values, records), count, key)


def bundle_of_records(ids: Sequence[str], leaves: Iterable[bytes], key: bytes | None) -> Bundle:
    """Return the bundle of new records from their leaves."""
    return _bundle(RECORD, ids, leaves, key)


def owner_bundle(owners: Mapping[str, Owner]) -> Bundle:
    """Return the leaves of new owners of memories."""
    return values_bundle(OWNER, list(owners), [owner_values(*each) for each in owners.items()])


def values_bundle(
    kind: str, names: Sequence[str], rows: Iterable[Sequence[Any]], key: bytes | None = None
) -> Bundle:
    """Return the leaves with these names and values; with a key, their salts are keyed."""
    return _bundle(kind, names, _new_leaves(kind, rows, len(names), key), key)


def _bundle(kind: str, names: Sequence[str], leaves: Iterable[bytes], key: bytes | None) -> Bundle:
    return Bundle(kind, len(names), b"".join(leaves), key is not None, _encode_names(names))


def _new_leaves(
    kind: str, rows: Iterable[Sequence[Any]], count: int, key: bytes | None
) -> Iterator[bytes]:
    """Yield a new salt and the commitment for each of `count` rows."""
    drawn = os.urandom(SALT_BYTES * count)
    kept = [drawn[at : at + SALT_BYTES] for at in range(0, len(drawn), SALT_BYTES)]
    salts = kept if key is None else [_keyed(one, key) for one in kept]
    prefix = _prefix(kind)
    for one, salt, text in zip(kept, salts, _texts(kind, rows), strict=True):
        yield one + sha256(salt + prefix + text).digest()


def held_at(
    leaves: Mapping[int, Leaf], rows: Sequence[Sequence[Any]], key: bytes | None
) -> set[int]:
    """Return the places of the leaves that commit to their row's values; see `holds`."""
    if not leaves:
        return set()
    return {
        place
        for (place, leaf), values in zip(leaves.items(), rows, strict=True)
        if leaf.holds(values, key)
    }


def _texts(kind: str, rows: Iterable[Sequence[Any]]) -> Iterable[bytes]:
    """Return the values of each row as the lines of a commitment, in UTF-8.

    Records are encoded one by one, because the garbage collector would scan rows that are kept. All
    others are encoded as one text, which saves half of the time.
    """
    if kind in _KEYED_KINDS:
        return map(_record_text, rows)
    # Only between two rows are there ] and [ around a line's end.
    return _encode_rows(list(rows))[2:-2].encode().split(b"]\n[")


def _record_text(values: Sequence[Any]) -> bytes:
    """Return a record's values as the lines of a commitment, in UTF-8."""
    try:
        return _lines(values)
    except TypeError:
        return _encode_rows(values)[1:-1].encode()


def _lines(values: Sequence[Any]) -> bytes:
    """Return a record's values as the lines of a commitment, in UTF-8.

    Raises:
        TypeError: they have types that are never recorded.
    """
    id_, memory_id, old, new, event, created, updated, deleted, actor, role, context, cause = values
    if type(deleted) is not int:
        raise TypeError(f"is_deleted is {deleted!r}")
    return f"""{_quoted(id_)}
{_quoted(memory_id)}
{"null" if old is None else _quoted(old)}
{"null" if new is None else _quoted(new)}
{_quoted(event)}
{"null" if created is None else _quoted(created)}
{"null" if updated is None else _quoted(updated)}
{deleted}
{"null" if actor is None else _quoted(actor)}
{"null" if role is None else _quoted(role)}
{"null" if context is None else _quoted(context)}
{"null" if cause is None else _quoted(cause)}""".encode()


_quoted: Final = json.encoder.encode_basestring
"""Returns a text as JSON."""


def _keyed(kept: bytes, key: bytes) -> bytes:
    return blake2b(kept, digest_size=SALT_BYTES, key=key, person=_PERSON).digest()


def commitment_of(kind: str, salt: bytes, values: Sequence[Any]) -> bytes:
    """Return the commitment to values of a kind of leaf, with a salt."""
    return sha256(salt + _prefix(kind) + _encode_rows(values)[1:-1].encode()).digest()


def _prefix(kind: str) -> bytes:
    return f'"{kind}"\n'.encode()


def rewritten(bundle: Bundle, at: Iterable[int], *, keeps_names: bool) -> Bundle:
    """Return a bundle without the salts, and optionally without the names, of some leaves."""
    hashes = bytearray(bundle.hashes)
    names = None if keeps_names else json.loads(bundle.names)
    for place in at:
        hashes[place * _LEAF_BYTES : place * _LEAF_BYTES + SALT_BYTES] = NO_SALT
        if names is not None:
            names[place] = None
    text = bundle.names if names is None else _encode_names(names)
    return bundle._replace(hashes=bytes(hashes), names=text)


def _parted(hashes: bytes, at: int) -> tuple[bytes, bytes]:
    middle = at + SALT_BYTES
    return hashes[at:middle], hashes[middle : at + _LEAF_BYTES]
