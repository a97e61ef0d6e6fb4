"""PostgreSQL: the manager that `open_history` returns for a server, and other projects' tables."""

from async_history._core.public import show_as
from async_history._postgres.manager import PostgresHistoryManager
from async_history._transfer.foreign_table import ForeignTable

__all__ = ["ForeignTable", "PostgresHistoryManager"]

show_as(__name__, __all__, globals())
