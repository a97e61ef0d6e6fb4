"""Master keys of a program, and wrapping a store's keys with them."""

import base64
import binascii
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from async_history._core.encryption.aes import KEY_BYTES, aes_gcm, invalid_tag
from async_history._core.encryption.key_service import CheckedService, KeyService
from async_history._core.records.values import check_name
from async_history._core.validation import check_file_name, shown
from async_history.errors import InvalidInput, KeyMissing, StorageUnreachable

NONCE_BYTES: Final = 12
"""Random for each text (NIST SP 800-38D, 8.2.2), so a key is used at most 2^32 times."""
ENVIRONMENT: Final = "ASYNC_HISTORY_KEYS"


class KeyRing:
    """Master keys by name. The first is the current one; older ones still unwrap keys.

        KeyRing({"2026": new_key, "2025": old_key})

    A master key wraps a key of the store, which wraps the store's data keys. So a `KeyService` is
    called a few times when a store is opened, and not again. `repr` shows only names, and a ring
    cannot be pickled.

    Args:
        keys: each master key by name, as 32 random bytes or as a `KeyService`. Names are not
            secret: the store has them.

    Raises:
        InvalidInput: there is no key, a name has a space or `=`, a key has another type or length,
            or the extra `crypto` is not installed.
    """

    def __init__(self, keys: Mapping[str, bytes | KeyService]) -> None:
        given: Any = keys
        if not isinstance(given, Mapping) or not given:
            raise InvalidInput("a KeyRing needs a mapping with at least one master key by its name")
        for name in given:
            if "=" in check_name("the name of a master key", name) or len(name.split()) != 1:
                raise InvalidInput(
                    f"the name of a master key must be text without spaces and =, not {shown(name)}"
                )
        self._keys: Final = {name: _checked(name, key) for name, key in keys.items()}
        self.current: Final = next(iter(self._keys))
        """The name of the master key that wraps new keys."""

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> "KeyRing":
        """Read a ring from a file with a line for each master key: `name=` and base64 of 32 bytes.

        The first line has the current key. A line that begins with # is a comment. The call blocks
        while it reads the file.

        Args:
            path: the file.

        Raises:
            InvalidInput: the file cannot be read, or a line has another form. No key is shown.
        """
        name = check_file_name("path", path)
        try:
            text = Path(name).read_text(encoding="utf-8-sig")
        except OSError as error:
            raise InvalidInput(f"the keys can't be read from {name}: {error}") from error
        except UnicodeDecodeError:  # it has the bytes
            raise InvalidInput(f"the keys can't be read from {name}: not text in UTF-8") from None
        lines = [line.strip() for line in text.splitlines()]
        return cls(_parsed([line for line in lines if not line.startswith("#")], name))

    @classmethod
    def from_environment(cls, variable: str = ENVIRONMENT) -> "KeyRing":
        """Read a ring from an environment variable: as in a file, separated by spaces or lines.

        Args:
            variable: the name of the variable.

        Raises:
            InvalidInput: the variable is not set, or has another form. No key is shown.
        """
        if not os.environ.get(variable, "").strip():
            raise InvalidInput(f"the environment variable {variable} has no master key")
        return cls(_parsed(os.environ[variable].split(), f"the variable {variable}"))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its master keys, the current one first."""
        return tuple(self._keys)

    def __repr__(self) -> str:
        return f"<KeyRing {', '.join(map(repr, self._keys))}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a KeyRing is not pickled: its keys would be in the pickle")

    async def wrap(self, key: bytes, key_id: str) -> str:
        """Return a store's key wrapped by the current master key, as base64 text.

        Raises:
            StorageUnreachable: the service of the master key failed.
        """
        master = self._keys[self.current]
        if isinstance(master, bytes):
            return wrapped(master, key, place_of_key(key_id))
        return base64.b64encode(await master.wrap(key)).decode()

    async def unwrap(self, text: str, key_id: str, name: str) -> bytes:
        """Return the key that `wrap` encrypted with the master key of this name.

        Raises:
            KeyMissing: the ring has no key, or another key, of that name.
            StorageUnreachable: the service of the master key failed.
        """
        if name not in self._keys:
            raise KeyMissing(name, f"the master key {name!r} is not in the key ring; add it")
        master = self._keys[name]
        if isinstance(master, bytes):
            key = unwrapped(master, text, place_of_key(key_id))
            if key is None:
                raise KeyMissing(
                    name, f"the master key {name!r} of the key ring is not the one that was used"
                )
            return key
        try:
            stored = base64.b64decode(text)
        except ValueError as error:
            failed = f"master key {name!r} did not unwrap a key"
            raise StorageUnreachable(f"the service of {failed}: {error}") from error
        return await master.unwrap(stored)


def _checked(name: str, key: object) -> bytes | CheckedService:
    if isinstance(key, bytes | bytearray):
        if len(key) != KEY_BYTES:
            raise InvalidInput(f"master key {name!r} must have {KEY_BYTES} bytes, not {len(key)}")
        aes_gcm(bytes(key))
        return bytes(key)
    if callable(getattr(key, "wrap", None)) and callable(getattr(key, "unwrap", None)):
        aes_gcm(bytes(KEY_BYTES))
        service: KeyService = key  # type: ignore[assignment]
        return CheckedService(name, service)
    raise InvalidInput(
        f"master key {name!r} must be bytes, or an object with wrap and unwrap, not "
        f"{type(key).__name__}"
    )


def _parsed(lines: list[str], where: str) -> dict[str, bytes]:
    keys: dict[str, bytes] = {}
    for number, line in enumerate(filter(None, lines), 1):
        name, _, text = line.partition("=")
        try:
            key = base64.b64decode(text, validate=True)
        except binascii.Error:
            key = b""
        if not name or len(key) != KEY_BYTES:
            raise InvalidInput(
                f"entry {number} of {where} must be a name, = and base64 of {KEY_BYTES} bytes "
                "(openssl rand -base64 32)"
            )
        if name in keys:
            raise InvalidInput(f"entry {number} of {where} has the name of another: {name!r}")
        keys[name] = key
    return keys


def wrapped(by: bytes, key: bytes, place: bytes) -> str:
    """Return a key encrypted under another key, as base64 text.

    Args:
        place: authenticated with it: what names the key.
    """
    nonce = os.urandom(NONCE_BYTES)
    return base64.b64encode(nonce + aes_gcm(by).encrypt(nonce, key, place)).decode()


def unwrapped(by: bytes, text: str, place: bytes) -> bytes | None:
    """Return the key that `wrapped` encrypted; None if the text belongs to another key or place,
    or is damaged.
    """
    try:
        stored = binascii.a2b_base64(text, strict_mode=True)
        key: bytes = aes_gcm(by).decrypt(stored[:NONCE_BYTES], stored[NONCE_BYTES:], place)
    except (ValueError, invalid_tag()):
        return None
    return key


def place_of_key(key_id: str) -> bytes:
    """Return what is authenticated with a wrapping key."""
    return f"async_history key\0{key_id}".encode()


def check_keys(value: object) -> KeyRing | None:
    """Return `value` if it is a `KeyRing`, or None for no encryption.

    Raises:
        InvalidInput: it is neither. It is not shown.
    """
    if value is None or isinstance(value, KeyRing):
        return value
    raise InvalidInput(f"keys must be a KeyRing or None, not {type(value).__name__}")
