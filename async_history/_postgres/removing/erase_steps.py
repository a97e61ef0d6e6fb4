"""The steps of an erasure in a transaction of PostgreSQL, and their statements."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final

from async_history._core.ledger import changes
from async_history._core.ledger.tables import LedgerTables
from async_history._core.reading.filters import Filter
from async_history._core.removing.erase_transaction import LOST, Columns, RecordRef, Texts
from async_history._core.writing.erased_names import Name
from async_history._postgres.detail_columns import CAUSE_COLUMNS
from async_history._postgres.key_statements import PostgresKeyTable, keys_within
from async_history._postgres.reading.filters import Search
from async_history._postgres.removing.erase_keys import DIGESTS, STORED_TEXTS, EraseKeys, Rows
from async_history._postgres.rows import joined_names
from async_history._postgres.schema_steps import RECORDS, SchemaSteps, ref_of
from async_history._postgres.writing.batch_locks import LOCK_MEMORIES
from async_history._postgres.writing.erased_names import (
    STILL_OWNED,
    disown_statements,
    note_statements,
)
from async_history._postgres.writing.owner_steps import NUMBER, require_one
from async_history.errors import StorageRefused

_BEFORE_ALL: Final = -(1 << 63)
_WITH_TEXT: Final = """
SELECT seq, id, memory_id FROM {schema}.history
WHERE memory_id = $1::pg_catalog.text AND seq > $2::pg_catalog.int8
  AND (old_memory IS NOT NULL OR new_memory IS NOT NULL
       OR context IS NOT NULL OR cause IS NOT NULL)
ORDER BY seq LIMIT $3::pg_catalog.int8
"""
_OF_SEVERAL_WITH_TEXT: Final = """
SELECT seq, id, memory_id FROM {schema}.history
WHERE memory_id = ANY($1::pg_catalog.text[]) AND seq > $2::pg_catalog.int8
  AND (old_memory IS NOT NULL OR new_memory IS NOT NULL
       OR context IS NOT NULL OR cause IS NOT NULL)
ORDER BY seq + 0::pg_catalog.int8 LIMIT $3::pg_catalog.int8
"""
"""The index on `seq` must not give the order, or the planner would read all of it from $2 on."""
_OF_IDS: Final = """
SELECT seq, id, memory_id FROM {schema}.history
WHERE id = ANY($1::pg_catalog.text[])
  AND (old_memory IS NOT NULL OR new_memory IS NOT NULL
       OR context IS NOT NULL OR cause IS NOT NULL)
"""
_SIZES: Final = """
SELECT memory_id, pg_catalog.count(*) FROM {schema}.history
WHERE memory_id = ANY($1::pg_catalog.text[]) GROUP BY memory_id
"""


def _texts_of(columns: str, where: str) -> str:
    """Return the SELECT of records with these columns of texts."""
    return f"""
    SELECT seq, id, memory_id, actor_id = $1::pg_catalog.text, {columns} FROM {{schema}}.history
    WHERE {where}
    """


_TEXTS: Final = {
    columns: _texts_of(columns, "memory_id = ANY($2::pg_catalog.text[])")
    for columns in (DIGESTS, STORED_TEXTS)
}
_NEXT_TEXTS: Final = {
    columns: _texts_of(
        columns,
        "memory_id = $2::pg_catalog.text AND seq > $3::pg_catalog.int8"
        " ORDER BY seq LIMIT $4::pg_catalog.int8",
    )
    for columns in (DIGESTS, STORED_TEXTS)
}


def _redact(columns: Columns) -> str:
    """Return the UPDATE that makes columns NULL; with a cause, its indexed columns too."""
    lost = (*columns, *(CAUSE_COLUMNS.values() if "cause" in columns else ()))
    return f"""
    UPDATE {{schema}}.history SET {", ".join(f"{column} = NULL" for column in lost)}
    WHERE {RECORDS} AND ({" OR ".join(f"{column} IS NOT NULL" for column in columns)})
    """


def _kept(columns: Columns) -> str:
    """Return the SELECT of whether a record still has a value in one of the columns."""
    return f"""
    SELECT true FROM {{schema}}.history
    WHERE {RECORDS} AND ({" OR ".join(f"{column} IS NOT NULL" for column in columns)}) LIMIT 1
    """


_REDACT: Final = {columns: _redact(columns) for columns in LOST}
_KEPT: Final = {columns: _kept(columns) for columns in LOST}
_COUNT_MESSAGES: Final = """
SELECT pg_catalog.count(*) FROM {schema}.messages WHERE session_scope = ANY($1::pg_catalog.text[])
"""
_MESSAGES_OF: Final = """
SELECT id FROM {schema}.messages WHERE session_scope = ANY($1::pg_catalog.text[])
"""
_REMOVE_MESSAGES: Final = (
    "DELETE FROM {schema}.messages WHERE session_scope = ANY($1::pg_catalog.text[])"
)
_KEPT_MESSAGES: Final = """
SELECT true FROM {schema}.messages
WHERE session_scope = ANY($1::pg_catalog.text[]) AND id = ANY($2::pg_catalog.text[]) LIMIT 1
"""


class EraseSteps(SchemaSteps):
    """The steps of an erasure in a transaction.

    Args:
        keys: the keys of the history, if it is encrypted.
    """

    def __init__(
        self,
        connection: Any,
        schema: str,
        keys: EraseKeys,
        ledger: LedgerTables | None,
        *,
        is_distributed: bool,
    ) -> None:
        super().__init__(connection, schema, ledger, is_distributed=is_distributed)
        self._keys = keys
        self._key_table = PostgresKeyTable(connection.fetch, schema)
        self.has_changed_owners = False
        """Whether other transactions may write without having seen a change."""
        self.has_disowned = False
        """Whether that change has removed a scope of owners."""

    async def with_text(
        self, memory_ids: Sequence[str], after: RecordRef | None, limit: int
    ) -> list[RecordRef]:
        await self._lock(memory_ids)
        if len(memory_ids) == 1:
            rows = await self._fetch(_WITH_TEXT, memory_ids[0], _beyond(after), limit)
        else:
            names = list(memory_ids)
            rows = await self._fetch(_OF_SEVERAL_WITH_TEXT, names, _beyond(after), limit)
        return list(map(ref_of, rows))

    async def of_actor(self, actor_id: str, after: RecordRef | None, limit: int) -> list[RecordRef]:
        wanted = Filter(actor_id=actor_id)
        search = Search(wanted, is_distributed=self._is_distributed)
        sql, arguments = search.refs(None if after is None else after.position, limit)
        return list(map(ref_of, await self._fetch(sql, *arguments)))

    async def with_ids(self, record_ids: Sequence[str]) -> list[RecordRef]:
        rows = await self._fetch(_OF_IDS, list(record_ids))
        return list(map(ref_of, rows))

    async def sizes(self, memory_ids: Sequence[str]) -> dict[str, int]:
        rows = await self._fetch(_SIZES, list(memory_ids))
        return {name: int(size) for name, size in rows}

    async def texts(self, actor_id: str, memory_ids: Sequence[str]) -> list[Texts]:
        await self._lock(memory_ids)
        sql = _TEXTS[self._keys.text_columns]
        return await self._digests(partial(self._fetch, sql, actor_id, list(memory_ids)))

    async def next_texts(
        self, actor_id: str, memory_id: str, after: RecordRef | None, limit: int
    ) -> list[Texts]:
        await self._lock([memory_id])
        sql = _NEXT_TEXTS[self._keys.text_columns]
        read = partial(self._fetch, sql, actor_id, memory_id, _beyond(after), limit)
        return await self._digests(read)

    async def _lock(self, memory_ids: Sequence[str]) -> None:
        """Wait for transactions that repeat texts of memories which they have read."""
        await self._execute(LOCK_MEMORIES, *joined_names(memory_ids), self._schema)

    async def _digests(self, read: Callable[[], Awaitable[Rows]]) -> list[Texts]:
        return [_texts(*row) for row in await self._keys.digests(read, self._key_table)]

    async def redact(self, columns: Columns, refs: Sequence[RecordRef]) -> int:
        ids = [one.id for one in refs]
        held = None if self._ledger is None else await changes.held(self._ledger, ids)
        named = self._named(ids, (one.memory_id for one in refs))
        redacted = _count(await self._execute(_REDACT[columns], *named))
        if redacted < len(refs) and await self._fetch(_KEPT[columns], *named):
            raise _refusal("history")
        if self._ledger is not None and held is not None and redacted:
            await changes.erase(self._ledger, ids, held)
        return redacted

    async def note(self, names: Sequence[Name], at: datetime) -> Sequence[str]:
        done = [await self._execute(sql, *args) for sql, args in note_statements(names, at)]
        if done != ["UPDATE 1", f"INSERT 0 {len(set(names))}"]:
            require_one(await self._fetch(NUMBER))
            raise _refusal("erased or owners_state")
        self.has_changed_owners = True
        return await self._keys.mark(names, keys_within(self._connection, self._schema).change)

    async def disown(self, scope: str, memory_ids: Sequence[str]) -> None:
        named = list(memory_ids)
        if not await self._fetch(STILL_OWNED[scope], named):
            return
        owned = None if self._ledger is None else await changes.owned(self._ledger, memory_ids)
        done = [await self._execute(sql, *args) for sql, args in disown_statements(scope, named)]
        if done[0] != "UPDATE 1" or await self._fetch(STILL_OWNED[scope], named):
            require_one(await self._fetch(NUMBER))
            raise _refusal("history, owners or owners_state")
        if self._ledger is not None and owned is not None:
            await changes.disown(self._ledger, memory_ids, owned)
        self.has_changed_owners = self.has_disowned = True

    async def messages(self, session_scopes: Sequence[str]) -> int:
        ((count,),) = await self._fetch(_COUNT_MESSAGES, list(session_scopes))
        return int(count)

    async def remove_messages(self, session_scopes: Sequence[str]) -> int:
        scopes = list(session_scopes)
        ids = [message_id for (message_id,) in await self._fetch(_MESSAGES_OF, scopes)]
        removed = _count(await self._execute(_REMOVE_MESSAGES, scopes))
        if removed < len(ids) and await self._fetch(_KEPT_MESSAGES, scopes, ids):
            raise _refusal("messages")
        return removed


def _refusal(table: str) -> StorageRefused:
    """Return the error for rows that a statement did not change, without an error of its own."""
    return StorageRefused(
        f"a trigger, rule or policy of the table {table} keeps rows as they are, so what was asked "
        "is not erased; let this role change them, and erase again"
    )


def _count(status: str) -> int:
    """Return the number of rows that a statement changed, from its status."""
    return int(status.rpartition(" ")[2])


def _beyond(after: RecordRef | None) -> int:
    return _BEFORE_ALL if after is None else after.position


def _texts(
    seq: int,
    record_id: str,
    memory_id: str,
    is_actors: bool | None,
    old_memory: bytes | None,
    new_memory: bytes | None,
) -> Texts:
    ref = ref_of((seq, record_id, memory_id))
    return Texts(ref, bool(is_actors), old_memory, new_memory)
