"""SQLite: the manager that `open_history` returns for a file, and the adoption of old files."""

from async_history._core.operations.progress import StepProgress
from async_history._core.options import Durability, Journal
from async_history._core.public import show_as
from async_history._sqlite.manager import SQLiteHistoryManager
from async_history._sqlite.schema.adopt import AdoptionReport, adopt

__all__ = [
    "AdoptionReport",
    "Durability",
    "Journal",
    "SQLiteHistoryManager",
    "StepProgress",
    "adopt",
]

show_as(__name__, __all__, globals())
