"""The history that a command uses by default, and how to open one without changing it."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Final, Unpack

from async_history import (
    HistoryManager,
    HistoryOptions,
    KeyMissing,
    RecordSource,
    StorageMissing,
    open_history,
)
from async_history._core.encryption.key_ring import ENVIRONMENT
from async_history._core.encryption.store_encryption import EncryptedStore
from async_history.encryption import KeyRing

URL_VARIABLE: Final = "ASYNC_HISTORY_URL"
KEYS_FILE_VARIABLE: Final = "ASYNC_HISTORY_KEYS_FILE"
_FILE: Final = "history.db"


def to_write(url: str | None) -> str:
    """Return the URL for a command that writes.

    An empty one is not the default: it comes from a shell's variable that is not set.
    """
    return _FILE if url is None else url


def to_read(url: str | None) -> str:
    """Return the URL for a command that reads; mem0's own file if there is no other."""
    if url is not None or os.path.exists(_FILE):
        return to_write(url)
    mem0_file = _mem0_file()
    return str(mem0_file) if os.path.exists(mem0_file) else _FILE


def _mem0_file() -> Path:
    # mem0ai 2.2, configs/base.py
    return Path(os.environ.get("MEM0_DIR") or Path.home() / ".mem0") / "history.db"


def is_default(url: str) -> bool:
    """Return whether a command uses this history without `--db`."""
    return url == to_write(os.environ.get(URL_VARIABLE) or None)


_keys_file: ContextVar[str | None] = ContextVar("async_history_keys_file", default=None)
use_keys_file: Final = _keys_file.set
"""Set the file of the master keys for this process."""


def keys() -> KeyRing | None:
    """Return the ring of the file or the environment; None if neither is given.

    Raises:
        InvalidInput: it cannot be read.
    """
    file = _keys_file.get()
    if file is not None:
        return KeyRing.from_file(file)
    return KeyRing.from_environment() if os.environ.get(ENVIRONMENT) else None


def is_encrypted(history: HistoryManager | RecordSource) -> bool:
    """Return whether a command's source or target is a history that is open with keys."""
    store = history.store if isinstance(history, HistoryManager) else None
    return isinstance(store, EncryptedStore) and store.encryption is not None


@asynccontextmanager
async def opened(
    url: str | os.PathLike[str], **options: Unpack[HistoryOptions]
) -> AsyncIterator[HistoryManager]:
    """Open a history, with the master keys if it is encrypted. It does not turn encryption on."""
    async with await _opened(url, options) as history:
        yield history


async def _opened(
    url: str | os.PathLike[str], options: HistoryOptions
) -> AbstractAsyncContextManager[HistoryManager]:
    try:
        return aclosing(await open_history(url, **options))
    except KeyMissing as error:
        ring = await asyncio.to_thread(keys)
        if error.name or ring is None:
            raise
    except StorageMissing as error:
        if options.get("create", True):
            raise
        raise missing(url) from error
    options["keys"] = ring
    return aclosing(await open_history(url, **options))


def missing(url: str | os.PathLike[str]) -> StorageMissing:
    """Return the error of a command that creates nothing if there is no history."""
    return StorageMissing(
        f"no history in {os.fspath(url)}: it does not exist or is empty. Name another with --db"
    )


@asynccontextmanager
async def open_to_read(url: str) -> AsyncIterator[HistoryManager]:
    """Open an existing history without creating or migrating anything."""
    async with opened(url, create=False, migrate=False) as history:
        yield history
