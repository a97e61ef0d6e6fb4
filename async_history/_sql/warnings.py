"""Warnings about settings that can lose acknowledged records (MySQL, MariaDB), or slow reads
(PostgreSQL)."""

from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import text

from async_history._core.stats import StoreWarning

SETTINGS: Final = text(
    "SELECT @@innodb_flush_log_at_trx_commit, @@log_bin, @@sync_binlog, @@innodb_doublewrite"
)
"""MySQL reports `innodb_doublewrite` as a word, MariaDB as a number."""
JIT: Final = text(
    "SELECT CAST(pg_catalog.current_setting('jit') AS pg_catalog.bool)"
    " AND pg_catalog.pg_jit_available()"
)
_OFF: Final = ("0", "OFF")


def warnings_of(flush: int, has_log: Any, sync: int, doublewrite: Any) -> Iterator[StoreWarning]:
    """Yield the warnings, from the row of `SETTINGS`."""
    if flush != 1:
        crash = "its machine" if flush == 2 else "the server or its machine"
        yield StoreWarning(
            "asynchronous-commit",
            "critical",
            f"innodb_flush_log_at_trx_commit is {flush}: a crash of {crash} can lose what was "
            "acknowledged last; set it to 1",
        )
    if str(has_log) not in _OFF and sync != 1:
        yield StoreWarning(
            "binary-log-not-synced",
            "critical",
            f"log_bin is on and sync_binlog is {sync}: a crash of the server's machine can lose "
            "what was acknowledged last; set it to 1",
        )
    if str(doublewrite) in _OFF:
        yield StoreWarning(
            "doublewrite-off",
            "critical",
            "innodb_doublewrite is off: a crash of the server's machine can damage all data, "
            "unless its file system writes whole pages",
        )


def jit_warning(is_compiling: bool) -> Iterator[StoreWarning]:
    """Yield the warning, from the value of `JIT`."""
    if is_compiling:
        yield StoreWarning(
            "jit",
            "warning",
            "the sessions of your engine have jit on: the server compiles reads of a large "
            "history, which takes seconds; make the engine with "
            "connect_args={'server_settings': {'jit': 'off'}}",
        )
