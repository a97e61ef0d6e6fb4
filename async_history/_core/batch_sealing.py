"""Sealing of a batch's texts on the event loop, for databases with async drivers."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

from async_history._core.data_keys import DataKeys
from async_history._core.owners import Owner
from async_history._core.records import HistoryRecord, fields_in_order, made_record
from async_history._core.sealed_records import (
    SealedTexts,
    sealed_fields,
    sealed_texts_of,
    uses_of,
)
from async_history._core.sealing import DataKey
from async_history._core.threads import computed
from async_history.errors import StorageCorrupt

_SEALED_HERE: Final = 32
"""Most records sealed on the event loop (a third of a millisecond); a thread seals more."""
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
        used = keys.taken(owners, each)
        if used is None:
            await lease(keys.lacking(uses_of(owners)))
            used = [keys.use(owner, each) for owner in owners]
        if not await lack(ids_of_keys(used)):
            return used
        keys.forget()
    raise StorageCorrupt(
        "data keys that were just made are not in the store; a trigger, rule or policy of the "
        "table data_keys keeps them out"
    )


def ids_of_keys(keys: Iterable[DataKey | None]) -> list[str]:
    """Return the ids of keys, each once."""
    return list({key.id: None for key in keys if key is not None})


async def sealed_records(
    records: Sequence[HistoryRecord], keys: Sequence[DataKey | None], index_key: bytes
) -> list[HistoryRecord]:
    """Return records sealed, each under its key; in clear if its key is None."""
    seal = partial(_sealed, records, keys, index_key)
    return seal() if len(records) <= _SEALED_HERE else await computed(seal)


async def sealed_texts(
    records: Sequence[HistoryRecord], keys: Sequence[DataKey | None], index_key: bytes
) -> SealedTexts:
    """Return the values of `sealed_records` as lists of texts."""
    seal = partial(sealed_texts_of, records, keys, index_key)
    return seal() if len(records) <= _SEALED_HERE else await computed(seal)


def _sealed(
    records: Sequence[HistoryRecord], keys: Sequence[DataKey | None], index_key: bytes
) -> list[HistoryRecord]:
    stored = sealed_fields(map(fields_in_order, records), keys, index_key)
    return [made_record(*fields) for fields in stored]
