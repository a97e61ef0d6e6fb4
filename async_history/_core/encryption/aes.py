"""AES-GCM of `cryptography` (the extra `crypto`), imported when the first key is made."""

import functools
from typing import TYPE_CHECKING, Final

from async_history.errors import InvalidInput

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES: Final = 32
"""Bytes of each key: AES-256."""


def aes_gcm(key: bytes) -> "AESGCM":
    """Return AES-256-GCM under a key of 32 bytes.

    Raises:
        InvalidInput: the extra is not installed.
    """
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ModuleNotFoundError as error:
        raise InvalidInput(
            "encryption needs the extra: pip install 'async-history[crypto]'"
        ) from error
    return AESGCM(key)


@functools.cache
def invalid_tag() -> type[Exception]:
    """Return the error for data that was changed, or encrypted under another key or place."""
    from cryptography.exceptions import InvalidTag

    return InvalidTag
