"""Sealing and opening the stored texts in place, in transactions.

Each transaction locks the row of `state`, as every writer does. So nothing changes between its
reads and its writes. It reads back what it wrote, and compares.
"""

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import bindparam, case, delete, func, or_, select, update
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.asyncio import AsyncConnection

from async_history._core.concurrency.threads import computed
from async_history._core.encryption.key_statements import INDEX, MARKS, MOST_USES, OFF
from async_history._core.encryption.sealing import BEGIN, END, JSON_BEGIN, KEY_ID, DataKey
from async_history._core.encryption.stored_texts import (
    CONTENT,
    LEDGER_MEANWHILE,
    TEXT_COLUMNS,
    TURNED_OFF,
    Page,
    StoredMessage,
    StoredTexts,
    TextTransaction,
)
from async_history._core.records.json_object import JsonObject
from async_history._core.records.owners import Owner
from async_history._core.writing.erased_names import Name, name_digest
from async_history._sql.connecting.packets import require_fits
from async_history._sql.dialects import in_parts, part_of, position
from async_history._sql.key_statements import WrittenKeyTable, count_clear
from async_history._sql.keys import Sealing
from async_history._sql.marks import add_marks, cause_marks, remove_marks
from async_history._sql.removing.erase import out_of_reach
from async_history._sql.rows import columns_read, record_from_row
from async_history._sql.schema import has_ledger
from async_history._sql.tables import Tables
from async_history._sql.transaction import Transaction
from async_history.errors import StorageError, StorageRefused

T = TypeVar("T")
WithState = Callable[[Callable[[Transaction], Awaitable[Any]]], Awaitable[Any]]
"""Do work in one transaction, with `state` locked, in its turn among the writes."""
RunAlone = Callable[[Callable[[AsyncConnection], Awaitable[Any]]], Awaitable[Any]]


class SqlTexts:
    """The texts of a history.

    Args:
        run_alone: does work in a transaction that only reads, in its turn among the writes.
        with_state: does work in a transaction that writes.
        sealing: seals under the keys of the history.
        statement_bytes: the most bytes of a statement; None: unlimited.
        where: the server, for messages.
    """

    def __init__(
        self,
        run_alone: RunAlone,
        with_state: WithState,
        dialect: Dialect,
        tables: Tables,
        sealing: Sealing,
        statement_bytes: int | None,
        where: str,
    ) -> None:
        self._run_alone = run_alone
        self._with_state = with_state
        self._dialect = dialect
        self._where = where
        self._tables = tables
        self._sealing = sealing
        self._statement_bytes = statement_bytes

    async def in_transaction(self, work: Callable[[TextTransaction], Coroutine[Any, Any, T]]) -> T:
        """Do work in one transaction."""

        async def run(transaction: Transaction) -> T:
            return await work(
                _SqlTransaction(transaction, self._sealing, self._statement_bytes, self._where)
            )

        done: T = await self._with_state(run)
        return done

    async def require_decryptable(self) -> None:
        """Do nothing: a user who can write the tables can decrypt them."""

    async def finish_decrypting(self) -> None:
        """Do nothing: nothing is left to do."""

    async def count_records(self) -> int:
        """Return the number of records."""
        return await self._count(select(func.count()).select_from(self._tables.history))

    async def count_clear(self) -> int:
        """Return the number of records with a value in clear."""
        return await self._count(count_clear(self._dialect, self._tables))

    async def _count(self, statement: Any) -> int:
        async def count(connection: AsyncConnection) -> int:
            return int((await connection.execute(statement)).scalar_one())

        counted: int = await self._run_alone(count)
        return counted

    async def overwrite(self) -> Sequence[str]:
        """Return where texts may remain: the server's files can't be overwritten from here."""
        tables = (self._tables.history, self._tables.messages)
        return out_of_reach(self._dialect, tables, "the encryption")


class _SqlTransaction:
    """Access to the stored texts in a transaction, with `state` locked.

    Args:
        statement_bytes: the most bytes of a statement; None: unlimited.
        where: the server, for messages.
    """

    def __init__(
        self,
        transaction: Transaction,
        sealing: Sealing,
        statement_bytes: int | None,
        where: str,
    ) -> None:
        self._transaction = transaction
        self._dialect = transaction.connection.dialect
        self._tables = transaction.tables
        self._sealing = sealing
        self._statement_bytes = statement_bytes
        self._where = where
        self._causes: dict[int, str | None] = {}
        self.table = WrittenKeyTable(transaction)

    # Finding

    async def clear_records(self, after: Any, limit: int) -> Page[StoredTexts]:
        """Return the next records that may have a text in clear, newest first.

        After the commit these count as sealed, so the next call continues after them.
        """
        encryption, history = self._tables.encryption, self._tables.history
        until = await self._transaction.fetch(select(encryption.c.clear_until))
        if not until:
            raise StorageError(TURNED_OFF)
        found = (
            select(*columns_read(self._tables))
            .where(history.c.seq <= until[0][0])
            .order_by(history.c.seq.desc())
            .limit(limit)
        )
        texts = self._texts(await self._transaction.fetch(found))
        place = texts[-1].place if len(texts) == limit else None
        left = 0 if place is None else place - 1
        await self._transaction.execute(update(encryption).values(clear_until=left))
        return Page(texts, place)

    async def detailed_records(self, after: Any, limit: int) -> Page[StoredTexts]:
        """Return none: `clear_records` also finds details in clear."""
        return Page([], None)

    async def sealed_records(self, after: Any, limit: int) -> Page[StoredTexts]:
        """Return the sealed ones of the next records."""
        return await self._found(_is_sealed(self._dialect, self._tables), after, limit)

    async def retired_records(self, after: Any, limit: int) -> Page[StoredTexts]:
        """Return those of the next records whose text is under a retired key."""
        return await self._found(_is_retired(self._dialect, self._tables), after, limit)

    async def _found(self, condition: Any, after: Any, limit: int) -> Page[StoredTexts]:
        history = self._tables.history
        pages = select(history.c.seq, case((condition, 1), else_=0)).order_by(history.c.seq)
        if after is not None:
            pages = pages.where(history.c.seq > after)
        places = await self._transaction.fetch(pages.limit(limit))
        texts: list[StoredTexts] = []
        for part in in_parts(seq for seq, is_wanted in places if is_wanted):
            rows = select(*columns_read(self._tables)).where(history.c.seq.in_(part))
            texts += self._texts(await self._transaction.fetch(rows))
        return Page(texts, places[-1][0] if len(places) == limit else None)

    def _texts(self, rows: Sequence[Sequence[Any]]) -> list[StoredTexts]:
        """Return the texts of rows of `columns_read`."""
        texts: list[StoredTexts] = []
        for row in rows:
            one = record_from_row(row)
            stored = StoredTexts(
                row[0], one.id, one.memory_id, one.owner, row[3], row[4], row[16], row[17]
            )
            self._causes[stored.place] = stored.cause
            texts.append(stored)
        return texts

    async def messages(self, after: Any, limit: int) -> Page[StoredMessage]:
        """Return the next buffered messages."""
        messages = self._tables.messages
        names = ("seq", "id", "session_scope", "role", "content", "name", "created_at")
        found = select(*(messages.c[name] for name in names), messages.c.long_scope)
        if after is not None:
            found = found.where(messages.c.seq > after)
        rows = [
            StoredMessage(seq, (message_id, scope if long_scope is None else long_scope, *rest))
            for seq, message_id, scope, *rest, long_scope in await self._transaction.fetch(
                found.order_by(messages.c.seq).limit(limit)
            )
        ]
        return Page(rows, rows[-1].place if len(rows) == limit else None)

    # Writing

    async def replace_records(self, rows: Sequence[StoredTexts]) -> None:
        """Write records' texts, and the marks of their causes."""
        before = [(mark, row.place) for row in rows for mark in _marks(self._causes[row.place])]
        after = [(mark, row.place) for row in rows for mark in _marks(row.cause)]
        await self._replace(
            self._tables.history, TEXT_COLUMNS, {row.place: row[-4:] for row in rows}
        )
        await remove_marks(self._transaction.connection, self._tables, before)
        await add_marks(self._transaction.connection, self._tables, after)

    async def replace_messages(self, rows: Sequence[StoredMessage]) -> None:
        """Write messages' contents."""
        contents = {one.place: (one.row[CONTENT],) for one in rows}
        await self._replace(self._tables.messages, ("content",), contents)

    async def _replace(
        self, table: Any, names: Sequence[str], texts: Mapping[Any, tuple[str | None, ...]]
    ) -> None:
        """Write texts by the numbers of their rows, then read them back."""
        if not texts:
            return
        require_fits(texts.values(), self._statement_bytes, self._where)
        await self._transaction.execute(
            update(table)
            .where(table.c.seq == bindparam("place"))
            .values(**{name: bindparam(f"new_{name}") for name in names}),
            [
                {"place": place, **{f"new_{n}": one for n, one in zip(names, new, strict=True)}}
                for place, new in texts.items()
            ],
        )
        columns = [table.c[name] for name in names]
        for part in in_parts(texts):
            written = select(table.c.seq, *columns).where(table.c.seq.in_(part))
            rows = await self._transaction.fetch(written)
            if {seq: tuple(new) for seq, *new in rows} != {seq: texts[seq] for seq in part}:
                raise StorageRefused(
                    f"a trigger or rule of the table {table.name} keeps texts as they are; remove "
                    "it, and call this again"
                )

    async def keys_of(self, owners: Sequence[Owner | None]) -> Sequence[DataKey | None]:
        """Return the data key of each owner."""
        return await self._sealing.keys_of(owners, self._transaction) if owners else []

    async def compute(self, work: Callable[[], T]) -> T:
        """Call a function on a thread of its own."""
        return await computed(work)

    # Keys

    async def note_whole(self) -> None:
        """Note whether all causes are sealed. They are not if another process has begun again."""
        encryption = self._tables.encryption
        until = await self._transaction.fetch(select(encryption.c.clear_until))
        if not until:
            raise StorageError(TURNED_OFF)
        if until[0][0] == 0:
            await self._transaction.execute(update(encryption).values(is_whole=1))

    async def lock_keys(self) -> None:
        """Do nothing: writers wait for the row of `state`."""

    async def retire_keys(self) -> None:
        """Retire all data keys."""
        await self._retire()

    async def retire_keys_of(self, name: Name) -> None:
        """Retire the data keys of owners that have a scope."""
        keys = self._tables.data_keys
        await self._retire(keys.c.erased == 0, keys.c[name[0]] == name_digest(name).hex())

    async def _retire(self, *conditions: Any) -> None:
        keys = self._tables.data_keys
        await self._transaction.execute(
            update(keys)
            .where(keys.c.owner.not_in((INDEX, *MARKS)), keys.c.uses < MOST_USES, *conditions)
            .values(uses=MOST_USES)
        )

    async def retired_keys(self) -> Sequence[str]:
        """Return the ids of retired data keys."""
        return [key_id for (key_id,) in await self._transaction.fetch(_retired(self._tables))]

    async def turn_on(self) -> None:
        """Seal all new records, again. Earlier records may be in clear."""
        await self.table.begin()
        encryption = self._tables.encryption
        await self._transaction.execute(
            update(encryption).values(clear_until=self._transaction.last)
        )

    async def turn_off(self) -> None:
        """Note that not all causes are sealed."""
        await self._transaction.execute(delete(self._tables.encryption))

    async def end(self) -> None:
        """Remove all keys except `OFF`."""
        if await has_ledger(self._transaction.connection, self._tables):
            raise StorageError(LEDGER_MEANWHILE)
        keys = self._tables.data_keys
        await self._transaction.execute(delete(keys).where(keys.c.id != OFF))
        await self._transaction.execute(delete(self._tables.wrapping_keys))


def _marks(cause: str | None) -> list[int]:
    return cause_marks(None if cause is None else JsonObject(cause))


def _is_sealed(dialect: Dialect, tables: Tables) -> Any:
    """Return the condition that a value of a record may be sealed."""
    history = tables.history
    return or_(
        *(position(dialect, history.c[name], BEGIN) == 1 for name in TEXT_COLUMNS[:2]),
        *(position(dialect, history.c[name], END) > 0 for name in TEXT_COLUMNS),
        *(position(dialect, history.c[name], JSON_BEGIN) > 0 for name in TEXT_COLUMNS[2:]),
    )


def _retired(tables: Tables) -> Any:
    """Return the SELECT of the ids of retired keys whose owner is not being erased."""
    keys = tables.data_keys
    return select(keys.c.id).where(keys.c.uses >= MOST_USES, keys.c.erased == 0)


def _is_retired(dialect: Dialect, tables: Tables) -> Any:
    """Return the condition that a text of a record is under a retired key."""
    history, retired = tables.history, _retired(tables)
    begins: list[tuple[Any, Any]] = [(history.c[name], len(BEGIN) + 1) for name in TEXT_COLUMNS[:2]]
    for name in TEXT_COLUMNS[2:]:
        column = history.c[name]
        begins.append((column, position(dialect, column, JSON_BEGIN) + len(JSON_BEGIN)))
    return or_(*(part_of(dialect, column, begin, KEY_ID).in_(retired) for column, begin in begins))
