"""The ledger of an open history: `history.ledger`."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

from async_history._core.ledger.checkpoint import Checkpoint, LedgerKey
from async_history._core.ledger.leaves import RECORD
from async_history._core.ledger.ledger_store import LedgerStore
from async_history._core.ledger.proof import GrowthProof, RecordProof, record_of_values
from async_history._core.ledger.report import LedgerReport
from async_history._core.ledger.tables import LedgerTables
from async_history._core.ledger.tree import growth_ranges, inclusion_ranges
from async_history._core.ledger.verify import size_when_placed, verify
from async_history._core.operations.operation_log import OperationLog, logged
from async_history._core.operations.operations import at_its_end, new_operation
from async_history._core.operations.progress import Progress
from async_history._core.records.values import check_name
from async_history._core.validation import check_function, check_seconds
from async_history._core.wording import counted
from async_history.errors import InvalidInput, NotProven


class Ledger:
    """The proof of what a history recorded, and of later changes to it. See `history.ledger`.

    Args:
        require: returns the open store's ledger and its log of operations; raises if there is no
            ledger.
    """

    def __init__(self, require: Callable[[], tuple[LedgerStore, OperationLog]]) -> None:
        self._require = require

    async def checkpoint(self, key: LedgerKey) -> Checkpoint:
        """Return a signed statement of the ledger as it is now. Keep it outside the store.

        It covers all that was acknowledged before the call. It is logged as an operation.

        Args:
            key: the key that signs it. Its name becomes the checkpoint's origin.

        Raises:
            InvalidInput: `key` is not a `LedgerKey`, or `cryptography` is not installed.
            StorageError: the store can't be written or read.
        """
        ledger, log = self._require()
        return await _sign(_checked(key), ledger, log, await size_when_placed(ledger))

    async def checkpoints(self, key: LedgerKey, *, every_s: float) -> AsyncIterator[Checkpoint]:
        """Yield a checkpoint now, and after each pause if the ledger has grown.

        Args:
            key: as in `checkpoint`.
            every_s: the pause in seconds.

        Raises:
            InvalidInput, StorageError: as `checkpoint`.
            HistoryClosed: the manager was closed.
        """
        _checked(key)
        check_seconds("every_s", every_s, may_be_zero=False)
        known = -1
        while True:
            ledger, log = self._require()
            size = await size_when_placed(ledger)
            if size != known:
                yield await _sign(key, ledger, log, size)
                known = size + _LEAVES_OF_CHECKPOINT
            await asyncio.sleep(every_s)

    async def verify(
        self, *checkpoints: Checkpoint, on_progress: Progress | None = None
    ) -> LedgerReport:
        """Compare every record with its leaf, and every leaf with the tree; report differences.

        Anybody who can rewrite the store's tables can also rewrite the ledger. Only checkpoints
        that were kept elsewhere detect that. Concurrent writes are not faults. In an encrypted
        history the records are decrypted, because leaves commit to texts in clear.

        The verification is logged as an operation.

        Args:
            checkpoints: the checkpoints that were kept. Their signatures are not checked here; see
                `Checkpoint.require_signed`.
            on_progress: called with the leaves verified so far and the total.

        Raises:
            InvalidInput: one of them is not a `Checkpoint`.
            KeyMissing: records are encrypted under a key that is missing.
            StorageError: the store can't be written or read.
        """
        ledger, log = self._require()
        for one in checkpoints:
            if not isinstance(one, Checkpoint):
                raise InvalidInput(f"a checkpoint is a Checkpoint, not a {type(one).__name__}")
        check_function("on_progress", on_progress)
        operation = new_operation("verify", {"checkpoints": [one.size for one in checkpoints]})
        async with logged(log, operation) as tally:
            report = await verify(ledger, checkpoints, on_progress)
            tally.records = report.records
        return report

    async def prove(self, record_id: str, checkpoint: Checkpoint) -> RecordProof:
        """Return a proof that a record is in the ledger of a checkpoint.

        For an erased record it proves only that there is a leaf at its place.

        Args:
            record_id: the record.
            checkpoint: a checkpoint made after the record was acknowledged.

        Raises:
            InvalidInput: no record with this id has a leaf, or its leaf is not in the checkpoint.
            NotProven: the record or the ledger has changed since the checkpoint: `verify` it.
            KeyMissing: the history was encrypted since it was opened.
            StorageError: the store can't be read.
        """
        ledger, _ = self._require()
        check_name("record_id", record_id)

        async def work(tables: LedgerTables) -> RecordProof:
            found = await tables.leaves_of(RECORD, [record_id])
            if not found:
                raise InvalidInput(
                    f"the ledger has no leaf of {record_id} up to its last checkpoint: the record "
                    "was pruned, is not known, or was recorded later or without the ledger"
                )
            covered = [place for place in found if place < checkpoint.size]
            if not covered:
                raise InvalidInput(
                    f"the record {record_id} was recorded after this checkpoint: make another"
                )
            place = covered[-1]
            leaf = found[place]
            stored = (await tables.records([record_id])).get(record_id)
            if stored is None and not leaf.is_erased:
                raise NotProven(
                    f"the record {record_id} is gone, and was not erased: verify the history"
                )
            shown = None if leaf.is_erased or stored is None else stored.values
            path = await _roots(tables, inclusion_ranges(place, checkpoint.size), checkpoint)
            return RecordProof(
                checkpoint=checkpoint,
                place=place,
                path=tuple(path),
                commitment=leaf.commitment,
                kind=leaf.kind,
                salt=None if leaf.is_erased else leaf.salt(tables.key),
                record=None if shown is None else record_of_values(shown),
            )

        proof = await ledger.read(work)
        proof.require_proven()
        return proof

    async def prove_growth(self, old: Checkpoint, new: Checkpoint) -> GrowthProof:
        """Return a proof that the ledger of a checkpoint has all leaves of an older one.

        Args:
            old: the older checkpoint.
            new: the newer one.

        Raises:
            InvalidInput: `old` has more leaves than `new`.
            NotProven: one of them belongs to another ledger, or the ledger was rewritten.
            StorageError: the store can't be read.
        """
        ledger, _ = self._require()
        if old.size > new.size:
            raise InvalidInput(f"old has more leaves ({old.size:,}) than new ({new.size:,})")

        async def work(tables: LedgerTables) -> GrowthProof:
            ranges = growth_ranges(old.size, new.size) if old.size else []
            path = await _roots(tables, ranges, new)
            return GrowthProof(old=old, new=new, path=tuple(path))

        proof = await ledger.read(work)
        proof.require_proven()
        return proof


_LEAVES_OF_CHECKPOINT: Final = 2
"""Leaves that a checkpoint adds to the ledger: its beginning and its outcome."""


def _checked(key: LedgerKey) -> LedgerKey:
    if not isinstance(key, LedgerKey):
        raise InvalidInput(f"key must be a LedgerKey, not {type(key).__name__}")
    return key


async def _sign(key: LedgerKey, ledger: LedgerStore, log: OperationLog, size: int) -> Checkpoint:
    """Return a checkpoint of the first leaves of a ledger, and log it before."""
    # The tiles of a size do not change when more leaves follow.
    (root,) = await ledger.read(lambda tables: tables.roots([(0, size)]))
    checkpoint = Checkpoint.make(key, size, root)
    operation = new_operation("checkpoint", {"origin": key.name, "size": size})
    await log.begin(at_its_end(operation, 0, 0))
    return checkpoint


async def _roots(
    tables: LedgerTables, ranges: list[tuple[int, int]], checkpoint: Checkpoint
) -> list[bytes]:
    """Return the roots of ranges of a checkpoint's tree.

    Raises:
        NotProven: the tree is smaller than the checkpoint.
    """
    size = await tables.size()
    if size < checkpoint.size:
        raise NotProven(
            f"the checkpoint has {counted(checkpoint.size, 'leaf', 'leaves')}, and this ledger "
            f"only {size:,}"
        )
    return await tables.roots(ranges)
