"""The statements of the tables of keys."""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    Executable,
    Insert,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.asyncio import AsyncConnection

from async_history._core.encryption.key_statements import (
    KEY_COLUMNS,
    MOST_USES,
    KeyReads,
    KeyStatements,
    KeyTable,
    Run,
    StoredKey,
)
from async_history._core.encryption.sealing import BEGIN, JSON_BEGIN
from async_history._core.records.owners import SCOPES
from async_history._sql.dialects import in_parts, position
from async_history._sql.tables import Tables
from async_history._sql.transaction import Transaction


@lru_cache(64)
def _statements_in(tables: Tables) -> KeyStatements:
    """Return the statements of the tables of keys."""
    wrapping, keys, encryption = tables.wrapping_keys, tables.data_keys, tables.encryption
    history, state = tables.history, tables.state
    p1: Any = bindparam("p1")
    p2: Any = bindparam("p2")
    p3: Any = bindparam("p3")
    several: Any = bindparam("p1", expanding=True)
    stored = select(*(keys.c[name] for name in KEY_COLUMNS))
    by_others = keys.c.wrapping_key != p1
    new_wrapping = [
        bindparam(f"p{place}", type_=column.type) for place, column in enumerate(wrapping.c, 1)
    ]
    is_whole = case((exists().where(history.c.cause.is_not(None)), 0), else_=1)
    return KeyStatements(
        wrapping=select(*wrapping.c).order_by(wrapping.c.id),
        add_wrapping=insert(wrapping).from_select(
            wrapping.c.keys(),
            select(*new_wrapping).where(~exists().where(wrapping.c.id == new_wrapping[0])),
        ),
        remove_wrapping=delete(wrapping).where(
            wrapping.c.id != p1, ~exists().where(keys.c.wrapping_key == wrapping.c.id)
        ),
        count_usable=select(func.count()).where(keys.c.id.in_(several), keys.c.uses < MOST_USES),
        keys=stored.where(keys.c.id.in_(several)),
        of_owners=stored.where(keys.c.owner.in_(several), keys.c.erased == 0).order_by(keys.c.uses),
        wrapped_by_others=stored.where(by_others, keys.c.id > p2).order_by(keys.c.id).limit(p3),
        count_wrapped_by_others=select(func.count()).select_from(keys).where(by_others),
        reserve=update(keys).where(keys.c.id.in_(several)).values(uses=keys.c.uses + p2),
        rewrap=update(keys).where(keys.c.id == p3).values(wrapping_key=p1, wrapped=p2),
        remove=delete(keys).where(keys.c.id.in_(several), keys.c.erased == 0),
        begin=insert(encryption).from_select(
            encryption.c.keys(),
            select(literal(1), is_whole, state.c.last).where(
                state.c.id == 1, ~exists().where(encryption.c.id == 1)
            ),
        ),
        is_whole=select(encryption.c.is_whole),
        mark={scope: update(keys).where(keys.c[scope] == p1).values(erased=1) for scope in SCOPES},
        marked={
            scope: select(keys.c.id).where(keys.c.erased == 1, keys.c[scope] == p1)
            for scope in SCOPES
        },
        destroy=delete(keys).where(keys.c.id.in_(several), keys.c.erased == 1),
    )


@lru_cache(64)
def _adding(tables: Tables) -> Insert:
    """Return the INSERT of one data key, with its columns as parameters."""
    columns: Any = {name: bindparam(f"p{place}") for place, name in enumerate(KEY_COLUMNS, 1)}
    return insert(tables.data_keys).values(**columns, erased=0)


def count_clear(dialect: Dialect, tables: Tables) -> Executable:
    """Return the SELECT of the number of records with a value in clear.

    Once encryption is on, nothing is written in clear. So only earlier records are read.
    """
    history, encryption = tables.history, tables.encryption
    texts, details = ("old_memory", "new_memory"), ("context", "cause")
    is_clear = or_(
        *(position(dialect, history.c[name], BEGIN) != 1 for name in texts),
        *(position(dialect, history.c[name], JSON_BEGIN) == 0 for name in details),
    )
    return (
        select(func.count())
        .select_from(history.join(encryption, history.c.seq <= encryption.c.clear_until))
        .where(is_clear)
    )


Fetch = Callable[[Any, Mapping[str, Any]], Awaitable[Sequence[Any]]]
"""Run a statement with its parameters, and return its rows."""


def table_read(tables: Tables, fetch: Fetch) -> KeyReads:
    """Return the tables of keys, for reading through a function that runs one statement."""
    return KeyReads(_statements_in(tables), _run_by(fetch))


class WrittenKeyTable(KeyTable):
    """The tables of keys inside a transaction that has locked `state`."""

    def __init__(self, transaction: Transaction) -> None:
        super().__init__(_statements_in(transaction.tables), _run_by(transaction.fetch))
        self._transaction = transaction

    async def add(self, keys: Sequence[StoredKey]) -> None:
        """Add data keys."""
        if keys:
            add = _adding(self._transaction.tables)
            await self._transaction.execute(add, [_named(key) for key in keys])

    async def begin(self) -> None:
        """Note whether there are causes in clear, and stop writers without keys."""
        await super().begin()
        self._transaction.forget_known()


def _run_by(fetch: Fetch) -> Run:
    async def run(statement: Any, *parameters: Any) -> Sequence[Sequence[Any]]:
        return [row for one in _parts(parameters) for row in await fetch(statement, one)]

    return run


def _parts(parameters: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Yield the parameters of a statement. For a long list it runs several times."""
    if parameters and isinstance(parameters[0], list):
        for part in in_parts(parameters[0]):
            yield _named((part, *parameters[1:]))
    else:
        yield _named(parameters)


def _named(parameters: Sequence[Any]) -> dict[str, Any]:
    return {f"p{place}": value for place, value in enumerate(parameters, 1)}


async def is_encrypted(connection: AsyncConnection, tables: Tables) -> bool:
    """Return whether the history is encrypted, at least in part."""
    keys = select(tables.wrapping_keys.c.id).limit(1)
    return (await connection.execute(keys)).first() is not None
