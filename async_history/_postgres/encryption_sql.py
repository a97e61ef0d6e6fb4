"""Queries whether a history in PostgreSQL is encrypted, or was."""

from typing import Final

IS_ENCRYPTED: Final = "SELECT EXISTS (SELECT FROM {schema}.wrapping_keys)"
HAS_CLEAR_INDEX: Final = """
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = $1 AND relname = 'history_clear'
)
"""
