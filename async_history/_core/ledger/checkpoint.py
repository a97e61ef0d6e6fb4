"""Checkpoints: signed statements of the ledger's size and root.

The text is a C2SP tlog-checkpoint, signed as a C2SP signed-note with Ed25519. The tools and
witnesses of transparency logs can read it.
"""

import base64
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final, Self

from async_history._core.ledger.tree import HASH_BYTES
from async_history._core.records.values import check_text
from async_history.errors import InvalidInput, NotProven

_ED25519: Final = b"\x01"
_KEY_HASH_BYTES: Final = 4
_SIGNATURE: Final = "— "
_TIME: Final = "time "
_LARGEST: Final = 1 << 62


def _primitives() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError as error:
        raise InvalidInput(
            "signatures of the ledger need cryptography: pip install 'async-history[crypto]'"
        ) from error
    return ed25519


def from_base64(text: str) -> bytes:
    """Return the bytes of a base64 text, in its only valid form.

    Raises:
        ValueError: it is not base64, or has unused bits that are not zero.
    """
    found = base64.b64decode(text, validate=True)
    if base64.b64encode(found).decode() != text:
        raise ValueError("not the one text of these bytes")
    return found


def _key_hash(name: str, public: bytes) -> bytes:
    return sha256(f"{name}\n".encode() + _ED25519 + public).digest()[:_KEY_HASH_BYTES]


def _checked_name(name: object) -> str:
    if not isinstance(name, str) or not _is_name(name):
        raise InvalidInput("a key's name is text without spaces and +, such as example.org/log")
    return name


def _is_name(text: str) -> bool:
    return bool(text) and not any(one < " " or one == "+" or one.isspace() for one in text)


@dataclass(frozen=True, slots=True)
class LedgerVerifier:
    """A public key that checks a ledger's checkpoints.

    Args:
        name: the ledger's name, the origin of its checkpoints.
        public: the Ed25519 key, 32 bytes.
    """

    name: str
    public: bytes

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the key of a text, in the form of `str` and Go's `note.NewEd25519VerifierKey`.

        Raises:
            InvalidInput: it is not a verifier key.
        """
        parts = check_text("text", text).strip().split("+", 2)
        try:
            name, digits, encoded = parts
            key = from_base64(encoded)
        except ValueError:
            raise InvalidInput("a verifier key is <name>+<hash>+<base64>") from None
        made = cls(_checked_name(name), key[1:])
        if (
            key[:1] != _ED25519
            or len(key) != 1 + HASH_BYTES
            or digits != _key_hash(name, made.public).hex()
        ):
            raise InvalidInput("this verifier key is damaged, or not an Ed25519 key")
        return made

    def __str__(self) -> str:
        key = base64.b64encode(_ED25519 + self.public).decode()
        return f"{self.name}+{_key_hash(self.name, self.public).hex()}+{key}"

    def is_named_by(self, signature: "Signature") -> bool:
        """Return whether a signature line names this key."""
        return signature.name == self.name and signature.key_hash == _key_hash(
            self.name, self.public
        )

    def has_signed(self, signed: str, signature: "Signature") -> bool:
        """Return whether this key made a signature of a note's text.

        Args:
            signed: the note's text.
            signature: the signature line of the note.
        """
        if not self.is_named_by(signature):
            return False
        ed25519 = _primitives()
        from cryptography.exceptions import InvalidSignature

        try:
            key = ed25519.Ed25519PublicKey.from_public_bytes(self.public)
            key.verify(signature.signature, signed.encode())
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True, slots=True, repr=False)
class LedgerKey:
    """A private key that signs a ledger's checkpoints. Keep it outside the store.

    Args:
        name: the ledger's unique name, usually a URL without its scheme.
        seed: the Ed25519 key, 32 bytes.
    """

    name: str
    seed: bytes

    @classmethod
    def generate(cls, name: str) -> Self:
        """Return a new key.

        Raises:
            InvalidInput: the name has spaces or +, or `cryptography` is not installed.
        """
        key = _primitives().Ed25519PrivateKey.generate()
        return cls(_checked_name(name), key.private_bytes_raw())

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the key of a text, in the form of `export` and Go's `note.GenerateKey`.

        Raises:
            InvalidInput: it is not a signer key, or `cryptography` is not installed. The message
                does not show it.
        """
        parts = check_text("text", text).strip().split("+", 4)
        try:
            private, word, name, digits, encoded = parts
            key = from_base64(encoded)
        except ValueError:
            raise InvalidInput("a signer key is PRIVATE+KEY+<name>+<hash>+<base64>") from None
        made = cls(_checked_name(name), key[1:])
        if (
            (private, word, key[:1]) != ("PRIVATE", "KEY", _ED25519)
            or len(key) != 1 + HASH_BYTES
            or digits != _key_hash(name, made.verifier.public).hex()
        ):
            raise InvalidInput("this signer key is damaged, or not an Ed25519 key")
        return made

    def export(self) -> str:
        """Return the key as text. Keep it secret."""
        key = base64.b64encode(_ED25519 + self.seed).decode()
        return f"PRIVATE+KEY+{self.name}+{_key_hash(self.name, self.verifier.public).hex()}+{key}"

    @property
    def verifier(self) -> LedgerVerifier:
        """The public key, which may be given to anyone."""
        key = _primitives().Ed25519PrivateKey.from_private_bytes(self.seed)
        return LedgerVerifier(self.name, key.public_key().public_bytes_raw())

    def sign(self, text: str) -> "Signature":
        """Return this key's signature of a note's text."""
        key = _primitives().Ed25519PrivateKey.from_private_bytes(self.seed)
        return Signature(
            self.name, _key_hash(self.name, self.verifier.public), key.sign(text.encode())
        )

    def __repr__(self) -> str:
        return f"LedgerKey({self.name!r}, …)"


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature line of a note: the key's name and hash, and the signature."""

    name: str
    key_hash: bytes
    signature: bytes

    def __str__(self) -> str:
        encoded = base64.b64encode(self.key_hash + self.signature).decode()
        return f"{_SIGNATURE}{self.name} {encoded}"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A ledger's size and root. With it, any change of earlier leaves is detected.

    `str` returns its text, and `parse` reads it. Additional lines of a text are kept.
    """

    origin: str
    """The ledger's name."""
    size: int
    """The number of its leaves."""
    root: bytes
    """The root of its tree, 32 bytes."""
    extensions: tuple[str, ...] = ()
    """The additional lines of the text; ours has the time of creation."""
    signatures: tuple[Signature, ...] = ()
    """The signatures of the ledger and of witnesses."""

    @classmethod
    def make(cls, key: LedgerKey, size: int, root: bytes) -> Self:
        """Return a new signed checkpoint.

        Args:
            key: the key that signs it.
            size: the number of leaves of the ledger.
            root: the root of its tree, 32 bytes.
        """
        time = datetime.now(UTC).isoformat(timespec="seconds")
        made = cls(key.name, size, root, (f"{_TIME}{time}",))
        return replace(made, signatures=(key.sign(made.signed_text),))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the checkpoint of a text, without checking its signatures.

        Raises:
            InvalidInput: it is not a checkpoint.
        """
        refused = InvalidInput("this is not a checkpoint of a ledger (C2SP tlog-checkpoint)")
        is_ended = check_text("text", text).endswith("\n")
        if not is_ended or any(one < " " and one != "\n" for one in text):
            raise refused
        body, _, notes = text.rpartition("\n\n")
        lines = body.split("\n")
        try:
            origin, size, root = lines[0], lines[1], from_base64(lines[2])
            number = int(size)
            signatures = tuple(map(_signature, notes.split("\n")[:-1]))
        except (IndexError, ValueError):
            raise refused from None
        if not origin or str(number) != size or not 0 <= number < _LARGEST or not all(lines):
            raise refused
        if len(root) != HASH_BYTES:
            raise refused
        return cls(origin, number, root, tuple(lines[3:]), signatures)

    @property
    def signed_text(self) -> str:
        """The text that is signed."""
        lines = (self.origin, str(self.size), base64.b64encode(self.root).decode())
        return "".join(f"{line}\n" for line in (*lines, *self.extensions))

    def __str__(self) -> str:
        return self.signed_text + "\n" + "".join(f"{one}\n" for one in self.signatures)

    @property
    def made_at(self) -> datetime | None:
        """When it was created according to its text, aware; None if the text has no time."""
        for line in self.extensions:
            if line.startswith(_TIME):
                try:
                    return datetime.fromisoformat(line.removeprefix(_TIME)).astimezone(UTC)
                except ValueError:
                    return None
        return None

    def require_signed(self, verifier: LedgerVerifier) -> None:
        """Check that a key has signed it, and that it belongs to that key's ledger.

        Signatures of other keys are ignored. If the text has several of this key, all must be true.

        Args:
            verifier: the public key.

        Raises:
            NotProven: the key has not signed it, or it belongs to another ledger.
            InvalidInput: `cryptography` is not installed.
        """
        made = [one for one in self.signatures if verifier.is_named_by(one)]
        is_signed = bool(made) and all(verifier.has_signed(self.signed_text, one) for one in made)
        if self.origin != verifier.name or not is_signed:
            raise NotProven(
                f"this checkpoint of {self.origin} is not signed by the key of {verifier.name}"
            )


def _signature(line: str) -> Signature:
    if not line.startswith(_SIGNATURE):
        raise ValueError("not a signature")
    name, encoded = line.removeprefix(_SIGNATURE).split(" ")
    signed = from_base64(encoded)
    if len(signed) <= _KEY_HASH_BYTES or not _is_name(name):
        raise ValueError("too short, or of no key")
    return Signature(name, signed[:_KEY_HASH_BYTES], signed[_KEY_HASH_BYTES:])
