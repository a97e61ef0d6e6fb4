"""SQLite: the manager that `open_history` returns for a file, and the adoption of old files."""

from async_history._core.options import Durability, Journal
from async_history._sqlite.manager import SQLiteHistoryManager
from async_history._sqlite.schema.adopt import AdoptionReport, adopt

__all__ = ["AdoptionReport", "Durability", "Journal", "SQLiteHistoryManager", "adopt"]
