"""The connection that holds a process's advisory locks."""

from collections.abc import Callable, Sequence
from typing import Any, Final, Self

from async_history._postgres.connecting.connect import (
    Connection,
    connect_when_free,
    in_time,
    typed,
)
from async_history._postgres.connecting.pool_limits import PoolLimits
from async_history._postgres.connecting.pooler import is_pooled
from async_history._postgres.connecting.server_url import ServerUrl
from async_history._postgres.errors import DriverError
from async_history.errors import StorageReadOnly, StorageUnreachable

_RELEASE_AND_TRY: Final = """
SELECT number, pg_catalog.pg_advisory_unlock(number)
FROM pg_catalog.unnest(pg_catalog.string_to_array($1, ',')::bigint[]) AS released (number)
UNION ALL
SELECT number, pg_catalog.pg_try_advisory_lock(number)
FROM pg_catalog.unnest(pg_catalog.string_to_array($2, ',')::bigint[]) AS tried (number)
"""
"""Release locks, then try to take others: an Append plan runs its parts in order. The arguments are
text, because asyncpg would look up the type bigint[]."""
_KEEP_ALIVE: Final = """
SELECT pg_catalog.set_config('tcp_keepalives_idle', '10', false),
       pg_catalog.set_config('tcp_keepalives_interval', '10', false),
       pg_catalog.set_config('tcp_keepalives_count', '3', false),
       pg_catalog.pg_is_in_recovery()
"""
"""Otherwise the server would keep the locks of a lost machine for two hours."""


class _SocketConnection(Connection):
    """A connection with its socket."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        _, transport, *_ = arguments
        self.socket = transport.get_extra_info("socket")


class LockConnection:
    """A connection whose session holds advisory locks. Create one with `connect`.

    Attributes:
        connection: asyncpg's connection.
    """

    def __init__(self, connection: Any, statement: Any, where: str, timeout_s: float) -> None:
        self.connection = connection
        self._statement = statement
        self._where = where
        self._timeout_s = timeout_s

    @classmethod
    async def connect(cls, server: ServerUrl, limits: PoolLimits) -> Self | None:
        """Connect; return None behind a pooler, whose sessions keep no locks.

        Raises:
            StorageReadOnly: the server is a standby.
            StorageError: as `connect_when_free`.
        """
        timeout_s = limits.acquire_timeout_s
        if 0 in (limits.statement_cache_size, server.options.get("statement_cache_size")):
            return None  # as behind a pooler
        with typed(server.where):
            connection = await connect_when_free(
                server, timeout_s, connection_class=_SocketConnection
            )
            try:
                with in_time(connection, timeout_s):
                    if await is_pooled(connection):
                        connection.terminate()
                        return None
                    *_, is_standby = await connection.fetchrow(_KEEP_ALIVE)
                    if is_standby:
                        raise StorageReadOnly(
                            f"{server.where} is a standby, where processes that write take no "
                            "turns; name the primary, or all hosts and "
                            "target_session_attrs=read-write"
                        )
                    statement = await connection.prepare(_RELEASE_AND_TRY)
                    return cls(connection, statement, server.where, timeout_s)
            except BaseException:
                connection.terminate()
                raise

    async def release_and_try(
        self, released: Sequence[int], tried: Sequence[int]
    ) -> dict[int, bool]:
        """Release locks, then try to take others; return whether each of these was taken.

        Raises:
            StorageUnreachable: the server did not answer.
        """
        try:
            rows = await self._statement.fetch(
                ",".join(map(str, released)), ",".join(map(str, tried)), timeout=self._timeout_s
            )
        except DriverError as error:
            raise StorageUnreachable(f"{self._where} did not answer ({error})") from error
        return dict(rows[len(released) :])

    def when_terminated(self, call: Callable[[], None]) -> None:
        """Call a function on the loop when the connection is lost."""
        self.connection.add_termination_listener(lambda _: call())

    def terminate(self) -> None:
        """Close the connection at once; the server then releases its locks."""
        self.connection.terminate()

    @property
    def descriptor(self) -> int:
        """The descriptor of its socket; -1 if it is closed."""
        return int(self.connection.socket.fileno())
