"""The options of `open_history`, for type checkers.

Each manager documents its options, and refuses options of other kinds of stores by name.
"""

from typing import Final, Literal, TypedDict, get_args

from async_history._core.encryption.key_ring import KeyRing

Durability = Literal["full", "normal"]
"""What an acknowledged record survives: "full" power loss, "normal" only the end of the process."""
DURABILITIES: Final[tuple[Durability, ...]] = get_args(Durability)
Journal = Literal["wal", "delete"]
"""A file's journal: a write-ahead log, or a rollback journal."""
JOURNALS: Final[tuple[Journal, ...]] = get_args(Journal)


class HistoryOptions(TypedDict, total=False):
    """The keyword options of `open_history`."""

    create: bool
    migrate: bool
    queue_records: int
    queue_bytes: int
    queue_timeout_s: float | None
    close_timeout_s: float
    keys: KeyRing | None
    ledger: bool

    # of a SQLite file
    journal: Journal
    durability: Durability
    lock_timeout_s: float

    # of PostgreSQL, and of SQLAlchemy's databases
    schema: str | None
    pool_size: int | None
    batch_records: int
    acquire_timeout_s: float | None
    retry_timeout_s: float

    # of PostgreSQL
    read_url: str | None
    statement_cache_size: int | None
    connection_idle_s: float | None
    connection_lifetime_s: float | None
