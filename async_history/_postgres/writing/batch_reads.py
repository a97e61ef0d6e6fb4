"""The look-ups of a batch's transaction: existing records, latest records, and texts to restore."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from async_history._core.encryption.restored_texts import RestoredTexts
from async_history._core.records.records import HistoryRecord, MemoryState
from async_history._core.writing.additions import ids_to_find
from async_history._core.writing.submissions import AddRecords, RestoreMemory
from async_history._postgres.key_statements import Access
from async_history._postgres.keys import Seal
from async_history._postgres.reading.read import HistoryReader
from async_history._postgres.reading.timeline import states_and_then
from async_history._postgres.rows import NAMES, RECORD_COLUMNS, joined_names, record_from_row
from async_history._postgres.schema import in_schema
from async_history._postgres.transaction import WAIT_FOR_REPLICAS_TOO

_EXISTING: Final = f"""
SELECT {RECORD_COLUMNS} FROM {{schema}}.history WHERE id = ANY($1::pg_catalog.text[])
"""
_LATEST_OF_ONE: Final = f"""
SELECT {RECORD_COLUMNS} FROM {{schema}}.history WHERE memory_id = $1 ORDER BY seq DESC LIMIT 1
"""
"""For a Citus cluster, whose nodes can't join a list with a table row by row."""
_LATEST: Final = f"""
SELECT {RECORD_COLUMNS} FROM pg_catalog.unnest({NAMES}) AS named (name) CROSS JOIN LATERAL (
    SELECT * FROM {{schema}}.history WHERE memory_id = named.name ORDER BY seq DESC LIMIT 1
) AS latest
"""


class BatchReads:
    """The look-ups of a batch, which return records in clear.

    Args:
        schema: the quoted schema.
        seal, keys, is_distributed, is_repeated: as in `BatchSteps`.
    """

    def __init__(
        self,
        connection: Any,
        schema: str,
        seal: Seal,
        keys: Access,
        *,
        is_distributed: bool,
        is_repeated: bool,
    ) -> None:
        self._connection = connection
        self._schema = schema
        self._seal = seal
        self._keys = keys
        self._is_distributed = is_distributed
        self._is_repeated = is_repeated

    async def existing(self, submissions: Sequence[AddRecords]) -> Sequence[HistoryRecord]:
        """Return the stored records that have an id of these submissions."""
        ids = ids_to_find(submissions, is_repeated=self._is_repeated)
        if not ids:
            return ()
        read = partial(self._read, _EXISTING, ids)
        there = await self._seal.opened(read, self._keys)
        if there:
            await self._connection.execute(WAIT_FOR_REPLICAS_TOO)
        return there

    async def latest(self, memory_ids: Sequence[str]) -> Sequence[HistoryRecord]:
        """Return the latest record of each of these memories that has one."""
        if not self._is_distributed:
            read = partial(self._read, _LATEST, *joined_names(memory_ids))
            return await self._seal.opened(read, self._keys)
        return [
            record
            for one in memory_ids
            for record in await self._seal.opened(
                partial(self._read, _LATEST_OF_ONE, one), self._keys
            )
        ]

    async def find_texts(self, restored: Sequence[RestoreMemory]) -> Mapping[str, MemoryState]:
        """Find the texts to restore, and return the states of these memories that are known."""
        if not self._is_distributed:
            return await self._find_texts(restored)
        fetch = self._connection.fetch
        reader = HistoryReader(fetch, self._schema, is_distributed=True, at_once=1)

        async def read(one: RestoreMemory) -> list[HistoryRecord]:
            then = await reader.last_change(one.decided_by, one.to)
            return [] if then is None else [then]

        for one in restored:
            for then in await self._seal.opened(partial(read, one), self._keys):
                one.find_in(then)
        return {}

    async def _find_texts(self, restored: Sequence[RestoreMemory]) -> Mapping[str, MemoryState]:
        """Find the texts and the states of memories by one statement."""
        asked = [(one.decided_by, one.to) for one in restored]
        found = RestoredTexts()

        async def read() -> Sequence[HistoryRecord]:
            nonlocal found
            found = RestoredTexts()
            rows = await states_and_then(self._connection.fetch, self._schema, asked)
            found.add(restored, rows)
            return found.sealed

        opened = await self._seal.opened(read, self._keys)
        found.add_opened(opened)
        return found.states

    async def _read(self, sql: str, *arguments: object) -> list[HistoryRecord]:
        rows = await self._connection.fetch(in_schema(sql, self._schema), *arguments)
        return [record_from_row(row) for row in rows]
