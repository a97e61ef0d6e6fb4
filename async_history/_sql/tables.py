"""The tables, as SQLAlchemy's metadata, and the types of their columns.

`seq` numbers the records in commit order, without gaps: see `state`.
"""

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import (
    VARBINARY,
    BigInteger,
    Column,
    Dialect,
    Identity,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
)
from sqlalchemy.dialects.mssql import NVARCHAR
from sqlalchemy.dialects.mysql import LONGTEXT
from sqlalchemy.types import TypeDecorator, TypeEngine

from async_history._core.owners import SCOPES
from async_history._core.records import COLUMNS
from async_history._sql.names import NAME_BYTES

LAYOUT: Final = 3
"""The version of the tables."""
PREFIX: Final = "async_history_"
SPAN_BITS: Final = 12
"""The number of records of a span, as a power of two."""

BINARY_DIALECTS: Final = ("mysql", "mariadb", "mssql")
"""Databases that compare texts without case or trailing spaces, so that names must be bytes."""


_MYSQL_TEXT: Final = LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin")


def _text() -> Any:
    # SQL Server's TEXT and VARCHAR have the characters of the database's code page only.
    text = Text().with_variant(_MYSQL_TEXT, "mysql", "mariadb")
    return text.with_variant(NVARCHAR(), "mssql")


class Name(TypeDecorator[str]):
    """A text in an index: compared and sorted by the bytes of its UTF-8."""

    impl = String
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the type of a database."""
        if dialect.name in BINARY_DIALECTS:
            return dialect.type_descriptor(VARBINARY(NAME_BYTES))
        if dialect.name == "postgresql":
            return dialect.type_descriptor(String(NAME_BYTES, collation="C"))
        return dialect.type_descriptor(String(NAME_BYTES))

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any] | None:
        """Return the function that encodes a parameter, if the column holds bytes."""
        # MySQL accepts text for bytes. Its drivers escape text for each sql_mode, but not bytes.
        return _encoded if dialect.name == "mssql" else None

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        """Return the function that decodes a value, if the column holds bytes."""
        return _decoded if dialect.name in BINARY_DIALECTS else None


def _encoded(value: str | None) -> bytes | None:
    return None if value is None else value.encode()


def _decoded(value: Any) -> str | None:
    return None if value is None else value.decode() if isinstance(value, bytes) else str(value)


class OwnerDigest(TypeDecorator[str]):
    """An owner's digest, empty for no owner. Oracle has no empty text."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str:
        """Return what the column holds."""
        return value or _NO_OWNER

    def process_result_value(self, value: Any | None, dialect: Dialect) -> str:
        """Return the digest."""
        return "" if value == _NO_OWNER else str(value)


class Hashes(TypeDecorator[bytes]):
    """Bytes as text (base64), because MySQL's drivers do not escape bytes for each sql_mode."""

    impl = _text()
    cache_ok = True

    def process_bind_param(self, value: bytes | None, dialect: Dialect) -> str | None:
        """Return what the column holds."""
        return None if value is None else hashes_text(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> bytes:
        """Return the bytes; for a damaged text, no bytes, which callers notice by the length."""
        try:
            return base64.b64decode(value or "", validate=True)
        except (binascii.Error, ValueError):
            return b""


def hashes_text(value: bytes) -> str:
    """Return bytes as a column of `Hashes` stores them."""
    return base64.b64encode(value).decode()


_NO_OWNER: Final = "none"


def _number() -> Any:
    return BigInteger().with_variant(Integer(), "sqlite")


def _name(name: str, *, nullable: bool = True) -> Column[Any]:
    return Column(name, Name(), nullable=nullable)


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


@dataclass(frozen=True)
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
            cache of owners is valid while `version` is unchanged; it is 0 before the first owner.
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


@lru_cache(64)
def tables_in(schema: str | None) -> Tables:
    """Return the tables in a schema; None is the connection's own.

    The same objects each time, because SQLAlchemy caches compiled statements by their tables.
    """
    metadata, ledger = MetaData(schema=schema), MetaData(schema=schema)

    def table(name: str, *columns: Any, among: MetaData = metadata) -> Table:
        return Table(f"{PREFIX}{name}", among, *columns, **_OPTIONS)

    texts = {"old_memory", "new_memory", "created_at", "updated_at"}
    required = {"id", "memory_id", "event"}
    history: list[Any] = [Column("seq", _number(), primary_key=True, autoincrement=False)]
    for name in COLUMNS:
        if name == "is_deleted":
            history.append(Column(name, SmallInteger(), nullable=False))
        elif name in texts:
            history.append(Column(name, _text()))
        else:
            history.append(_name(name, nullable=name not in required))
    history.append(Column("occurred_at", BigInteger()))
    history += map(_name, SCOPES)
    history += [Column(name, _text()) for name in ("context", "cause", "long_names")]
    return Tables(
        metadata,
        ledger,
        table(
            "records",
            *history,
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
            Column("span", _number(), primary_key=True, autoincrement=False),
            Column("first_time", BigInteger()),
            Column("last_time", BigInteger()),
            Column("events", SmallInteger(), nullable=False),
            Column("has_undated", SmallInteger(), nullable=False),
        ),
        table(
            "messages",
            Column("seq", _number(), primary_key=True, autoincrement=False),
            _name("id", nullable=False),
            _name("session_scope", nullable=False),
            *(Column(name, _text()) for name in ("role", "content", "name", "created_at")),
            Column("long_scope", _text()),
            Index(f"{PREFIX}messages_scope", "session_scope", "seq"),
        ),
        table(
            "owners",
            Column("memory_id", Name(), primary_key=True),
            *map(_name, SCOPES),
            Column("long_names", _text()),
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
            Column("actor_id", _text()),
            Column("process_id", BigInteger()),
            Column("host", _text()),
            Column("database_role", _text()),
            Column("arguments", _text()),
            Column("records", BigInteger(), nullable=False),
            Column("messages", BigInteger(), nullable=False),
        ),
        table(
            "wrapping_keys",
            Column("id", String(64), primary_key=True),
            Column("master", _text(), nullable=False),
            Column("wrapped", _text(), nullable=False),
        ),
        table(
            "data_keys",
            Column("id", String(64), primary_key=True),
            Column("owner", OwnerDigest(64), nullable=False),
            *(Column(name, String(64)) for name in SCOPES),
            Column("wrapping_key", String(64), nullable=False),
            Column("wrapped", _text(), nullable=False),
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
        table(
            "ledger",
            Column("number", _number(), Identity(), primary_key=True),
            Column("first", BigInteger()),  # the place of its first leaf; NULL until it has one
            Column("kind", String(16), nullable=False),
            Column("size", BigInteger(), nullable=False),
            Column("hashes", Hashes(), nullable=False),
            Column("is_keyed", SmallInteger(), nullable=False),
            Column("names", _text(), nullable=False),
            Index(f"{PREFIX}ledger_places", "first"),
            Index(f"{PREFIX}ledger_kinds", "kind", "first"),
            among=ledger,
        ),
        table(
            "ledger_tiles",
            Column("level", BigInteger(), primary_key=True, autoincrement=False),
            Column("number", BigInteger(), primary_key=True, autoincrement=False),
            Column("hashes", Hashes(), nullable=False),
            among=ledger,
        ),
        table(
            "ledger_names",
            Column("key", BigInteger(), primary_key=True, autoincrement=False),
            Column("place", BigInteger(), primary_key=True, autoincrement=False),
            among=ledger,
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


TABLES: Final = tables_in(None)
