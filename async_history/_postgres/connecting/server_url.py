"""The parts of a PostgreSQL URL."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, urlencode

POSTGRES_SCHEMA: Final = "async_history"
"""A schema of our own, because hosts such as Supabase publish `public` over HTTP."""


@dataclass(frozen=True, slots=True, repr=False)
class ServerUrl:
    """The parts of a URL.

    Attributes:
        user, password, database: None for asyncpg's defaults (PGUSER, a password file).
        hosts: hosts in asyncpg's form: `host`, `host:port`, `[::1]:port` or a socket's directory.
        ports: one for each host, if they are given separately from the hosts.
        parameters: other parameters for asyncpg.
        is_verified: whether to verify the server's certificate with this system's authorities.
        options: options of `PostgresHistoryManager`, and `table`.
    """

    user: str | None
    password: str | None
    database: str | None
    hosts: Sequence[str] = ()
    ports: Sequence[int] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    is_verified: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<{self.where}>"

    @property
    def where(self) -> str:
        """The user, the hosts and the database: the parts that a message may contain."""
        user = "" if self.user is None else f"{self.user}@"
        return f"postgresql://{user}{','.join(self.hosts)}/{self.database or ''}"

    def _dsn(self, hosts: Sequence[str], ports: Sequence[int]) -> str:
        user = "" if self.user is None else quote(self.user, safe="")
        if self.password is not None:
            user += f":{quote(self.password, safe='')}"
        # After a slash, asyncpg would take the empty name instead of PGDATABASE.
        database = "" if self.database is None else f"/{quote(self.database, safe='')}"
        query = dict(self.parameters)
        if hosts:
            query["host"] = ",".join(hosts)
        if ports:
            query["port"] = ",".join(map(str, ports))
        at = f"{user}@" if user else ""
        return f"postgresql://{at}{database}{'?' if query else ''}{urlencode(query)}"

    @property
    def dsns(self) -> list[str]:
        """URLs for asyncpg, one for each host; a single one if asyncpg must choose the host."""
        wanted = self.parameters.get("target_session_attrs")
        if len(self.hosts) < 2 or wanted == "prefer-standby":
            return [self._dsn(self.hosts, self.ports)]
        ports = [[port] for port in self.ports] or [[]] * len(self.hosts)
        return [self._dsn([host], port) for host, port in zip(self.hosts, ports, strict=True)]
