"""Warnings about server settings that can silently lose, hide or slow down records."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from async_history._core.stats import StoreWarning

STATE: Final = """
SELECT pg_catalog.current_setting('synchronous_commit'),
       pg_catalog.current_setting('synchronous_standby_names'),
       pg_catalog.current_setting('fsync'),
       pg_catalog.current_setting('full_page_writes'),
       pg_catalog.current_setting('jit')::pg_catalog.bool AND pg_catalog.pg_jit_available(),
       relname::pg_catalog.text,
       relpersistence = 'u',
       pg_catalog.row_security_active(pg_class.oid),
       EXISTS (
           SELECT FROM pg_catalog.pg_policy
           WHERE polrelid = pg_class.oid AND polpermissive AND polcmd IN ('r', '*')
               AND EXISTS (
                   SELECT FROM pg_catalog.unnest(polroles) AS role
                   WHERE role = 0::pg_catalog.oid
                       OR pg_catalog.pg_has_role(role, 'USAGE'::pg_catalog.text)
               )
       )
FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace
WHERE nspname = $1 AND relname IN ('history', 'messages')
ORDER BY 1
"""
"""For each table: settings (which a role, a database or a URL may set), whether a crash empties the
table, whether row-level security applies to this role, and whether a policy lets it see rows."""
_OF_TABLE: Final = 5


def warnings_of(
    written: Sequence[Sequence[Any]], read: Sequence[Sequence[Any]]
) -> tuple[StoreWarning, ...]:
    """Return the warnings, from the rows of `STATE` on the servers for writes and for reads."""
    warnings = [warning for row in written[:1] for warning in _of_settings(*row[:_OF_TABLE])]
    for row in (*written, *read):
        warnings += _of_table(*row[_OF_TABLE:])
    return tuple(dict.fromkeys(warnings))


def _of_settings(
    durability: str, standbys: str, fsync: str, full_page_writes: str, is_compiling: bool
) -> Iterator[StoreWarning]:
    if durability == "off":
        yield StoreWarning(
            "asynchronous-commit",
            "critical",
            "synchronous_commit is off: a crash of the server can lose what was acked last",
        )
    if durability == "local":
        yield StoreWarning(
            "local-commit",
            "critical" if standbys else "warning",
            "synchronous_commit is local: an ack does not wait for a synchronous standby, and a "
            "failover can lose what was acked last",
        )
    if fsync == "off":
        yield StoreWarning(
            "fsync-off",
            "critical",
            "the server's fsync is off: a crash of its machine can lose or damage all data",
        )
    if full_page_writes == "off":
        yield StoreWarning(
            "full-page-writes-off",
            "critical",
            "the server's full_page_writes is off: a crash of its machine can damage all data, "
            "unless its file system writes whole pages",
        )
    if is_compiling:
        yield StoreWarning(
            "jit",
            "warning",
            "the sessions of your pool have jit on: the server compiles reads of a large history, "
            "which takes seconds; make the pool with server_settings={'jit': 'off'}",
        )


def _of_table(
    name: str, is_unlogged: bool, is_secured: bool, sees_any: bool
) -> Iterator[StoreWarning]:
    if is_unlogged:
        yield StoreWarning(
            "unlogged-table",
            "critical",
            f"the table {name} is UNLOGGED: a crash of the server empties it; make it LOGGED",
        )
    if is_secured and not sees_any:
        yield StoreWarning(
            "row-security",
            "critical",
            f"row-level security hides every row of the table {name} from this role: nothing is "
            "found. Give the role a policy, or BYPASSRLS",
        )
    elif is_secured:
        yield StoreWarning(
            "row-security",
            "warning",
            f"row-level security holds for this role on the table {name}: what its policies hide "
            "is not found, and an id that is taken there is not noticed",
        )
