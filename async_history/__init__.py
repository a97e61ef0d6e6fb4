"""The history store for asyncio programs. Importing it loads no driver."""

from async_history.checking import CheckReport, check_history
from async_history.errors import (
    CommitUnknown,
    CopyMismatch,
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
from async_history.following import Following
from async_history.json_lines import JsonLines, dump_lines
from async_history.manager import HistoryManager
from async_history.moving import CopyReport, copy_history
from async_history.opening import open_history
from async_history.options import Durability, HistoryOptions
from async_history.queries import HistoryQuery, Page
from async_history.records import Event, HistoryRecord, Message
from async_history.retention import Erasure, ErasureReport, PruneReport
from async_history.sources import RecordSource
from async_history.store import HistoryStats, StoreWarning
from async_history.timeline import MemoryDiff
from async_history.writer import WriterStats

__version__ = "0.1.0"

__all__ = [
    "CheckReport",
    "CommitUnknown",
    "CopyMismatch",
    "CopyReport",
    "CursorGone",
    "Durability",
    "Erasure",
    "ErasureReport",
    "Event",
    "Following",
    "HistoryClosed",
    "HistoryConflict",
    "HistoryError",
    "HistoryManager",
    "HistoryOptions",
    "HistoryQuery",
    "HistoryRecord",
    "HistoryStats",
    "IdConflict",
    "InvalidInput",
    "JsonLines",
    "MemoryDiff",
    "Message",
    "MigrationError",
    "Overloaded",
    "Page",
    "PruneReport",
    "RecordSource",
    "StorageCorrupt",
    "StorageDenied",
    "StorageError",
    "StorageFull",
    "StorageLocked",
    "StorageMissing",
    "StorageReadOnly",
    "StorageRefused",
    "StorageUnreachable",
    "StoreWarning",
    "WriterStats",
    "WrongLoop",
    "check_history",
    "copy_history",
    "dump_lines",
    "open_history",
]
