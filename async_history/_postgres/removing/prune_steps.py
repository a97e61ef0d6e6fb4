"""Pruning in PostgreSQL: what the steps on a server and on a cluster share."""

from collections.abc import Collection
from typing import Final

from async_history._core.ledger import changes
from async_history._core.removing.erase_transaction import RecordRef
from async_history._postgres.schema_steps import RECORDS, SchemaSteps, ref_of
from async_history._postgres.writing.owner_steps import HAS_OWNERS, NEXT_NUMBER, REMOVE_OWNERS

BEFORE: Final = "$1::pg_catalog.text::pg_catalog.timestamptz"
"""An instant as text, because the driver can't encode or decode some near year 1 or 9999."""
_ENDS: Final = "SELECT pg_catalog.min(seq), pg_catalog.max(seq) FROM {schema}.history"
_THERE: Final = f"SELECT seq, id, memory_id FROM {{schema}}.history WHERE {RECORDS}"


class PruneSteps(SchemaSteps):
    """Base of the statements of a pruning step within its transaction.

    Attributes:
        has_removed: whether any record was removed.
    """

    has_removed = False

    async def ends(self) -> tuple[int, int] | None:
        ((first, last),) = await self._fetch(_ENDS)
        return None if first is None else (int(first), int(last))

    async def still_there(self, refs: Collection[RecordRef]) -> set[RecordRef]:
        """Return those of these records that exist."""
        ids, memory_ids = [ref.id for ref in refs], [ref.memory_id for ref in refs]
        rows = await self._fetch(_THERE, *self._named(ids, memory_ids))
        return set(map(ref_of, rows)) & set(refs)

    async def _remove_with(self, ids: Collection[str], memory_ids: Collection[str]) -> None:
        """Remove the owners of memories without records, and the salts of removed records.

        Args:
            ids: of the removed records.
            memory_ids: the memories that may have lost their last record.
        """
        names = list(memory_ids)
        if names and await self._fetch(HAS_OWNERS) and await self._fetch(REMOVE_OWNERS, names):
            await self._fetch(NEXT_NUMBER)
        if ids and self._ledger is not None:
            await changes.prune(self._ledger, list(ids), names)
