"""The types of columns, which hold and compare the same values on every database."""

import base64
import binascii
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import VARBINARY, BigInteger, Column, Dialect, Integer, String, Text
from sqlalchemy.dialects.mssql import NVARCHAR
from sqlalchemy.dialects.mysql import LONGTEXT
from sqlalchemy.types import TypeDecorator, TypeEngine

from async_history._sql.names import NAME_BYTES
from async_history.errors import StorageCorrupt

BINARY_DIALECTS: Final = ("mysql", "mariadb", "mssql")
"""Databases that compare texts without case or trailing spaces, so that names must be bytes."""
_MYSQL_TEXT: Final = LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin")


def text_type() -> Any:
    """Return the type of texts of any length."""
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
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise StorageCorrupt("a name is not UTF-8: restore its row from a backup") from error
    return None if value is None else str(value)


_NO_OWNER: Final = "none"


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

    impl = text_type()
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


def number_type() -> Any:
    """Return the type of a primary key that is a position."""
    return BigInteger().with_variant(Integer(), "sqlite")


def name_column(name: str, *, nullable: bool = True) -> Column[Any]:
    """Return a column of names that an index may have."""
    return Column(name, Name(), nullable=nullable)
