"""The keys of an open store: for sealing texts and for opening stored ones.

A data key is used for sealing under a lease. A lease counts a number of uses in the store before
the first use, so that all processes together stay below 2^32 and a new key is made in time. Two
processes may both make a key for one owner. A text names its key, so both are valid.

A writer also checks, in its transaction, that its leased keys exist and are not retired. Once
encryption is turned off (`OFF`), a lease gives no key, and records stay in clear. Then it checks
that the mark still exists.

A lease ends when any name was erased in the store (`noted`), because the owner's keys may be among
the destroyed ones. A writer checks in its transaction that nothing was noted since.
"""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from secrets import token_hex
from typing import Final, NamedTuple

from async_history._core.encryption.aes import KEY_BYTES
from async_history._core.encryption.key_ring import (
    KeyRing,
    place_of_key,
    unwrapped,
    wrapped,
)
from async_history._core.encryption.key_statements import (
    MARKS,
    MOST_USES,
    OFF,
    KeyReads,
    KeyTable,
    OwnerDigests,
    StoredKey,
    WrappingKey,
    no_owner,
    owner_digest,
    owner_digests,
)
from async_history._core.encryption.sealing import KEY_ID, DataKey, Keys
from async_history._core.records.owners import Owner
from async_history.errors import KeyMissing, StorageCorrupt

LEASE: Final = 1 << 16
"""Uses counted at once: one more write per 65,536 texts of an owner."""
_MOST_KEPT: Final = 32_768
"""Data keys kept in memory: some tens of megabytes."""


class KeysChanged(Exception):
    """The store's wrapping keys have changed: call `refresh`."""


class Mark(NamedTuple):
    """One of `MARKS`, and the bytes of its key, which tell it from an earlier one."""

    id: str
    key: bytes

    def __repr__(self) -> str:
        """Return its id alone: drivers log the arguments of calls."""
        return f"Mark({self.id!r})"


@dataclass(slots=True)
class _Lease:
    key: DataKey
    left: int


class DataKeys:
    """The keys of one open store.

    Attributes:
        ring: the master keys.
        index_key: the key of the tokens in the index of causes.
        is_off: whether encryption is turned off, as of the last lease.
    """

    index_key: bytes
    is_off: bool = False

    def __init__(self, ring: KeyRing) -> None:
        self.ring: Final = ring
        self._current = ""
        self._wrapping: dict[str, bytes] = {}
        self._missing: dict[str, KeyMissing] = {}
        self._keys: dict[str, DataKey] = {}
        self._leases: dict[Owner | None, _Lease] = {}
        self._noted = 0

    # Wrapping keys, on the event loop

    async def new_wrapping_key(self) -> tuple[WrappingKey, bytes]:
        """Return a new wrapping key, wrapped by the ring's current master key, and its bytes.

        Raises:
            StorageUnreachable: the service of the master key failed.
        """
        key, key_id = os.urandom(KEY_BYTES), token_hex(KEY_ID // 2)
        new = WrappingKey(key_id, self.ring.current, await self.ring.wrap(key, key_id))
        self._wrapping[key_id] = key
        return new, key

    async def refresh(self, stored: Collection[WrappingKey]) -> None:
        """Unwrap the store's wrapping keys. The last one that can be unwrapped wraps new data keys.

        Raises:
            KeyMissing: the ring has no master key of them, or there are none.
            StorageUnreachable: the service of a master key failed.
        """
        if not stored:
            raise KeyMissing(
                "",
                "the history has no keys any more: it was decrypted, or its tables of keys were "
                "emptied. Open it again: without keys, or with keys to turn encryption on",
            )
        opened: dict[str, bytes] = {}
        missing: dict[str, KeyMissing] = {}
        current = ""
        for key_id, master, text in stored:
            try:
                opened[key_id] = self._wrapping.get(key_id) or await self.ring.unwrap(
                    text, key_id, master
                )
            except KeyMissing as error:
                missing[key_id] = error
                continue
            if not current or master == self.ring.current:
                current = key_id
        if not opened:
            raise next(iter(missing.values()))
        self._wrapping, self._missing, self._current = opened, missing, current

    @property
    def current(self) -> str:
        """The id of the wrapping key that wraps new data keys."""
        return self._current

    def new_mark(self, mark_id: str, by: tuple[str, bytes] | None = None) -> StoredKey:
        """Return the key whose presence is a mark."""
        return self._new_key(no_owner(mark_id), 0, by, mark_id)[0]

    def take_index_key(self, stored: Collection[StoredKey]) -> None:
        """Unwrap the key of the tokens.

        Raises:
            KeyMissing, KeysChanged, StorageCorrupt: as `unwrapped`.
        """
        if not stored:
            raise StorageCorrupt(
                "the key that records are found by is gone; restore it from a backup"
            )
        self.index_key = self.unwrapped(next(iter(stored)))

    def unwrapped(self, key: StoredKey) -> bytes:
        """Return the bytes of a data key.

        Raises:
            KeyMissing: the ring lacks the master key.
            KeysChanged: it is wrapped by an unknown key.
            StorageCorrupt: it is damaged, or was moved to another owner.
        """
        if key.wrapping_key in self._missing:
            raise self._missing[key.wrapping_key]
        if key.wrapping_key not in self._wrapping:
            raise KeysChanged
        by = self._wrapping[key.wrapping_key]
        # A store from before owners were authenticated has only the id, until its keys are rotated.
        found = unwrapped(by, key.wrapped, key.place) or unwrapped(
            by, key.wrapped, place_of_key(key.id)
        )
        if found is None:
            raise StorageCorrupt(
                f"data key {key.id} is damaged, or its row was changed; restore the table of data "
                "keys from a backup"
            )
        return found

    def rewrapped(self, key: StoredKey, by: bytes) -> str:
        """Return a data key wrapped by another wrapping key.

        Raises:
            KeyMissing, KeysChanged, StorageCorrupt: as `unwrapped`.
        """
        return wrapped(by, self.unwrapped(key), key.place)

    def new_stored_key(
        self,
        owner: OwnerDigests,
        uses: int,
        by: tuple[str, bytes] | None = None,
    ) -> StoredKey:
        """Return a new data key of an owner."""
        return self._new_key(owner, uses, by)[0]

    def _new_key(
        self,
        owner: OwnerDigests,
        uses: int,
        by: tuple[str, bytes] | None = None,
        key_id: str | None = None,
    ) -> tuple[StoredKey, bytes]:
        """Return a new data key of an owner, stored and in clear."""
        wrapping_id, wrapping = by or (self._current, self._wrapping[self._current])
        key = os.urandom(KEY_BYTES)
        stored = StoredKey(key_id or token_hex(KEY_ID // 2), *owner, wrapping_id, "", uses)
        return stored._replace(wrapped=wrapped(wrapping, key, stored.place)), key

    # Opening

    async def load(self, key_ids: Collection[str], table: KeyReads) -> Keys:
        """Return those data keys that the store has.

        Raises:
            KeyMissing, KeysChanged, StorageCorrupt: as `unwrapped`.
        """
        known = self._keys
        found = {key_id: key for key_id in key_ids if (key := known.get(key_id)) is not None}
        is_partial = False
        if len(found) < len(key_ids):
            for stored in await table.keys(sorted({*key_ids, *MARKS} - found.keys())):
                opened = self.unwrapped(stored)
                if stored.id in MARKS:
                    is_partial = True
                else:
                    found[stored.id] = self._keep(stored.id, opened)
        return Keys(found, is_partial)

    def _keep(self, key_id: str, key: bytes) -> DataKey:
        if len(self._keys) >= _MOST_KEPT:
            self._keys = {}
        kept = self._keys[key_id] = DataKey(key_id, key)
        return kept

    def forget(self) -> None:
        """Forget all data keys: some were destroyed in the store."""
        self._keys = {}
        self._leases = {}

    # Sealing, by the writer

    def end_leases(self) -> None:
        """End all leases: their counts may have been rolled back."""
        self._leases.clear()

    def apart(self) -> "DataKeys":
        """Return the same keys with separate leases, which end with one transaction."""
        other = copy(self)
        other.forget()
        return other

    def hold_while(self, noted: int) -> None:
        """Forget the keys if something was noted as erased since they were read."""
        if noted != self._noted:
            self.forget()
            self._noted = noted

    def lacking(self, uses: Mapping[Owner | None, int]) -> dict[Owner | None, int]:
        """Return the owners whose lease does not cover these uses."""
        leases = self._leases
        return {
            owner: count
            for owner, count in uses.items()
            if (lease := leases.get(owner)) is None or lease.left < count
        }

    async def lease(self, uses: Mapping[Owner | None, int], table: KeyTable) -> None:
        """Count uses of owners' data keys in the store; make missing keys.

        Raises:
            KeysChanged: the wrapping key was replaced. Nothing was counted for good.
            StorageCorrupt: the mark that encryption is off was not made with the store's keys.
        """
        await self.find_mark(table)
        if self.is_off:
            self._leases.clear()
            return
        await self.require_current(table)
        owners = {owner_digest(owner): owner for owner in uses}
        usable: dict[str, StoredKey] = {}
        for stored in await table.of_owners(list(owners)):
            if (
                stored.wrapping_key in self._wrapping
                and stored.uses + LEASE + uses[owners[stored.owner]] < MOST_USES
            ):
                usable[stored.owner] = stored
        counts = {digest: max(LEASE, uses[owner]) for digest, owner in owners.items()}
        new = {
            digest: self._new_key(owner_digests(owner), counts[digest])
            for digest, owner in owners.items()
            if digest not in usable
        }
        await table.add([stored for stored, _ in new.values()])
        await table.reserve([(stored.id, counts[digest]) for digest, stored in usable.items()])
        # Unwrapped even if it is in memory: its row may have been moved to this owner since.
        found = {digest: (stored, self.unwrapped(stored)) for digest, stored in usable.items()}
        for digest, (stored, key) in (found | new).items():
            self._leases[owners[digest]] = _Lease(self._keep(stored.id, key), counts[digest])

    def expected(self, owner: Owner | None) -> DataKey | None:
        """Return the key that an owner's next text is likely to be sealed under, if it is known."""
        lease = self._leases.get(owner)
        return None if lease is None or self.is_off else lease.key

    def leased(self, owners: Iterable[Owner | None]) -> list[str]:
        """Return the ids of owners' sealing keys; none if encryption is off."""
        if self.is_off:
            return []
        return list({self._leases[owner].key.id: None for owner in owners})

    async def find_mark(self, table: KeyReads) -> Mark | None:
        """Return the store's mark, if it has one.

        Raises:
            KeysChanged, StorageCorrupt: as `unwrapped`.
        """
        stored = await table.keys(MARKS)
        marks = [Mark(mark.id, self.unwrapped(mark)) for mark in stored]
        self.is_off = any(mark.id == OFF for mark in marks)
        return marks[0] if marks else None

    async def add_mark(self, mark_id: str, table: KeyTable) -> Mark:
        """Add a mark."""
        stored = self.new_mark(mark_id)
        await table.add([stored])
        self.is_off = mark_id == OFF
        return Mark(mark_id, self.unwrapped(stored))

    async def require_current(self, table: KeyReads) -> None:
        """Check that new keys can be made.

        Raises:
            KeysChanged: the wrapping key was replaced.
        """
        if self._current not in {key.id for key in await table.wrapping()}:
            raise KeysChanged

    def taken(self, owners: Sequence[Owner | None], each: int) -> list[DataKey | None] | None:
        """Return each owner's sealing key, and use `each` uses of its lease.

        None if a lease is not sufficient, or encryption is off: see `lacking`. Uses already taken
        for earlier owners are lost.
        """
        if self.is_off:
            return None
        leases = self._leases
        found: list[DataKey | None] = []
        for owner in owners:
            lease = leases.get(owner)
            if lease is None or lease.left < each:
                return None
            lease.left -= each
            found.append(lease.key)
        return found

    def needed(self, used: Iterable[DataKey | None]) -> list[str]:
        """Return the ids of keys that must exist, and not be retired, where texts are written.

        Args:
            used: the keys that the texts were sealed under; None in clear.
        """
        if self.is_off:
            return [OFF]
        return list({key.id: None for key in used if key is not None})

    def use(self, owner: Owner | None, uses: int) -> DataKey | None:
        """Return an owner's data key, for some uses of its lease; None if encryption is off."""
        if self.is_off:
            return None
        lease = self._leases[owner]
        lease.left -= uses
        return lease.key
