"""A master key in a service, whose answers are checked."""

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from async_history._core.encryption.aes import KEY_BYTES
from async_history.errors import StorageUnreachable

_ANSWER_TIMEOUT_S: Final = 30
"""All writes of a process may wait for an answer."""


class KeyService(Protocol):
    """A master key that never leaves its service: a KMS, an HSM. It must answer within 30 s."""

    async def wrap(self, key: bytes) -> bytes:
        """Return 32 bytes encrypted and authenticated under the master key."""

    async def unwrap(self, wrapped: bytes) -> bytes:
        """Return the key that `wrap` encrypted as `wrapped`."""


class CheckedService:
    """A `KeyService` that checks the answers of another.

    Args:
        name: the name of the master key, for errors.
        service: what is asked.
        answer_timeout_s: seconds that an answer may take.
    """

    def __init__(
        self, name: str, service: KeyService, *, answer_timeout_s: float = _ANSWER_TIMEOUT_S
    ) -> None:
        self._name = name
        self._service = service
        self._answer_timeout_s = answer_timeout_s

    async def wrap(self, key: bytes) -> bytes:
        """Return a wrapped key, which the service can unwrap.

        Raises:
            StorageUnreachable: the service failed.
        """
        failed = f"master key {self._name!r} did not wrap a key"
        wrapped = await self._answer(lambda: self._service.wrap(key), failed)
        if _shows(wrapped, key):
            raise StorageUnreachable(f"the service of {failed}: it returned it in clear")
        # Once it is stored, nothing can be read without it.
        if await self.unwrap(wrapped) != key:
            raise StorageUnreachable(
                f"the service of master key {self._name!r} unwraps another key than it wrapped"
            )
        return wrapped

    async def unwrap(self, wrapped: bytes) -> bytes:
        """Return the key that `wrap` encrypted.

        Raises:
            StorageUnreachable: the service failed.
        """
        failed = f"master key {self._name!r} did not unwrap a key"
        key = await self._answer(lambda: self._service.unwrap(wrapped), failed)
        if len(key) != KEY_BYTES:
            raise StorageUnreachable(
                f"the service of {failed}: it returned {len(key)} bytes instead of {KEY_BYTES}"
            )
        return key

    async def _answer(self, call: Callable[[], Awaitable[object]], failed: str) -> bytes:
        """Return the bytes that the service answers a call with.

        Raises:
            StorageUnreachable: it failed, did not answer in time, or answered with something else.
        """
        try:
            async with asyncio.timeout(self._answer_timeout_s):
                given = await call()
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # A task of the service was cancelled. It is not the writer, which asks for all callers.
            raise StorageUnreachable(f"the service of {failed}: it was cancelled") from error
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise StorageUnreachable(f"the service of {failed}: {reason}") from error
        if not isinstance(given, bytes | bytearray | memoryview):
            raise StorageUnreachable(
                f"the service of {failed}: it returned {type(given).__name__} instead of bytes"
            )
        return bytes(given)


def _shows(wrapped: bytes, key: bytes) -> bool:
    """Return whether bytes have a key in clear: as it is, as base64 or as hexadecimal."""
    texts = (base64.b64encode(key), base64.urlsafe_b64encode(key))
    # The last digit of base64 also depends on what follows, and may be padded.
    is_shown = any(text.rstrip(b"=")[:-1] in wrapped for text in texts)
    return key in wrapped or is_shown or binascii.hexlify(key) in wrapped.lower()
