"""What an open history in PostgreSQL is, and how it is used."""

from dataclasses import dataclass

from async_history._core.encryption.key_ring import KeyRing
from async_history._core.writing.writer_options import WriterOptions
from async_history._postgres.connecting.server_url import ServerUrl


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """The options of a `PostgresStore`.

    Attributes:
        where: the server, for messages.
        server: the pool's server; None with a user's pool.
        idle_s, retry_timeout_s, writer_options: see `PostgresHistoryManager`.
        keys: the master keys, if the history is encrypted.
        is_distributed: whether the tables are distributed over the nodes of a Citus cluster.
        has_ledger: whether the history has a ledger.
    """

    where: str
    server: ServerUrl | None
    schema_name: str
    idle_s: float | None
    retry_timeout_s: float
    writer_options: WriterOptions
    keys: KeyRing | None
    is_distributed: bool
    has_ledger: bool
