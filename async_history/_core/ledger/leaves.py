"""Leaves: what the ledger commits to, and how a batch's leaves are stored, a row for all of them.

A leaf is the hash of a commitment: SHA-256 of 16 random bytes, the salt, and of the values, each as
JSON in a line of its own. JSON has a line's end only escaped. Without the salt a commitment tells
nothing of the values, so an erasure that destroys it leaves a leaf that still has its place.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, NamedTuple

from async_history._core.json_object import json_text
from async_history._core.owners import SCOPES, Owner
from async_history._core.records import Fields
from async_history._core.values import plain
from async_history.errors import StorageCorrupt

SALT_BYTES: Final = 16
_COMMITMENT_BYTES: Final = 32
_LEAF_BYTES: Final = SALT_BYTES + _COMMITMENT_BYTES
NO_SALT: Final = bytes(SALT_BYTES)
"""What an erasure leaves of a salt."""
RECORD: Final = "record"
REST: Final = "rest"
OWNER: Final = "owner"
ENTRY: Final = "entry"
"""The kinds of leaves: a record, what an erasure left of one, the owner of a memory, and what was
done to leaves before."""

_encode_rows: Final = json.JSONEncoder(ensure_ascii=False, separators=("\n", ": ")).encode
_encode_names: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Bundle(NamedTuple):
    """Leaves that are written together, in order.

    Attributes:
        kind: the same for all of them.
        size: how many there are.
        hashes: each one's salt and commitment.
        names: a JSON list: of a record its id, of an owner its memory, of an entry its text.
    """

    kind: str
    size: int
    hashes: bytes
    names: str

    def leaves(self) -> "list[Leaf]":
        """Return its leaves.

        Raises:
            StorageCorrupt: they don't have the form of leaves.
        """
        try:
            names = json.loads(self.names)
        except ValueError:
            names = None
        if (
            self.kind not in (RECORD, REST, OWNER, ENTRY)
            or not isinstance(names, list)
            or not self.size == len(names) == len(self.hashes) / _LEAF_BYTES
        ):
            raise StorageCorrupt("leaves of the ledger are damaged")
        return [
            Leaf(self.kind, name, *_parted(self.hashes, at * _LEAF_BYTES))
            for at, name in enumerate(names)
        ]


class Leaf(NamedTuple):
    """One leaf: its kind, its name, None if pruned, its salt and its commitment."""

    kind: str
    name: str | None
    salt: bytes
    commitment: bytes

    def holds(self, values: Sequence[Any]) -> bool:
        """Return whether the leaf commits to values."""
        return commitment_of(self.kind, self.salt, values) == self.commitment


@dataclass(frozen=True, slots=True)
class Removed:
    """What an entry says was done to leaves: "erased", "pruned" or "reset", and their places."""

    how: str
    places: Sequence[tuple[int, int]]
    """Ranges: the first place, and the one after the last."""
    at: str

    def text(self) -> str:
        """Return it as the entry's text."""
        return _encode_names({"how": self.how, "places": self.places, "at": self.at})


def removed_from(text: str) -> Removed:
    """Return what an entry's text says.

    Raises:
        StorageCorrupt: it is not an entry's.
    """
    try:
        given = json.loads(text)
        return Removed(given["how"], [(int(a), int(b)) for a, b in given["places"]], given["at"])
    except (KeyError, TypeError, ValueError) as error:
        raise StorageCorrupt("an entry of the ledger is damaged") from error


def ranges_of(places: Iterable[int]) -> list[tuple[int, int]]:
    """Return places as ranges."""
    found: list[tuple[int, int]] = []
    for place in sorted(set(places)):
        if found and found[-1][1] == place:
            found[-1] = (found[-1][0], place + 1)
        else:
            found.append((place, place + 1))
    return found


def record_values(fields: Fields) -> list[Any]:
    """Return what a record's leaf commits to: mem0's ten columns, its context and its cause."""
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
    """Return what an owner's leaf commits to: the memory, and the four scopes of its owner."""
    return [memory_id, *(None if owner is None else getattr(owner, scope) for scope in SCOPES)]


def record_bundle(records: Sequence[Fields]) -> Bundle:
    """Return the leaves of new records."""
    ids = [record[0] for record in records]
    return values_bundle(RECORD, ids, list(map(record_values, records)))


def owner_bundle(owners: Mapping[str, Owner]) -> Bundle:
    """Return the leaves of memories' new owners."""
    return values_bundle(OWNER, list(owners), [owner_values(*each) for each in owners.items()])


def entry_bundle(removed: Removed) -> Bundle:
    """Return the leaf of what is done to leaves."""
    text = removed.text()
    return values_bundle(ENTRY, [text], [[text]])


def values_bundle(kind: str, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Bundle:
    """Return the leaves of what has these names and values."""
    # All rows at once: that takes half the time. Nothing but two rows has ] and [ around a line's
    # end.
    texts = _encode_rows(rows)[2:-2].split("]\n[")
    salts = os.urandom(SALT_BYTES * len(rows))
    hashes = bytearray()
    prefix = _prefix(kind)
    for at, text in enumerate(texts):
        salt = salts[at * SALT_BYTES : (at + 1) * SALT_BYTES]
        hashes += salt
        hashes += sha256(salt + prefix + text.encode()).digest()
    return Bundle(kind, len(rows), bytes(hashes), _encode_names(names))


def commitment_of(kind: str, salt: bytes, values: Sequence[Any]) -> bytes:
    """Return the commitment to values of a kind of leaf, with a salt."""
    return sha256(salt + _prefix(kind) + _encode_rows(values)[1:-1].encode()).digest()


def _prefix(kind: str) -> bytes:
    return f'"{kind}"\n'.encode()


def rewritten(bundle: Bundle, at: Iterable[int], *, keeps_names: bool) -> Bundle:
    """Return a bundle without the salts, and perhaps without the names, of some of its leaves."""
    hashes = bytearray(bundle.hashes)
    names = None if keeps_names else json.loads(bundle.names)
    for place in at:
        hashes[place * _LEAF_BYTES : place * _LEAF_BYTES + SALT_BYTES] = NO_SALT
        if names is not None:
            names[place] = None
    text = bundle.names if names is None else _encode_names(names)
    return Bundle(bundle.kind, bundle.size, bytes(hashes), text)


def _parted(hashes: bytes, at: int) -> tuple[bytes, bytes]:
    middle = at + SALT_BYTES
    return hashes[at:middle], hashes[middle : at + _LEAF_BYTES]
