"""The parts of a backend, for authors of one: see "Writing a backend" in the documentation.

`Backend` and `Store` are the interface. The rest are the types that their parts take, return and
raise, and the logic that all backends share.
"""

from async_history._core.backend import Backend, Reader, Store, Writer
from async_history._core.concurrency.commit_signal import CommitSignal
from async_history._core.locking.locks import ProcessLocks
from async_history._core.manager import HistoryManager
from async_history._core.operations.operation_log import (
    OperationLog,
    OperationStatements,
    StatementOperationLog,
)
from async_history._core.operations.operations import (
    LogEntries,
    OperationEnd,
    StoreOperation,
    at_its_end,
)
from async_history._core.public import show_as
from async_history._core.reading.coalesce import CoalescedReads
from async_history._core.reading.cursors import Cursor, CursorCodec
from async_history._core.reading.filters import Filter, Order, has_owner_and_cause
from async_history._core.reading.follow_reads import FollowRead, FollowReader
from async_history._core.reading.query import PageRead, RowsRead, cut
from async_history._core.reading.timeline import (
    MemoryMoment,
    Moment,
    StatesReader,
    last_change_at,
    state_at,
    states_at,
)
from async_history._core.records.json_object import JsonObject
from async_history._core.records.messages import MESSAGES_KEPT, Message, message_from_row
from async_history._core.records.owners import Owner, without_scope
from async_history._core.records.recording import INDEXED_CAUSES, operation
from async_history._core.records.records import (
    COLUMNS,
    Event,
    HistoryRecord,
    MemoryState,
    columns_of,
)
from async_history._core.records.rows import (
    ROW_FIELDS,
    Row,
    details_from,
    details_of,
    record_of,
    row_of,
)
from async_history._core.records.values import parse_time
from async_history._core.removing.erase import EraseBackend, Residue
from async_history._core.removing.erase_request import Vacuuming
from async_history._core.removing.erase_transaction import (
    WHOLE,
    Columns,
    EraseTransaction,
    RecordRef,
    Texts,
)
from async_history._core.removing.prune import PruneCursor, PruneStep, prune_step
from async_history._core.removing.prune_request import PruneRequest
from async_history._core.removing.prune_transaction import (
    Candidate,
    Edge,
    PruneTransaction,
    PruneTries,
    prunable_alone,
)
from async_history._core.stats import HistoryStats, Measured, Severity, StoreWarning
from async_history._core.writing.additions import ids_of, ids_to_find, only_new_records, records_of
from async_history._core.writing.batch import BatchTransaction, commit_in_steps
from async_history._core.writing.commit_function import (
    CommitFunction,
    CommitTry,
    OutcomeUnknown,
    TryAgain,
)
from async_history._core.writing.erased_names import Name, earliest_begin, name_digest, names_in
from async_history._core.writing.message_buffers import Buffer, message_rows
from async_history._core.writing.new_submissions import owners_to_give, records_to_copy
from async_history._core.writing.submissions import (
    AddRecords,
    CopyRecords,
    GiveOwners,
    RestoreMemory,
    SaveMessages,
    Submission,
    UpdateMemory,
)
from async_history._core.writing.writer import GroupCommitWriter
from async_history._core.writing.writer_options import WriterOptions
from async_history._core.writing.writer_stats import WriterStats

__all__ = [
    "COLUMNS",
    "INDEXED_CAUSES",
    "MESSAGES_KEPT",
    "ROW_FIELDS",
    "WHOLE",
    "AddRecords",
    "Backend",
    "BatchTransaction",
    "Buffer",
    "Candidate",
    "CoalescedReads",
    "Columns",
    "CommitFunction",
    "CommitSignal",
    "CommitTry",
    "CopyRecords",
    "Cursor",
    "CursorCodec",
    "Edge",
    "EraseBackend",
    "EraseTransaction",
    "Event",
    "Filter",
    "FollowRead",
    "FollowReader",
    "GiveOwners",
    "GroupCommitWriter",
    "HistoryManager",
    "HistoryRecord",
    "HistoryStats",
    "JsonObject",
    "LogEntries",
    "Measured",
    "MemoryMoment",
    "MemoryState",
    "Message",
    "Moment",
    "Name",
    "OperationEnd",
    "OperationLog",
    "OperationStatements",
    "Order",
    "OutcomeUnknown",
    "Owner",
    "PageRead",
    "ProcessLocks",
    "PruneCursor",
    "PruneRequest",
    "PruneStep",
    "PruneTransaction",
    "PruneTries",
    "Reader",
    "RecordRef",
    "Residue",
    "RestoreMemory",
    "Row",
    "RowsRead",
    "SaveMessages",
    "Severity",
    "StatementOperationLog",
    "StatesReader",
    "Store",
    "StoreOperation",
    "StoreWarning",
    "Submission",
    "Texts",
    "TryAgain",
    "UpdateMemory",
    "Vacuuming",
    "Writer",
    "WriterOptions",
    "WriterStats",
    "at_its_end",
    "columns_of",
    "commit_in_steps",
    "cut",
    "details_from",
    "details_of",
    "earliest_begin",
    "has_owner_and_cause",
    "ids_of",
    "ids_to_find",
    "last_change_at",
    "message_from_row",
    "message_rows",
    "name_digest",
    "names_in",
    "only_new_records",
    "operation",
    "owners_to_give",
    "parse_time",
    "prunable_alone",
    "prune_step",
    "record_of",
    "records_of",
    "records_to_copy",
    "row_of",
    "state_at",
    "states_at",
    "without_scope",
]

show_as(__name__, __all__, globals())
