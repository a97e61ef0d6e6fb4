"""The history store for asyncio programs. Importing it loads no driver."""

from async_history._startup import interruption  # noqa: F401, I001 - first: Ctrl-C during the rest
from async_history._check import check_history
from async_history._core.checking.check_report import BrokenRecord, ChainFault, CheckReport
from async_history._core.manager import HistoryManager
from async_history._core.operations.erasures import Erasure
from async_history._core.operations.operations import OperationState, StoreOperation
from async_history._core.operations.progress import OpenProgress, Progress
from async_history._core.options import Durability, HistoryOptions, Journal
from async_history._core.public import show_as
from async_history._core.reading.filters import Order
from async_history._core.reading.follow import Follower
from async_history._core.reading.query import HistoryQuery, Page
from async_history._core.reading.timeline import MemoryDiff, Moment
from async_history._core.records.messages import Message
from async_history._core.records.owners import Owner
from async_history._core.records.recording import recording
from async_history._core.records.records import Event, HistoryRecord
from async_history._core.records.rows import Row
from async_history._core.removing.erase import ErasureReport
from async_history._core.removing.erase_request import Vacuuming
from async_history._core.removing.prune import PruneReport
from async_history._core.stats import HistoryStats, Severity, StoreWarning
from async_history._core.undoing.rollback import RollbackReport, RollbackStep
from async_history._core.undoing.rollback_plan import RollbackAction
from async_history._core.writing.writer_stats import WriterStats
from async_history._opening import open_history
from async_history._transfer.copy import CopyReport, copy_history
from async_history._transfer.json_lines import JsonLines, dump_lines
from async_history._transfer.sources import RecordSource
from async_history.errors import (
    CommitUnknown,
    CopyMismatch,
    CursorGone,
    Erased,
    HistoryClosed,
    HistoryConflict,
    HistoryError,
    IdConflict,
    InvalidInput,
    KeyMissing,
    MigrationError,
    NotProven,
    Overloaded,
    OwnerConflict,
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

__version__ = "0.1.0"

__all__ = [
    "BrokenRecord",
    "ChainFault",
    "CheckReport",
    "CommitUnknown",
    "CopyMismatch",
    "CopyReport",
    "CursorGone",
    "Durability",
    "Erased",
    "Erasure",
    "ErasureReport",
    "Event",
    "Follower",
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
    "Journal",
    "JsonLines",
    "KeyMissing",
    "MemoryDiff",
    "Message",
    "MigrationError",
    "Moment",
    "NotProven",
    "OpenProgress",
    "OperationState",
    "Order",
    "Overloaded",
    "Owner",
    "OwnerConflict",
    "Page",
    "Progress",
    "PruneReport",
    "RecordSource",
    "RollbackAction",
    "RollbackReport",
    "RollbackStep",
    "Row",
    "Severity",
    "StorageCorrupt",
    "StorageDenied",
    "StorageError",
    "StorageFull",
    "StorageLocked",
    "StorageMissing",
    "StorageReadOnly",
    "StorageRefused",
    "StorageUnreachable",
    "StoreOperation",
    "StoreWarning",
    "Vacuuming",
    "WriterStats",
    "WrongLoop",
    "check_history",
    "copy_history",
    "dump_lines",
    "open_history",
    "recording",
]

show_as(__name__, __all__, globals())
