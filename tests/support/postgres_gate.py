"""A gate in a PostgreSQL history, at which statements wait after they have taken their snapshot."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

_GATE: Final = """
CREATE FUNCTION {schema}.wait() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NEW; END';
CREATE TRIGGER wait BEFORE INSERT ON {schema}.history FOR EACH ROW
    WHEN (NEW.role = 'late') EXECUTE FUNCTION {schema}.wait();
CREATE TRIGGER wait BEFORE INSERT ON {schema}.messages FOR EACH ROW
    WHEN (NEW.role = 'late') EXECUTE FUNCTION {schema}.wait()
"""
"""Rows of this role wait while the gate is shut, after their statement has taken its snapshot."""


@contextlib.asynccontextmanager
async def shut(admin: Any, schema: str) -> AsyncIterator[None]:
    """Let rows of the role `late` wait in the body."""
    await admin.execute(_GATE.format(schema=schema))
    await admin.execute("SELECT pg_advisory_lock(7)")
    try:
        yield
    finally:
        await admin.execute("SELECT pg_advisory_unlock(7)")
