"""The keys of an open store: reading them, keeping them current, and rotating them."""

import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

from async_history._core.encryption.data_keys import DataKeys, KeysChanged
from async_history._core.encryption.encrypting import finish_turning_on
from async_history._core.encryption.key_statements import (
    INDEX,
    MARKS,
    TURNING_ON,
    KeyReads,
    KeyTable,
    StoredKey,
    WrappingKey,
    no_owner,
)
from async_history._core.encryption.sealing import Keys
from async_history._core.encryption.stored_texts import TextStore
from async_history._core.operations.progress import Progress
from async_history.errors import (
    KeyMissing,
    StorageCorrupt,
    StorageDenied,
    StorageLocked,
    StorageReadOnly,
)

T = TypeVar("T")

_STEP: Final = 300
"""Data keys that one transaction rewraps."""
_MOST_REFRESHES: Final = 5
"""Times that one call rereads the wrapping keys because others replaced them."""

OPEN_WITH_KEYS: Final = (
    "is encrypted: open it with keys=KeyRing(…); on the command line name a file of keys by "
    "--keys-file"
)
"""The message of `KeyMissing` for a store that is opened without keys."""
KEYS_DESTROYED: Final = (
    "data keys of what was erased were destroyed: copies of its encrypted texts that no erasure "
    "reaches are unreadable without them. A backup of before has the keys still, wrapped by a "
    "master key: rotate_keys() under a new one, and destroy the old one, to end those too"
)
"""What remains after an erasure that destroyed data keys."""

InTransaction = Callable[[Callable[[KeyTable], Coroutine[Any, Any, Any]]], Awaitable[Any]]
"""A function that does work in one transaction, queued with the writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRotation:
    """The report of a rotation of keys."""

    master_key: str
    """The id of the master key that now wraps all keys of the store."""
    data_keys: int
    """The number of rewrapped data keys."""


class StoreEncryption:
    """The keys of an open store, and the transactions in which they change.

    Args:
        keys: the keys of the store.
        read: reads the key tables outside a transaction.
        in_transaction: does work in one transaction, queued with the writes, within
            `with_current_keys`.
        texts: the texts of the store, to rewrite them in place.
    """

    def __init__(
        self, keys: DataKeys, read: KeyReads, in_transaction: InTransaction, texts: TextStore
    ) -> None:
        self.keys: Final = keys
        self.texts: Final = texts
        self._read = read
        self._in_transaction = in_transaction

    async def open(self) -> None:
        """Read the store's wrapping keys and the key of its tokens; create them if missing.

        If encryption is being turned on, complete that. It is left to later openings if the role
        may not write, or a transaction stays open that may write in clear.

        Raises:
            KeyMissing: the ring lacks the master key that wraps them.
            StorageUnreachable: the service of a master key failed.
        """
        stored = await self._read.wrapping()
        if not stored:
            new, key = await self.keys.new_wrapping_key()

            async def begin(table: KeyTable) -> list[WrappingKey]:
                there = await table.wrapping()
                if not there:
                    await table.remove(MARKS)  # the store may have been decrypted before
                    await table.begin()
                    await table.add_wrapping(new)
                    index = self.keys.new_stored_key(no_owner(INDEX), 0, (new.id, key))
                    await table.add([index, self.keys.new_mark(TURNING_ON, (new.id, key))])
                return there or [new]

            stored = await self._in_transaction(begin)
        await self.keys.refresh(stored)
        await self.with_current_keys(self._open_index_key)
        if await self._read.keys([TURNING_ON]):
            with contextlib.suppress(StorageDenied, StorageReadOnly, StorageLocked):
                await finish_turning_on(self.texts, self.keys)

    async def _open_index_key(self) -> None:
        index = await self._read.of_owners([INDEX])
        if not index:  # a decryption may have finished meanwhile
            await self.keys.refresh(await self._read.wrapping())
        self.keys.take_index_key(index)

    async def refresh(self) -> None:
        """Read the wrapping keys again.

        Raises:
            KeyMissing, StorageUnreachable: as `open`.
        """
        await self.keys.refresh(await self._read.wrapping())
        index = await self._read.of_owners([INDEX])
        if index:
            with contextlib.suppress(KeysChanged, KeyMissing):  # the key stays the same
                self.keys.take_index_key(index)

    async def load(self, key_ids: Iterable[str]) -> Keys:
        """Return those data keys that the store has.

        Raises:
            KeyMissing: the ring lacks the master key of one of them.
            StorageError: the key tables can't be read, or are damaged.
        """
        wanted = set(key_ids)
        if not wanted:
            return Keys({})
        return await self.with_current_keys(lambda: self.keys.load(wanted, self._read))

    async def token_key(self) -> bytes | None:
        """Return the key of the tokens; None if not every cause can be found by its tokens.

        Raises:
            KeyMissing: as `open`.
        """
        if not await self._read.is_whole():
            return None
        await self.with_current_keys(self._open_index_key)  # it may have been turned off and on
        return self.keys.index_key

    async def with_current_keys(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do work; repeat it if another process replaced the wrapping keys meanwhile.

        Raises:
            KeyMissing: the ring lacks the new master key.
            StorageCorrupt: the wrapping key of a data key is missing.
        """
        for _ in range(_MOST_REFRESHES):
            try:
                return await work()
            except KeysChanged:
                await self.refresh()
        raise StorageCorrupt(
            "data keys name a wrapping key that the store does not have; restore the tables of "
            "keys from a backup"
        )

    async def rotate(self, on_progress: Progress | None) -> KeyRotation:
        """Rewrap all keys of the store by a new wrapping key, under the current master key.

        Raises:
            KeyMissing: some data keys need a master key that the ring lacks. All others are done.
        """
        await self.refresh()
        new, key = await self.keys.new_wrapping_key()

        async def begin(table: KeyTable) -> list[WrappingKey]:
            await table.add_wrapping(new)
            for index in await table.of_owners([INDEX]):
                await self._rewrap(index, new.id, key, table)
            return await table.wrapping()

        await self.keys.refresh(await self._in_transaction(begin))
        done, missing = 0, None
        while True:
            total = done + await self._read.count_wrapped_by_others(new.id)
            steps, missing = await self._rewrap_all(new, key, done, total, on_progress)
            done += steps
            if steps < _STEP or missing is not None:
                break
        if missing is not None:
            raise missing
        done += await self._end_rotation(new, key)
        await self.refresh()
        return KeyRotation(master_key=self.keys.ring.current, data_keys=done)

    async def _end_rotation(self, new: WrappingKey, key: bytes) -> int:
        """Remove the older wrapping keys; return how many data keys others made by them meanwhile.

        The transaction that removes a wrapping key also rewraps those data keys.
        """

        async def end(table: KeyTable) -> int:
            await table.add_wrapping(new)  # another rotation may have removed it
            found = await table.wrapped_by_others(new.id, "", _STEP)
            for stored in found:
                await self._rewrap(stored, new.id, key, table)
            if len(found) < _STEP:
                await table.remove_wrapping(new.id)
            return len(found)

        done = 0
        while True:
            rewrapped: int = await self._in_transaction(end)
            done += rewrapped
            if rewrapped < _STEP:
                return done

    async def _rewrap_all(
        self, new: WrappingKey, key: bytes, done: int, total: int, on_progress: Progress | None
    ) -> tuple[int, KeyMissing | None]:
        after, count = "", 0
        missing: KeyMissing | None = None

        async def step(table: KeyTable) -> tuple[int, str, KeyMissing | None]:
            await table.add_wrapping(new)  # another rotation may have removed it
            found = await table.wrapped_by_others(new.id, after, _STEP)
            lacking, rewrapped = None, 0
            for stored in found:
                try:
                    await self._rewrap(stored, new.id, key, table)
                    rewrapped += 1
                except KeyMissing as error:
                    lacking = error
            return rewrapped, found[-1].id if found else "", lacking

        while True:
            rewrapped, after, lacking = await self._in_transaction(step)
            count += rewrapped
            missing = missing or lacking
            if not after:
                return count, missing
            if on_progress is not None:
                on_progress(done + count, total)

    async def _rewrap(self, stored: StoredKey, new_id: str, key: bytes, table: KeyTable) -> None:
        await table.rewrap(stored.id, new_id, self.keys.rewrapped(stored, key))


@runtime_checkable
class EncryptedStore(Protocol):
    """An open store that may be encrypted."""

    @property
    def encryption(self) -> StoreEncryption | None:
        """Its keys; None if it was opened without keys."""
