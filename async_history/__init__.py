"""The history store for asyncio programs. Importing it loads no driver."""

from async_history.errors import (
    CommitUnknown,
    CursorGone,
    HistoryClosed,
    HistoryConflict,
    HistoryError,
    IdConflict,
    InvalidInput,
    MigrationError,
    Overloaded,
    StorageCorrupt,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageLocked,
    StorageMissing,
    StorageReadOnly,
    StorageRefused,
    StorageUnreachable,
    WrongLoop,
)
from async_history.manager import HistoryManager, HistoryStats
from async_history.opening import open_history
from async_history.queries import HistoryQuery, Page
from async_history.records import Event, HistoryRecord, Message
from async_history.writer import WriterStats

__version__ = "0.1.0"

__all__ = [
    "CommitUnknown",
    "CursorGone",
    "Event",
    "HistoryClosed",
    "HistoryConflict",
    "HistoryError",
    "HistoryManager",
    "HistoryQuery",
    "HistoryRecord",
    "HistoryStats",
    "IdConflict",
    "InvalidInput",
    "Message",
    "MigrationError",
    "Overloaded",
    "Page",
    "StorageCorrupt",
    "StorageDenied",
    "StorageError",
    "StorageFull",
    "StorageLocked",
    "StorageMissing",
    "StorageReadOnly",
    "StorageRefused",
    "StorageUnreachable",
    "WriterStats",
    "WrongLoop",
    "open_history",
]
