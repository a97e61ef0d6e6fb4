"""Erasure: the statements, the log, and what remains outside the tables."""

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from hashlib import blake2b
from typing import Any, Final, TypeVar

from sqlalchemy import Select, Table, delete, func, insert, or_, select, update
from sqlalchemy.engine import Dialect

from async_history._core.encryption.store_encryption import KEYS_DESTROYED
from async_history._core.ledger import changes
from async_history._core.ledger.operation_log import LedgeredOperationLog
from async_history._core.ledger.tables import LedgerTables
from async_history._core.records.owners import SCOPES, without_scope
from async_history._core.records.records import HistoryRecord
from async_history._core.removing.erase import Residue
from async_history._core.removing.erase_request import Vacuuming
from async_history._core.removing.erase_transaction import (
    WHOLE,
    Columns,
    EraseTransaction,
    RecordRef,
    Texts,
)
from async_history._core.writing.erased_names import (
    Name,
    microseconds,
    name_digest,
)
from async_history._sql.dialects import in_parts, is_mysql
from async_history._sql.keys import Seal
from async_history._sql.marks import mark_of, marks_of, remove_marks
from async_history._sql.names import key_of, keys_of, whole_names
from async_history._sql.operations import log_within
from async_history._sql.rows import (
    columns_read,
    names_from_row,
    owner_of,
    owner_row,
    record_from_row,
    values_of,
)
from async_history._sql.transaction import Transaction

T = TypeVar("T")

_DIGEST_BYTES: Final = 16
_FILES: Final = (
    "the tables' files have the bytes of earlier row versions until others are written there; "
    "write them again with the server's own command ({command})"
)
_OUT_OF_REACH: Final = (
    "the server's logs, replicas until they have replayed it, and backups have the texts until "
    "they are recycled",
    _FILES.format(command="VACUUM FULL of PostgreSQL, VACUUM of SQLite"),
)
_OUT_OF_REACH_OF_MYSQL: Final = (
    "the server's redo log and undo log (ib_logfile0, ibdata1, undo tablespaces) have the texts "
    "until they are overwritten, and a binary log of rows has those of {change} too until its "
    "files are purged; replicas until they have replayed it, and backups, have them as well",
    _FILES.format(command="OPTIMIZE TABLE {tables}"),
)
_PLACE: Final = ("id", "memory_id")


class EraseSteps:
    """The steps of an erasure in a transaction, with `state` locked.

    Args:
        seal: seals and opens texts.
        ledger: the ledger's tables in this transaction, if the store has one.
    """

    def __init__(self, transaction: Transaction, seal: Seal, ledger: LedgerTables | None) -> None:
        self._seal = seal
        self._ledger = ledger
        self._transaction = transaction
        self._connection = transaction.connection
        self._tables = transaction.tables

    @property
    def log(self) -> LedgeredOperationLog:
        return log_within(self._connection, self._tables, self._ledger)

    async def _fetch(self, statement: Any) -> Sequence[Any]:
        return (await self._connection.execute(statement)).all()

    def _refs(self, after: RecordRef | None, limit: int | None, *conditions: Any) -> Any:
        history = self._tables.history
        found = (
            select(history.c.seq, history.c.id, history.c.memory_id, history.c.long_names)
            .where(*conditions)
            .order_by(history.c.seq)
        )
        if after is not None:
            found = found.where(history.c.seq > after.position)
        return found if limit is None else found.limit(limit)

    def _has_text(self) -> Any:
        history = self._tables.history
        return or_(*(history.c[name].is_not(None) for name in WHOLE))

    async def with_text(
        self, memory_ids: Sequence[str], after: RecordRef | None, limit: int
    ) -> list[RecordRef]:
        of_memories = self._tables.history.c.memory_id.in_(keys_of(memory_ids))
        rows = await self._fetch(self._refs(after, limit, of_memories, self._has_text()))
        return list(map(_ref_of, rows))

    async def of_actor(self, actor_id: str, after: RecordRef | None, limit: int) -> list[RecordRef]:
        history, marks = self._tables.history, self._tables.marks
        found = self._refs(after, limit, history.c.actor_id == key_of(actor_id))
        found = found.select_from(marks.join(history, history.c.seq == marks.c.seq))
        rows = await self._fetch(found.where(marks.c.mark == mark_of("actor_id", actor_id)))
        return list(map(_ref_of, rows))

    async def with_ids(self, record_ids: Sequence[str]) -> list[RecordRef]:
        found: list[RecordRef] = []
        for keys in in_parts(keys_of(record_ids)):
            of_ids = self._tables.history.c.id.in_(keys)
            rows = await self._fetch(self._refs(None, None, of_ids, self._has_text()))
            found += map(_ref_of, rows)
        return found

    async def sizes(self, memory_ids: Sequence[str]) -> dict[str, int]:
        history = self._tables.history
        names = {key_of(name): name for name in memory_ids}
        found: dict[str, int] = {}
        for keys in in_parts(names):
            rows = await self._fetch(
                select(history.c.memory_id, func.count())
                .where(history.c.memory_id.in_(keys))
                .group_by(history.c.memory_id)
            )
            found |= {names[key]: count for key, count in rows}
        return found

    async def _texts(self, actor_id: str, found: Select[Any]) -> list[Texts]:
        history = self._tables.history
        columns = columns_read(self._tables)
        positions: list[int] = []

        async def read() -> list[HistoryRecord]:
            rows = await self._fetch(found.with_only_columns(*columns).order_by(history.c.seq))
            positions[:] = [row[0] for row in rows]
            return [replace(record_from_row(row), context=None, cause=None) for row in rows]

        records = await self._seal.opened(read, self._transaction)
        return [
            Texts(
                RecordRef(position, record.id, record.memory_id),
                record.actor_id == actor_id,
                _digest(record.old_memory),
                _digest(record.new_memory),
            )
            for position, record in zip(positions, records, strict=True)
        ]

    async def texts(self, actor_id: str, memory_ids: Sequence[str]) -> list[Texts]:
        history = self._tables.history
        found = select(history).where(history.c.memory_id.in_(keys_of(memory_ids)))
        return await self._texts(actor_id, found)

    async def next_texts(
        self, actor_id: str, memory_id: str, after: RecordRef | None, limit: int
    ) -> list[Texts]:
        history = self._tables.history
        found = select(history).where(history.c.memory_id == key_of(memory_id)).limit(limit)
        if after is not None:
            found = found.where(history.c.seq > after.position)
        return await self._texts(actor_id, found)

    async def redact(self, columns: Columns, refs: Sequence[RecordRef]) -> int:
        if self._ledger is None:
            return await self._redact(columns, refs)
        ids = [ref.id for ref in refs]
        held = await changes.held(self._ledger, ids)
        redacted = await self._redact(columns, refs)
        if redacted:
            await changes.erase(self._ledger, ids, held)
        return redacted

    async def _redact(self, columns: Columns, refs: Sequence[RecordRef]) -> int:
        history = self._tables.history
        nothing: dict[str, Any] = dict.fromkeys(columns)
        lost = 0
        for part in in_parts(ref.position for ref in refs):
            has_any = or_(*(history.c[name].is_not(None) for name in columns))
            rows = await self._fetch(
                select(*columns_read(self._tables)).where(history.c.seq.in_(part), has_any)
            )
            marks: list[tuple[int, int]] = []
            for row in rows:
                record = record_from_row(row)
                left = replace(record, **nothing)
                gone = set(marks_of(record)) - set(marks_of(left))
                marks += [(mark, row[0]) for mark in gone]
                if row[-1] is not None and "actor_id" in columns:
                    names = values_of(left, None)["long_names"]
                    await self._connection.execute(
                        update(history).where(history.c.seq == row[0]).values(long_names=names)
                    )
            await remove_marks(self._connection, self._tables, marks)
            await self._connection.execute(
                update(history).where(history.c.seq.in_(part)).values(**nothing)
            )
            lost += len(rows)
        return lost

    async def note(self, names: Sequence[Name], at: datetime) -> Sequence[str]:
        erased = self._tables.erased
        instant = microseconds(at)
        digests = [name_digest(name).hex() for name in names]
        for part in in_parts(dict.fromkeys(digests)):
            there = {
                digest
                for (digest,) in await self._fetch(
                    select(erased.c.digest).where(erased.c.digest.in_(part))
                )
            }
            await self._connection.execute(
                update(erased)
                .where(erased.c.digest.in_(part), erased.c.at < instant)
                .values(at=instant)
            )
            rows = [{"digest": one, "at": instant} for one in part if one not in there]
            if rows:
                await self._connection.execute(insert(erased), rows)
        self._transaction.next_version(instant)
        return await self._seal.mark(names, self._transaction)

    async def disown(self, scope: str, memory_ids: Sequence[str]) -> None:
        if self._ledger is None:
            await self._disown(scope, memory_ids)
            return
        owned = await changes.owned(self._ledger, memory_ids)
        await self._disown(scope, memory_ids)
        await changes.disown(self._ledger, memory_ids, owned)

    async def _disown(self, scope: str, memory_ids: Sequence[str]) -> None:
        history, owners = self._tables.history, self._tables.owners
        for keys in in_parts(keys_of(memory_ids)):
            found = await self._connection.execute(
                select(owners).where(owners.c.memory_id.in_(keys))
            )
            for row in found.mappings().all():
                await self._disown_one(dict(row), scope)
            await self._connection.execute(
                update(history).where(history.c.memory_id.in_(keys)).values({scope: None})
            )
        self._transaction.next_version()

    async def _disown_one(self, row: Mapping[str, Any], scope: str) -> None:
        history, owners = self._tables.history, self._tables.owners
        known = names_from_row(row)
        name = known["memory_id"]
        owner = owner_of([known[one] for one in SCOPES])
        left = without_scope(owner, scope)
        await self._connection.execute(delete(owners).where(owners.c.memory_id == key_of(name)))
        if left is not None:
            await self._connection.execute(insert(owners).values(**owner_row(name, left)))
        seqs = [
            seq
            for (seq,) in await self._fetch(
                select(history.c.seq).where(history.c.memory_id == key_of(name))
            )
        ]
        if known[scope] is not None:
            mark = mark_of(scope, known[scope])
            await remove_marks(self._connection, self._tables, [(mark, seq) for seq in seqs])
        long = await self._fetch(
            select(*columns_read(self._tables)).where(
                history.c.memory_id == key_of(name), history.c.long_names.is_not(None)
            )
        )
        for found in long:
            record = replace(record_from_row(found), owner=left)
            values = values_of(record, found[11])
            await self._connection.execute(
                update(history).where(history.c.seq == found[0]).values(**values)
            )

    async def messages(self, session_scopes: Sequence[str]) -> int:
        messages = self._tables.messages
        count = 0
        for keys in in_parts(keys_of(session_scopes)):
            ((found,),) = await self._fetch(
                select(func.count()).where(messages.c.session_scope.in_(keys))
            )
            count += found
        return count

    async def remove_messages(self, session_scopes: Sequence[str]) -> int:
        messages = self._tables.messages
        count = 0
        for keys in in_parts(keys_of(session_scopes)):
            done = await self._connection.execute(
                delete(messages).where(messages.c.session_scope.in_(keys))
            )
            count += done.rowcount
        return count


def _ref_of(row: Sequence[Any]) -> RecordRef:
    seq, record_id, memory_id, stored = row[:4]
    if stored is not None:
        record_id, memory_id = whole_names((record_id, memory_id), _PLACE, stored)
    return RecordRef(seq, record_id, memory_id)


def _digest(text: str | None) -> bytes | None:
    if text is None:
        return None
    return blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest()


def out_of_reach(dialect: Dialect, tables: Sequence[Table], change: str) -> tuple[str, ...]:
    """Return where texts remain outside the tables after a change, one sentence each."""
    if not is_mysql(dialect):
        return _OUT_OF_REACH
    name = dialect.identifier_preparer.format_table
    written = ", ".join(map(name, tables))
    return tuple(
        sentence.format(tables=written, change=change) for sentence in _OUT_OF_REACH_OF_MYSQL
    )


class SqlErasure:
    """An erasure in a database.

    Args:
        run: does steps in one transaction, in its turn among the writes.
        out_of_reach: where texts remain outside the tables.
        destroy_keys: destroys data keys that `note` returned.
    """

    def __init__(
        self,
        run: Callable[[Callable[[EraseTransaction], Coroutine[Any, Any, Any]]], Awaitable[Any]],
        out_of_reach: tuple[str, ...],
        destroy_keys: Callable[[Sequence[str]], Awaitable[None]],
    ) -> None:
        self._run = run
        self._out_of_reach = out_of_reach
        self._destroy_keys = destroy_keys

    async def in_transaction(self, work: Callable[[EraseTransaction], Coroutine[Any, Any, T]]) -> T:
        done: T = await self._run(work)
        return done

    async def residue(self) -> Residue:
        return Residue(sentences=self._out_of_reach)

    async def clean(self, *, key_ids: Sequence[str], vacuum: Vacuuming) -> Residue:
        if not key_ids:
            return Residue(sentences=self._out_of_reach)
        await self._destroy_keys(key_ids)
        return Residue(sentences=(KEYS_DESTROYED, *self._out_of_reach))
