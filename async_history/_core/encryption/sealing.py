"""The stored form of encrypted texts, each bound to one place.

It does not deal with the source of keys.

A sealed text is `ahs1:`, the id of the data key, a colon, base64 of nonce, ciphertext and tag, and
`:ahs1`. The text's place, a column of a record, is authenticated with it. The form has a mark at
both ends, so a text with one damaged byte is never treated as clear.

JSON stays JSON: `{"sealed":"…"}`. A cause also has a token for each indexed key, by which records
are found: a keyed hash, authenticated with the rest.
"""

import re
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from os import urandom
from struct import Struct
from typing import Any, Final

from async_history._core.encryption.aes import aes_gcm, invalid_tag
from async_history._core.encryption.key_ring import NONCE_BYTES
from async_history._core.records.json_object import JsonObject
from async_history._core.records.recording import INDEXED_CAUSES
from async_history.errors import StorageCorrupt

BEGIN: Final = "ahs1:"
"""The prefix of a sealed text."""
END: Final = ":ahs1"
KEY_ID: Final = 16
"""Hexadecimal digits of a data key's id."""
JSON_BEGIN: Final = f'"sealed":"{BEGIN}'
"""The key of the sealed text in its JSON, after the tokens."""
_JSON_END: Final = f'{END}"}}'
_KEY: Final = slice(len(BEGIN), len(BEGIN) + KEY_ID)
_TOKEN: Final = 32
USES: Final = 4
"""The most uses of a key for a record: two texts, its context and its cause."""
_NONCES: Final = Struct(f"{NONCE_BYTES}s" * USES)
_JSON_FORM: Final = re.compile(
    rf'\{{((?:"(?:{"|".join(INDEXED_CAUSES)})":"[0-9a-f]{{{_TOKEN}}}",)*)"sealed":"([^"]*)"\}}',
    re.ASCII,
)


class DataKey:
    """A key that texts are sealed under."""

    __slots__ = ("_decrypt", "_encrypt", "_prefix", "id")

    def __init__(self, key_id: str, key: bytes) -> None:
        self.id = key_id
        aes = aes_gcm(key)
        self._encrypt, self._decrypt = aes.encrypt, aes.decrypt
        self._prefix = f"{BEGIN}{key_id}:"

    def seal(self, text: str, place: bytes, nonce: bytes) -> str:
        """Return a text sealed for a place; the nonce must be new."""
        stored = b2a_base64(nonce + self._encrypt(nonce, text.encode(), place), newline=False)
        return f"{self._prefix}{stored.decode()}{END}"

    def open(self, stored: bytes, place: bytes) -> str | None:
        """Return a text; None if it was changed, or sealed for another place."""
        try:
            text = self._decrypt(stored[:NONCE_BYTES], stored[NONCE_BYTES:], place)
        except (ValueError, invalid_tag()):
            return None
        return text.decode()


def new_nonce() -> bytes:
    """Return a random nonce."""
    return urandom(NONCE_BYTES)


def new_nonces(records: int) -> Iterator[tuple[bytes, ...]]:
    """Return random nonces for the texts of each record.

    They are from a single call of the system, because each call releases the GIL.
    """
    return _NONCES.iter_unpack(urandom(_NONCES.size * records))


def place_of(column: str, *names: str) -> bytes:
    """Return the place that a text is sealed for: a column of the object with these names."""
    return "\0".join((column, *names)).encode()


def is_sealed(text: object) -> bool:
    """Return whether a stored value is a sealed text, perhaps damaged."""
    if type(text) is str:
        return text.startswith(BEGIN) or text.endswith(END)
    return type(text) is bytes and (  # a damaged type of a value
        text.startswith(BEGIN.encode()) or text.endswith(END.encode())
    )


def is_json_sealed(text: object) -> bool:
    """Return whether a stored value is the JSON of a sealed text, perhaps damaged."""
    return type(text) is str and (text.endswith(_JSON_END) or JSON_BEGIN in text)


def may_have_sealed(values: Iterable[Any]) -> bool:
    """Return whether any of these stored texts and JSON may be sealed, or is of another type."""
    try:
        texts = "\n".join([value for value in values if value is not None])
    except TypeError:
        return True
    return BEGIN in texts or END in texts


def key_ids(texts: Iterable[object]) -> set[str]:
    """Return the ids of the data keys named in stored texts and in JSON of texts.

    A damaged text may name a wrong one. If it names none, its id is "".
    """
    found: set[str] = set()
    for text in texts:
        begin = text.find(BEGIN, 0, _JSON_PREFIX) if isinstance(text, str) else -1
        if isinstance(text, str) and begin >= 0:
            begin += len(BEGIN)
            found.add(text[begin : begin + KEY_ID])
        elif is_sealed(text) or is_json_sealed(text):
            found.add("")
    return found


_JSON_PREFIX: Final = 512
"""The last position at which the mark of a sealed cause can begin: after its tokens."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The data keys that some stored texts name, of those that the store has.

    Attributes:
        by_id: the keys.
        is_partial: whether texts in clear may look sealed: then only a text that names one of the
            keys is sealed.
    """

    by_id: Mapping[str, DataKey]
    is_partial: bool = False

    def is_sealed(self, text: object) -> bool:
        """Return whether a stored text is sealed, perhaps damaged."""
        return is_sealed(text) and self._are_named(text)

    def is_json_sealed(self, text: object) -> bool:
        """Return whether a stored JSON text is that of a sealed text, perhaps damaged."""
        return is_json_sealed(text) and self._are_named(text)

    def _are_named(self, text: object) -> bool:
        return not self.is_partial or not key_ids([text]).isdisjoint(self.by_id)


def key_id_of(text: object, column: str, record_id: str) -> str:
    """Return the id of the data key of a sealed text.

    Raises:
        StorageCorrupt: the text is damaged.
    """
    if (
        type(text) is not str
        or not text.startswith(BEGIN)
        or not text.endswith(END)
        or text[_KEY.stop : _KEY.stop + 1] != ":"
    ):
        raise damaged(column, record_id)
    return text[_KEY]


def stored_bytes(text: str, column: str, record_id: str) -> bytes:
    """Return the bytes of a sealed text after the id of its key.

    Raises:
        StorageCorrupt: it is damaged.
    """
    try:
        return a2b_base64(text[_KEY.stop + 1 : -len(END)], strict_mode=True)
    except ValueError:
        raise damaged(column, record_id) from None


def json_taken_apart(text: str, column: str, record_id: str) -> tuple[str, str]:
    """Return the sealed text in its JSON, and the tokens as stored.

    Raises:
        StorageCorrupt: it is damaged.
    """
    form = _JSON_FORM.fullmatch(text)
    if form is None:
        raise damaged(column, record_id)
    return form[2], form[1]


def damaged(column: str, record_id: str) -> StorageCorrupt:
    """Return the error for a text that cannot be decrypted."""
    return StorageCorrupt(
        f"{column} of {record_id} does not open: it was changed, damaged, or moved there from "
        "another row or column. Restore it from a backup"
    )


Token = Callable[[str, str], str]
"""Returns the index token of a cause's key and value."""


def token_under(index_key: bytes) -> Token:
    """Return the function that makes tokens. Without the key they reveal nothing."""
    keyed = {name: blake2b(digest_size=_TOKEN // 2, key=index_key) for name in INDEXED_CAUSES}
    for name, begun in keyed.items():
        begun.update(f"{name}\0".encode())

    def token(name: str, value: str) -> str:
        hashed = keyed[name].copy()
        hashed.update(value.encode())
        return hashed.hexdigest()

    return token


def tokens_of(token: Token, cause: Mapping[str, Any]) -> tuple[dict[str, str], str]:
    """Return the tokens of a cause by key, and how its JSON begins with them."""
    content = cause.content() if type(cause) is JsonObject else cause
    tokens: dict[str, str] = {}
    begin = ""
    for name, value in content.items():
        if name in INDEXED_CAUSES and isinstance(value, str):
            found = tokens[name] = token(name, value)
            begin += f'"{name}":"{found}",'
    return tokens, begin
