"""Proofs that are checked without the store: of a record in a ledger, and of a ledger's growth."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from async_history._core.ledger.checkpoint import Checkpoint, LedgerVerifier, from_base64
from async_history._core.ledger.leaves import RECORD, REST, commitment_of
from async_history._core.ledger.tree import has_grown, is_included, leaf_hash
from async_history._core.records.records import COLUMNS
from async_history._core.wording import counted
from async_history.errors import InvalidInput, NotProven

_NAMES: Final = (*COLUMNS, "context", "cause")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordProof:
    """A proof that a record is in a ledger, at a place among the leaves of a checkpoint.

    Without the record, it proves only that there is a leaf at that place. That is all that can be
    proven of an erased record, and everybody can leave the record out of a proof.

    `str` returns it as JSON text.
    """

    checkpoint: Checkpoint
    """The checkpoint of the ledger."""
    place: int
    """The place of its leaf, from 0."""
    path: tuple[bytes, ...]
    """The hashes that lead from the leaf to the root."""
    commitment: bytes
    """The commitment in the leaf: 32 bytes."""
    kind: str
    """"record", or "rest" for the rest of an erased record."""
    salt: bytes | None
    """The random bytes in the commitment; None for an erased record."""
    record: Mapping[str, Any] | None
    """mem0's ten columns, and context and cause as JSON text; None for an erased record."""

    def require_proven(self) -> None:
        """Check that the record is in the checkpoint's tree. The signature is not checked.

        Raises:
            NotProven: the record is not in the tree.
        """
        if self.kind not in (RECORD, REST):
            raise NotProven("the leaf is not one of a record")
        if self.record is not None and self.salt is not None:
            values = [self.record.get(name) for name in _NAMES]
            if commitment_of(self.kind, self.salt, values) != self.commitment:
                raise NotProven("the record is not the one that its leaf was made of")
        elif self.record is not None or self.salt is not None:
            raise NotProven("a proof has both the record and the salt of its leaf, or neither")
        leaf = leaf_hash(self.commitment)
        if not is_included(leaf, self.place, self.checkpoint.size, self.path, self.checkpoint.root):
            raise NotProven("the leaf is not in the checkpoint's tree")

    def __str__(self) -> str:
        return _text(
            {
                "proof": "record",
                "checkpoint": str(self.checkpoint),
                "place": self.place,
                "path": list(map(_encoded, self.path)),
                "commitment": _encoded(self.commitment),
                "kind": self.kind,
                "salt": None if self.salt is None else _encoded(self.salt),
                "record": None if self.record is None else dict(self.record),
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthProof:
    """A proof that a ledger has all leaves of an older checkpoint, unchanged and in order.

    `str` returns it as JSON text.
    """

    old: Checkpoint
    """The older checkpoint."""
    new: Checkpoint
    """The newer one."""
    path: tuple[bytes, ...]
    """The hashes from which both roots are computed."""

    def require_proven(self) -> None:
        """Check that the newer tree has grown from the older. The signatures are not checked.

        Raises:
            NotProven: it has not.
        """
        old, new = self.old, self.new
        if old.origin != new.origin:
            raise NotProven(f"the checkpoints are of two ledgers, {old.origin} and {new.origin}")
        if not has_grown(old.size, new.size, self.path, old.root, new.root):
            raise NotProven(
                f"the ledger of {counted(new.size, 'leaf', 'leaves')} has not grown out of that of "
                f"{old.size:,}"
            )

    def __str__(self) -> str:
        return _text(
            {
                "proof": "growth",
                "old": str(self.old),
                "new": str(self.new),
                "path": list(map(_encoded, self.path)),
            }
        )


def verify_proof(text: str, verifier: LedgerVerifier) -> RecordProof | GrowthProof:
    """Check a proof and the signatures of its checkpoints, without a store; return it.

    Args:
        text: the proof, as its `str` returns it.
        verifier: the ledger's public key.

    Raises:
        NotProven: the proof is wrong, or the key has not signed its checkpoints.
        InvalidInput: it is not a proof, or `cryptography` is not installed.
    """
    proof = _parsed(text)
    checkpoints = (proof.checkpoint,) if isinstance(proof, RecordProof) else (proof.old, proof.new)
    for checkpoint in checkpoints:
        checkpoint.require_signed(verifier)
    proof.require_proven()
    return proof


def record_of_values(values: Sequence[Any]) -> dict[str, Any]:
    """Return a leaf's values by name."""
    return dict(zip(_NAMES, values, strict=True))


def _parsed(text: str) -> RecordProof | GrowthProof:
    try:
        given = json.loads(text, object_pairs_hook=_without_repetition)
        # json reads lone surrogates, which no proof has: each text in it is hashed.
        json.dumps(given, ensure_ascii=False).encode()
        path = tuple(map(from_base64, given["path"]))
        if given["proof"] == "growth":
            old, new = Checkpoint.parse(given["old"]), Checkpoint.parse(given["new"])
            return GrowthProof(old=old, new=new, path=path)
        if given["proof"] != "record" or type(given["place"]) is not int:
            raise ValueError("another kind of proof")
        salt, record = given["salt"], given["record"]
        return RecordProof(
            checkpoint=Checkpoint.parse(given["checkpoint"]),
            place=given["place"],
            path=path,
            commitment=from_base64(given["commitment"]),
            kind=given["kind"],
            salt=None if salt is None else from_base64(salt),
            record=None if record is None else record_of_values([record[n] for n in _NAMES]),
        )
    except InvalidInput:
        raise
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InvalidInput("this is not a proof of a ledger") from error


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Of two values of a name, others may read the one that is not checked.

    Raises:
        ValueError: a name is given twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is given twice")
    return found


def _text(proof: Mapping[str, Any]) -> str:
    return json.dumps(proof, ensure_ascii=False, indent=1)


def _encoded(value: bytes) -> str:
    return base64.b64encode(value).decode()
