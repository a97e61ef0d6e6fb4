"""The connection that holds a process's advisory locks."""

from collections.abc import Sequence
from typing import Any, Final, Self

from async_history._postgres.connect import Connection, connect_to_any, in_time, typed
from async_history._postgres.pooler import is_pooled
from async_history._postgres.server_url import ServerUrl
from async_history.errors import StorageReadOnly

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
"""Otherwise the server would keep the locks of a machine that is gone for two hours."""


class _SocketConnection(Connection):
    """A connection with its socket."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        _, transport, *_ = arguments
        self.socket = transport.get_extra_info("socket")


class LockConnection:
    """A connection whose session holds advisory locks. Create one with `connect`.

    Attributes:
        connection: asyncpg's.
    """

    def __init__(self, connection: Any, statement: Any) -> None:
        self.connection = connection
        self._statement = statement

    @classmethod
    async def connect(cls, server: ServerUrl, timeout_s: float) -> Self | None:
        """Connect; return None where a pooler, whose sessions keep no locks, is in between.

        Raises:
            StorageReadOnly: the server is a standby.
            StorageError: as `connect_to_any`.
        """
        with typed(server.where):
            connection = await connect_to_any(
                server,
                statement_cache_size=0,
                timeout=timeout_s,
                connection_class=_SocketConnection,
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
                    return cls(connection, await connection.prepare(_RELEASE_AND_TRY))
            except BaseException:
                connection.terminate()
                raise

    async def release_and_try(
        self, released: Sequence[int], tried: Sequence[int], timeout_s: float
    ) -> dict[int, bool]:
        """Release locks, then try to take others; return whether each of these was taken."""
        rows = await self._statement.fetch(
            ",".join(map(str, released)), ",".join(map(str, tried)), timeout=timeout_s
        )
        return dict(rows[len(released) :])

    def terminate(self) -> None:
        """Close the connection at once; the server then releases its locks."""
        self.connection.terminate()

    @property
    def descriptor(self) -> int:
        """The descriptor of its socket; -1 where it is closed."""
        return int(self.connection.socket.fileno())
