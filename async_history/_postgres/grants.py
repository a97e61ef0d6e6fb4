# mypy: disable-error-code=import-untyped
"""The least privileges that a role needs on a history's tables, as SQL statements.

A level includes the one below it. Row-level security limits roles that may see only the records of
one owner: see `Grants.only`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from async_history._core.records.owners import SCOPES
from async_history._postgres.connecting.connect import connected
from async_history._postgres.connecting.table_locks import retry_while_locked
from async_history._postgres.connecting.url import server_url
from async_history._postgres.schema import quoted
from async_history._postgres.schema.migrations import SWITCH_WITHIN_S
from async_history.errors import InvalidInput, StorageMissing

Level = Literal["reader", "writer", "operator"]
"""A reader reads. A writer also records, saves messages, gives owners and undoes changes. An
operator also removes."""

LEVELS: Final[Sequence[Level]] = get_args(Level)
_KEYS: Final = ("encryption", "wrapping_keys", "data_keys")
"""The tables of an encrypted history. In others they are empty, and the privileges harmless."""
_READ: Final = ("history", "messages", "owners", "operations", "migrations", *_KEYS)
_WRITES: Final[Mapping[str, str]] = {
    "history": "INSERT, UPDATE",
    "messages": "INSERT, DELETE",
    "owners": "INSERT, UPDATE",
    "owners_state": "SELECT, UPDATE",
    "erased": "SELECT",
    "operations": "INSERT, UPDATE (ended_at, error, records, messages)",
    "data_keys": "INSERT, UPDATE (uses)",
}
_OPERATES: Final[Mapping[str, str]] = {
    "history": "DELETE, TRUNCATE",
    "messages": "UPDATE (content), TRUNCATE",
    "owners": "DELETE, TRUNCATE",
    "erased": "INSERT, UPDATE",
    "operations": "UPDATE (actor_id)",
    "encryption": "UPDATE",
    "data_keys": "UPDATE (erased, wrapping_key, wrapped), DELETE",
    "wrapping_keys": "INSERT, DELETE",
}
_LEDGER: Final[Mapping[Level, Mapping[str, str]]] = {
    "reader": {
        "history_ledger": "SELECT",
        "history_ledger_tiles": "SELECT",
        "history_ledger_names": "SELECT",
    },
    "writer": {"history_ledger": "INSERT"},
    "operator": {
        "history_ledger": "UPDATE (first, hashes, names)",
        "history_ledger_tiles": "INSERT, UPDATE",
        "history_ledger_names": "INSERT, DELETE",
    },
}
"""Privileges in a history with a ledger. Only an operator may place leaves."""
_RIGHTS: Final[Mapping[Level, Sequence[Mapping[str, str]]]] = {
    "reader": (dict.fromkeys(_READ, "SELECT"),),
    "writer": (dict.fromkeys(_READ, "SELECT"), _WRITES),
    "operator": (dict.fromkeys(_READ, "SELECT"), _WRITES, _OPERATES),
}
_OF_ONE_OWNER: Final = ("history", "owners")
"""The tables whose rows have an owner."""
_STATE: Final = """
SELECT
    EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $2),
    pg_catalog.array_agg(relname::pg_catalog.text),
    pg_catalog.array_agg(relname::pg_catalog.text) FILTER (WHERE relrowsecurity)
FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace
WHERE nspname = $1 AND relkind IN ('r', 'p')
"""
_SHUT_OUT: Final = """
SELECT DISTINCT CASE grantee
    WHEN 0::pg_catalog.oid THEN 'PUBLIC' ELSE rolname::pg_catalog.text END AS role
FROM pg_catalog.pg_class AS shown
JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace
CROSS JOIN pg_catalog.aclexplode(relacl) LEFT JOIN pg_catalog.pg_roles ON pg_roles.oid = grantee
WHERE nspname = $1 AND relname = ANY($2::pg_catalog.text[]) AND grantee <> relowner
    AND rolname IS DISTINCT FROM $3 AND NOT coalesce(rolsuper OR rolbypassrls, false)
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_policy
        WHERE polrelid = shown.oid
            AND (grantee = ANY(polroles) OR 0::pg_catalog.oid = ANY(polroles))
    )
ORDER BY role
"""
"""The roles with privileges, but without a policy, which row-level security would lock out."""


def checked_level(name: str) -> Level:
    """Return the level with a name.

    Raises:
        InvalidInput: there is no such level.
    """
    for level in LEVELS:
        if level == name:
            return level
    raise InvalidInput(f"a role is one of {', '.join(LEVELS)}, not {name!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grants:
    """The privileges to grant to a role.

    Args:
        role: its name.
        level: see `Level`.
        only: an owner's scope, such as "user_id". The role then sees only the records whose owner
            has this scope's value from the setting `async_history.user_id`, and no messages or
            operations.

    Raises:
        InvalidInput: the role's name or the scope is not valid, or `only` is not for a reader.
    """

    role: str
    level: Level
    only: str | None = None

    def __post_init__(self) -> None:
        quoted(self.role, "role")
        if self.only is None:
            return
        if self.only not in SCOPES:
            raise InvalidInput(f"an owner has {', '.join(SCOPES)}, not {self.only!r}")
        if self.level != "reader":
            raise InvalidInput(
                f"a {self.level} records for all owners: only a reader can be kept to one"
            )

    def statements(self, schema: str, tables: Sequence[str], secured: Sequence[str]) -> list[str]:
        """Return the statements that revoke the role's privileges, then grant the new ones.

        Args:
            schema: the schema of the tables.
            tables: the existing tables.
            secured: the tables with row-level security.
        """
        role, place = quoted(self.role, "role"), quoted(schema)
        sql = [
            f"REVOKE ALL ON ALL TABLES IN SCHEMA {place} FROM {role};",
            f"GRANT USAGE ON SCHEMA {place} TO {role};",
        ]
        rights = _RIGHTS[self.level]
        if "history_ledger" in tables:
            for level in LEVELS[: LEVELS.index(self.level) + 1]:
                rights = (*rights, _LEDGER[level])
        if self.only is not None:
            sql += [
                f"ALTER TABLE {place}.{table} ENABLE ROW LEVEL SECURITY;"
                for table in _OF_ONE_OWNER
                if table not in secured
            ]
            rights = (dict.fromkeys((*_OF_ONE_OWNER, "migrations", *_KEYS), "SELECT"),)
        for granted in rights:
            for table, privileges in granted.items():
                sql.append(f"GRANT {privileges} ON {place}.{table} TO {role};")
        for table in {table: None for granted in rights for table in granted}:
            if self.only is not None and table in _OF_ONE_OWNER:
                shown = f"pg_catalog.current_setting('async_history.{self.only}', true)"
                sql += _policy(place, table, role, f"{self.only} = {shown}")
            elif table in secured or table in _OF_ONE_OWNER:
                sql += _policy(place, table, role, "true")
        return sql


def _policy(place: str, table: str, role: str, condition: str) -> list[str]:
    """Return the statements that create a role's policy, named after the role."""
    return [
        f"DROP POLICY IF EXISTS {role} ON {place}.{table};",
        f"CREATE POLICY {role} ON {place}.{table} TO {role} USING ({condition});",
    ]


async def grant(
    url: str,
    schema: str,
    grants: Grants,
    *,
    is_dry_run: bool,
    switch_within_s: float = SWITCH_WITHIN_S,
) -> list[str]:
    """Grant privileges to a role in one transaction, unless it is a dry run; return the statements.

    Creating a policy needs a lock that waits for all who use the table, while others wait for it.
    So it waits a tenth of a second at a time.

    Args:
        switch_within_s: seconds to try to get that lock.

    Raises:
        InvalidInput: there is no such role, or other roles would be locked out.
        StorageMissing: the tables do not exist, or have an earlier version.
        StorageLocked: others keep a table locked.
        StorageError: the server can't be reached, or refuses this.
    """
    async with connected(server_url(url)) as connection:
        statements = await _statements(connection, schema, grants)

        async def run() -> None:
            for sql in statements:
                await connection.execute(sql)

        if not is_dry_run:
            await retry_while_locked(
                connection,
                run,
                within_s=switch_within_s,
                if_locked=f"other transactions keep the tables of schema {schema!r} locked, so "
                "that no policy can be created; nothing was changed. End them (pg_stat_activity), "
                "and grant again",
            )
        return statements


async def _statements(connection: Any, schema: str, grants: Grants) -> list[str]:
    ((has_role, tables, secured),) = await connection.fetch(_STATE, schema, grants.role)
    if not {*_READ, *_WRITES} <= set(tables or ()):
        raise StorageMissing(
            f"the tables of this version are not in schema {schema!r}: migrate it first"
        )
    if not has_role:
        name = quoted(grants.role, "role")
        raise InvalidInput(f"there is no role {grants.role!r}: CREATE ROLE {name} LOGIN first")
    if grants.only is not None:
        newly = sorted(set(_OF_ONE_OWNER) - set(secured or ()))
        shut_out = [
            role for (role,) in await connection.fetch(_SHUT_OUT, schema, newly, grants.role)
        ]
        if shut_out:
            raise InvalidInput(
                "row-level security, which a reader of one owner needs, would hide all records "
                f"from {', '.join(shut_out)}: first grant each of them what it needs by this "
                "command, which makes its policy, or take its rights"
            )
    return grants.statements(schema, tables, secured or ())
