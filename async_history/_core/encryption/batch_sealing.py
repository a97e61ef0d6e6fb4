"""Sealing of a batch's texts on the event loop, for databases with async drivers."""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from threading import Lock
from typing import Any, Final, TypeVar

from async_history._core.concurrency.threads import computed
from async_history._core.concurrency.yielding import in_slices
from async_history._core.encryption.data_keys import DataKeys
from async_history._core.encryption.sealed_records import (
    SealedTexts,
    sealed_fields,
    sealed_values,
    uses_of,
)
from async_history._core.encryption.sealing import DataKey
from async_history._core.records.owners import Owner
from async_history._core.records.records import Fields, HistoryRecord, fields_in_order, made_record
from async_history._core.writing.ahead import ComputedAhead, fields_waiting
from async_history.errors import StorageCorrupt

T = TypeVar("T")
V = TypeVar("V")

_SEALED_HERE: Final = 32
"""Most records sealed on the event loop; a thread seals more."""
_SEALED_AT_ONCE: Final = 8
"""Most records sealed in one iteration of the event loop (a tenth of a millisecond)."""
_MOST_TRIES: Final = 3
"""Most leases of keys for one batch, if the keys in memory are not in the store."""


async def keys_in_store(
    keys: DataKeys,
    owners: Sequence[Owner | None],
    each: int,
    lease: Callable[[Mapping[Owner | None, int]], Awaitable[None]],
    lack: Callable[[Sequence[str]], Awaitable[bool]],
) -> list[DataKey | None]:
    """Return each owner's key, leased for its number of uses and present in the store.

    None if encryption is turned off.

    Args:
        lease: leases keys, in a transaction.
        lack: returns whether the store lacks one of these keys.

    Raises:
        StorageCorrupt: the store does not keep new keys.
    """
    for _ in range(_MOST_TRIES):
        used = await _leased(keys, owners, each, lease)
        if not await lack(keys.needed(used)):
            return used
        keys.forget()
    raise StorageCorrupt(
        "data keys that were just made are not in the store; a trigger, rule or policy of the "
        "table data_keys keeps them out"
    )


async def _leased(
    keys: DataKeys,
    owners: Sequence[Owner | None],
    each: int,
    lease: Callable[[Mapping[Owner | None, int]], Awaitable[None]],
) -> list[DataKey | None]:
    """Return each owner's key, leased; None if encryption is off.

    An erasure, or a transaction that was rolled back, may end a lease while it is made.
    """
    while (used := keys.taken(owners, each)) is None:
        await lease(keys.lacking(uses_of(owners)))
        if keys.is_off:
            return [None] * len(owners)
    return used


async def sealed_records(
    records: Sequence[HistoryRecord], keys: Sequence[DataKey | None], index_key: bytes
) -> list[HistoryRecord]:
    """Return records sealed, each under its key; in clear if its key is None."""
    return await _here_or_on_a_thread(
        partial(_sealed, index_key), list(zip(records, keys, strict=True))
    )


async def _here_or_on_a_thread(
    seal: Callable[[Sequence[T]], Iterable[V]], items: Sequence[T]
) -> list[V]:
    if len(items) <= _SEALED_HERE:
        return await in_slices(seal, items, _SEALED_AT_ONCE)
    return await computed(lambda: list(seal(items)))


class NewTexts:
    """The sealed texts of new records, sealed with their batch or before it.

    Args:
        turn: see `ComputedAhead`.
    """

    def __init__(self, turn: Lock) -> None:
        self._ahead = ComputedAhead[_Sealed](turn)
        self._index_key = b""

    def begin(
        self,
        submissions: Iterable[object],
        key_of: Callable[[Fields], DataKey | None],
        index_key: bytes,
    ) -> None:
        """Begin to seal single records that wait for the next batch, each under its expected key.

        Args:
            key_of: returns the key that a record is likely to get; None if it is not known.
        """
        if self._ahead.has_begun:
            return
        fields = fields_waiting(submissions)
        keys = list(map(key_of, fields))
        if None in keys:
            fields = [one for one, key in zip(fields, keys, strict=True) if key is not None]
            keys = [key for key in keys if key is not None]
        if len(fields) > _SEALED_HERE:
            self._index_key = index_key
            self._ahead.begin(fields, partial(_sealed_under, keys, index_key))

    def drop(self) -> None:
        """Forget what was sealed before its batch."""
        self._ahead.drop()

    async def of(
        self, fields: Sequence[Fields], keys: Sequence[DataKey | None], index_key: bytes
    ) -> SealedTexts:
        """Return the values of a batch's records sealed, each under its key; in clear if its key is
        None."""
        if not fields:
            return SealedTexts((), (), (), (), ())
        is_same_index = index_key == self._index_key
        sealed = await self._ahead.of(fields)
        ids = [None if key is None else key.id for key in keys]
        lacking = [
            at
            for at, (one, key_id) in enumerate(zip(sealed, ids, strict=True))
            if one is None or one[0] != key_id or not is_same_index
        ]
        if lacking:
            new = await _here_or_on_a_thread(
                partial(_sealed_pairs, index_key), [(fields[at], keys[at]) for at in lacking]
            )
            for at, one in zip(lacking, new, strict=True):
                sealed[at] = one
        _, *columns = zip(*sealed, strict=True)
        return SealedTexts(*columns)


_Sealed = tuple[
    str | None, str | None, str | None, str | None, str | None, Mapping[str, Any] | None
]
"""The id of a record's key, None in clear, and the `SealedValues` under it. The garbage collector
does not visit such tuples again, unlike those with other objects."""


def _sealed_under(
    keys: Sequence[DataKey | None], index_key: bytes, fields: Sequence[Fields]
) -> Iterator[_Sealed]:
    for key, values in zip(keys, sealed_values(fields, keys, index_key), strict=True):
        yield None if key is None else key.id, *values


def _sealed_pairs(
    index_key: bytes, pairs: Sequence[tuple[Fields, DataKey | None]]
) -> Iterator[_Sealed]:
    fields, keys = zip(*pairs, strict=True)
    return _sealed_under(keys, index_key, fields)


def _sealed(
    index_key: bytes, pairs: Sequence[tuple[HistoryRecord, DataKey | None]]
) -> Iterator[HistoryRecord]:
    records, keys = zip(*pairs, strict=True)
    stored = sealed_fields(list(map(fields_in_order, records)), keys, index_key)
    return (made_record(*fields) for fields in stored)
