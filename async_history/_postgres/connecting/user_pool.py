"""A user's pool, whose connections have no time limit of their own."""

from typing import Any, Final

_NO_END_S: Final = 1e8


class UserConnection:
    """A connection of a user's pool, without the pool's `command_timeout`.

    How long a statement may take is decided here: it depends on what is written, and VACUUM and the
    creation of an index have no limit.

    Args:
        given: the connection, as the pool gave it.
    """

    __slots__ = ("given",)

    def __init__(self, given: Any) -> None:
        self.given = given

    def __getattr__(self, name: str) -> Any:
        return getattr(self.given, name)

    async def execute(self, *arguments: Any, timeout: float = _NO_END_S) -> Any:  # noqa: ASYNC109
        return await self.given.execute(*arguments, timeout=timeout)

    async def fetch(self, *arguments: Any, timeout: float = _NO_END_S) -> Any:  # noqa: ASYNC109
        return await self.given.fetch(*arguments, timeout=timeout)

    async def fetchrow(self, *arguments: Any, timeout: float = _NO_END_S) -> Any:  # noqa: ASYNC109
        return await self.given.fetchrow(*arguments, timeout=timeout)

    async def fetchval(self, *arguments: Any, timeout: float = _NO_END_S) -> Any:  # noqa: ASYNC109
        return await self.given.fetchval(*arguments, timeout=timeout)


class UserPool:
    """A user's pool that gives each connection as a `UserConnection`, and takes it back.

    Args:
        given: the pool.
    """

    def __init__(self, given: Any) -> None:
        self.given = given

    def get_max_size(self) -> int:
        """Return the most connections."""
        return int(self.given.get_max_size())

    async def acquire(self, *, timeout: float) -> UserConnection:  # noqa: ASYNC109
        """Wait for a connection, and return it."""
        return UserConnection(await self.given.acquire(timeout=timeout))

    async def release(self, connection: UserConnection, *, timeout: float | None) -> None:  # noqa: ASYNC109
        """Give a connection back."""
        await self.given.release(connection.given, timeout=timeout)
