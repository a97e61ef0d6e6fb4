"""The tables, as SQLAlchemy's metadata.

`seq` numbers the records in commit order, without gaps: see `state`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Identity,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
)

from async_history._core.records.owners import SCOPES
from async_history._core.records.records import COLUMNS
from async_history._sql.columns import (
    Hashes,
    Name,
    OwnerDigest,
    name_column,
    number_type,
    text_type,
)

LAYOUT: Final = 3
"""The version of the tables."""
PREFIX: Final = "async_history_"
SPAN_BITS: Final = 12
"""The number of records of a span, as a power of two."""

_OPTIONS: Final[dict[str, Any]] = {
    f"{name}_{option}": value
    for name in ("mysql", "mariadb")
    for option, value in (
        ("engine", "InnoDB"),
        ("charset", "utf8mb4"),
        ("collate", "utf8mb4_bin"),
        ("row_format", "DYNAMIC"),
    )
}


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The tables in one schema.

    Attributes:
        history: the records. `occurred_at` is in microseconds since 1970, UTC.
        marks: the records with an owner's scope, an actor, a role or a cause, by `mark_of`. A
            record has one row for each that it has; missing ones cost nothing.
        spans: for each 4,096 positions, bounds of the times of its records, and their events.
        messages: the message buffers.
        owners: the owners of memories.
        erased: the digests of erased names.
        operations: the log of operations. Their names are not looked up, so these are plain texts.
        ledger, ledger_tiles, ledger_names: the leaves, one row for a batch; the tree over them; and
            the place of each name's leaf. Only a history with a ledger has these tables.
        state: one row. Each transaction that writes updates it first, which locks it until the end.
            `last` is the number of the newest record, so numbers are in commit order. A writer's
            cache of owners is valid while `version` is unchanged; it is at most 0 before the first
            owner.
    """

    metadata: MetaData
    ledger_metadata: MetaData
    history: Table
    marks: Table
    spans: Table
    messages: Table
    owners: Table
    erased: Table
    operations: Table
    wrapping_keys: Table
    data_keys: Table
    encryption: Table
    ledger: Table
    ledger_tiles: Table
    ledger_names: Table
    state: Table


NewTable = Callable[..., Table]
"""A function that makes a table from its name, columns and indexes."""


@lru_cache(64)
def tables_in(schema: str | None) -> Tables:
    """Return the tables in a schema; None is the connection's own.

    The same objects each time, because SQLAlchemy caches compiled statements by their tables.
    """
    metadata, ledger_metadata = MetaData(schema=schema), MetaData(schema=schema)
    table = partial(_table, metadata)
    history, marks, spans, messages = _record_tables(table)
    owners, erased, operations, state = _state_tables(table)
    wrapping_keys, data_keys, encryption = _key_tables(table)
    ledger, ledger_tiles, ledger_names = _ledger_tables(partial(_table, ledger_metadata))
    return Tables(
        metadata=metadata,
        ledger_metadata=ledger_metadata,
        history=history,
        marks=marks,
        spans=spans,
        messages=messages,
        owners=owners,
        erased=erased,
        operations=operations,
        wrapping_keys=wrapping_keys,
        data_keys=data_keys,
        encryption=encryption,
        ledger=ledger,
        ledger_tiles=ledger_tiles,
        ledger_names=ledger_names,
        state=state,
    )


def _table(metadata: MetaData, name: str, *columns: Any) -> Table:
    return Table(f"{PREFIX}{name}", metadata, *columns, **_OPTIONS)


def _record_columns() -> Iterator[Column[Any]]:
    texts = {"old_memory", "new_memory", "created_at", "updated_at"}
    required = {"id", "memory_id", "event"}
    yield Column("seq", number_type(), primary_key=True, autoincrement=False)
    for name in COLUMNS:
        if name == "is_deleted":
            yield Column(name, SmallInteger(), nullable=False)
        elif name in texts:
            yield Column(name, text_type())
        else:
            yield name_column(name, nullable=name not in required)
    yield Column("occurred_at", BigInteger())
    yield from map(name_column, SCOPES)
    for name in ("context", "cause", "long_names"):
        yield Column(name, text_type())


def _record_tables(table: NewTable) -> tuple[Table, Table, Table, Table]:
    return (
        table(
            "records",
            *_record_columns(),
            Index(f"{PREFIX}records_id", "id", unique=True),
            Index(f"{PREFIX}records_memory", "memory_id", "seq"),
        ),
        table(
            "marks",
            Column("mark", BigInteger(), primary_key=True, autoincrement=False),
            Column("seq", BigInteger(), primary_key=True, autoincrement=False),
        ),
        table(
            "spans",
            Column("span", number_type(), primary_key=True, autoincrement=False),
            Column("first_time", BigInteger()),
            Column("last_time", BigInteger()),
            Column("events", SmallInteger(), nullable=False),
            Column("has_undated", SmallInteger(), nullable=False),
        ),
        table(
            "messages",
            Column("seq", number_type(), primary_key=True, autoincrement=False),
            name_column("id", nullable=False),
            name_column("session_scope", nullable=False),
            *(Column(name, text_type()) for name in ("role", "content", "name", "created_at")),
            Column("long_scope", text_type()),
            Index(f"{PREFIX}messages_scope", "session_scope", "seq"),
        ),
    )


def _state_tables(table: NewTable) -> tuple[Table, Table, Table, Table]:
    return (
        table(
            "owners",
            Column("memory_id", Name(), primary_key=True),
            *map(name_column, SCOPES),
            Column("long_names", text_type()),
        ),
        table(
            "erased",
            Column("digest", String(32), primary_key=True),
            Column("at", BigInteger(), nullable=False),
        ),
        table(
            "operations",
            Column("id", String(64), primary_key=True),
            Column("kind", String(64), nullable=False),
            Column("begun_at", BigInteger(), nullable=False),
            Column("ended_at", BigInteger()),
            Column("error", String(255)),
            Column("actor_id", text_type()),
            Column("process_id", BigInteger()),
            Column("host", text_type()),
            Column("database_role", text_type()),
            Column("arguments", text_type()),
            Column("records", BigInteger(), nullable=False),
            Column("messages", BigInteger(), nullable=False),
        ),
        table(
            "state",
            Column("id", Integer(), primary_key=True, autoincrement=False),
            Column("layout", Integer(), nullable=False),
            Column("last", BigInteger(), nullable=False),
            Column("last_message", BigInteger(), nullable=False),
            Column("version", BigInteger(), nullable=False),
            Column("last_version", BigInteger(), nullable=False),
            Column("erased_at", BigInteger()),
        ),
    )


def _key_tables(table: NewTable) -> tuple[Table, Table, Table]:
    return (
        table(
            "wrapping_keys",
            Column("id", String(64), primary_key=True),
            Column("master", text_type(), nullable=False),
            Column("wrapped", text_type(), nullable=False),
        ),
        table(
            "data_keys",
            Column("id", String(64), primary_key=True),
            Column("owner", OwnerDigest(64), nullable=False),
            *(Column(name, String(64)) for name in SCOPES),
            Column("wrapping_key", String(64), nullable=False),
            Column("wrapped", text_type(), nullable=False),
            Column("uses", BigInteger(), nullable=False),
            Column("erased", SmallInteger(), nullable=False),
            Index(f"{PREFIX}data_keys_owner", "owner"),
        ),
        table(
            "encryption",
            Column("id", Integer(), primary_key=True, autoincrement=False),
            Column("is_whole", SmallInteger(), nullable=False),
            Column("clear_until", BigInteger(), nullable=False),
        ),
    )


def _ledger_tables(table: NewTable) -> tuple[Table, Table, Table]:
    return (
        table(
            "ledger",
            Column("number", number_type(), Identity(), primary_key=True),
            Column("first", BigInteger()),  # the place of its first leaf; NULL until it has one
            Column("kind", String(16), nullable=False),
            Column("size", BigInteger(), nullable=False),
            Column("hashes", Hashes(), nullable=False),
            Column("is_keyed", SmallInteger(), nullable=False),
            Column("names", text_type(), nullable=False),
            Index(f"{PREFIX}ledger_places", "first"),
            Index(f"{PREFIX}ledger_kinds", "kind", "first"),
        ),
        table(
            "ledger_tiles",
            Column("level", BigInteger(), primary_key=True, autoincrement=False),
            Column("number", BigInteger(), primary_key=True, autoincrement=False),
            Column("hashes", Hashes(), nullable=False),
        ),
        table(
            "ledger_names",
            Column("key", BigInteger(), primary_key=True, autoincrement=False),
            Column("place", BigInteger(), primary_key=True, autoincrement=False),
        ),
    )


TABLES: Final = tables_in(None)
