"""The SQLite backend: it opens a file or a database in memory, and checks its keys."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from async_history._core.concurrency.cancellation import to_the_end
from async_history._core.concurrency.commit_signal import CommitSignal
from async_history._core.encryption.key_ring import KeyRing
from async_history._core.encryption.store_encryption import OPEN_WITH_KEYS
from async_history._core.options import Durability, Journal
from async_history._core.writing.writer_options import WriterOptions
from async_history._sqlite.connecting.errors import (
    typed_errors,
)
from async_history._sqlite.key_statements import HAS_KEY_TABLES, HAS_KEYS
from async_history._sqlite.ledger import HAS_LEDGER
from async_history._sqlite.pool import ConnectionPool
from async_history._sqlite.store import SQLiteStore
from async_history.errors import InvalidInput, KeyMissing, MigrationError

T = TypeVar("T")

_STATE: Final = f"SELECT (SELECT encoding FROM pragma_encoding), {HAS_KEY_TABLES}, {HAS_LEDGER}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SQLiteBackend:
    """A SQLite file, or a database in memory that lives as long as its store.

    `path` is absolute, None for memory. The other fields are the arguments of
    `SQLiteHistoryManager`.
    """

    path: Path | None
    create: bool
    migrate: bool
    journal: Journal
    durability: Durability
    lock_timeout_s: float
    ledger: bool
    writer_options: WriterOptions
    keys: KeyRing | None = None

    @property
    def system(self) -> str:
        """The name of the database system."""
        return "sqlite"

    @property
    def where(self) -> str:
        """The store's name in messages."""
        return "the history in memory" if self.path is None else str(self.path)

    @property
    def store_name(self) -> tuple[str, ...] | None:
        """The identity of the file in this process; None for a database in memory."""
        return None if self.path is None else ("file", str(self.path))

    def new_locks(self) -> None:
        """Return None: the file's name is enough to lock it between processes."""

    async def open(self, committed: CommitSignal, ended: Callable[[], None]) -> "SQLiteStore":
        """Open the file; with `migrate`, adopt and index it first."""
        pool = ConnectionPool(
            self.path,
            journal=self.journal,
            durability=self.durability,
            lock_timeout_s=self.lock_timeout_s,
            ledger=self.ledger,
        )
        try:
            if self.migrate:
                await pool.open(create=self.create)
                is_prepared = True
            else:
                is_prepared = await pool.open_unchanged(create=self.create)
            with typed_errors(pool.where):
                ((encoding, is_encrypted, has_ledger),) = await pool.fetch(_STATE, {})
                if is_encrypted:
                    ((is_encrypted,),) = await pool.fetch(HAS_KEYS, {})
            self._require_keys(encoding, is_encrypted=bool(is_encrypted))
        except BaseException:
            await to_the_end(pool.close())
            raise
        store = SQLiteStore(
            pool,
            committed,
            ended,
            self.writer_options if is_prepared else None,
            is_utf16=encoding != "UTF-8",
            keys=self.keys,
            has_ledger=bool(has_ledger),
        )
        if store.encryption is not None:
            try:
                if self.migrate:
                    await store.create_key_tables()
                await store.encryption.open()
            except BaseException:
                await to_the_end(store.aclose(self.lock_timeout_s))
                raise
        return store

    def _require_keys(self, encoding: str, *, is_encrypted: bool) -> None:
        if self.keys is None:
            if is_encrypted:
                raise KeyMissing("", f"{self.where} {OPEN_WITH_KEYS}")
        elif encoding != "UTF-8":
            raise InvalidInput(
                f"{self.where} is in UTF-16, which is not encrypted: copy the history into a new "
                "file (copy_history), which is in UTF-8"
            )
        elif not is_encrypted and not self.migrate:
            raise MigrationError(
                f"{self.where} is not encrypted, and migrate=False keeps it as it is; open it with "
                "migrate=True once, or without keys"
            )
