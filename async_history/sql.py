"""A history in MySQL, MariaDB, or any other database that SQLAlchemy supports."""

from async_history._core.public import show_as
from async_history._sql.manager import SqlHistoryManager
from async_history._sql.tables import TABLES

metadata = TABLES.metadata
"""The tables, for a program's own migrations (Alembic's `target_metadata`)."""
ledger_metadata = TABLES.ledger_metadata
"""The further tables of a history with a ledger."""

__all__ = ["SqlHistoryManager", "ledger_metadata", "metadata"]

show_as(__name__, ["SqlHistoryManager"], globals())
