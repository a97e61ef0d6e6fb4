"""The replacement of mem0's `SQLiteManager`: it submits everything to the running operation."""

import functools
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from async_history._core.operations.operations import new_operation
from async_history._core.records.new_records import new_id, storable_record
from async_history._core.records.records import DETAILS
from async_history._core.records.values import now_text
from async_history._core.writing.new_submissions import checked_messages, checked_records
from async_history._core.writing.submissions import AddRecords
from async_history.blocking._sanitize import Sanitizer, complete_records, message_as_given
from async_history.errors import HistoryError, InvalidInput
from async_history.mem0._add_history import AddHistory
from async_history.mem0._operation import Operation, Records, current
from async_history.mem0._read_connection import ReadConnection
from async_history.mem0._tracing import in_trace
from async_history.mem0._vectors.payloads import Payload, with_details


class Recorder(AddHistory):
    """Replaces mem0's `SQLiteManager`: submits everything to the current operation.

    Outside an operation, a write call starts one in the background, on the running loop. `aclose`
    waits for it, and its failure is logged.
    """

    is_resetting = False
    """Whether mem0 is resetting. Up to 2.0.6 it drops its table through `connection`."""

    def __init__(
        self,
        db_path: str,
        store_name: tuple[str, ...] | None,
        begin: Callable[["Recorder", Callable[[], None]], None],
    ) -> None:
        self.db_path = db_path
        self._read_connection = ReadConnection(store_name)
        self._start_in_background = begin

    @property
    def connection(self) -> sqlite3.Connection | None:
        """A connection to the file, for reading; None without a file, and after closing."""
        return None if self.is_resetting else self._read_connection.get()

    def close_connection(self) -> None:
        """Close `connection`."""
        self._read_connection.close()

    @property
    def operation(self) -> Operation | None:
        """The operation of this memory that this task or thread belongs to."""
        operation = current.get()
        return operation if operation is not None and operation.recorder is self else None

    def require_operation(self) -> Operation:
        """Return the operation that this task or thread belongs to, or raise."""
        operation = self.operation
        if operation is None:
            raise HistoryError(
                "mem0's history was called outside of an operation of AsyncMemory; use "
                "`await memory.history(memory_id)`, or the manager itself"
            )
        return operation

    def batch_add_history(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Submit many changes, all or none, completed with the operation's data."""
        operation = self.operation
        if records and operation is not None:
            records = complete_records(records, operation.metadata, operation.messages)
        if records:
            self._record(records)

    def _record(self, changes: Sequence[Mapping[str, Any]]) -> None:
        operation = self.operation
        if operation is not None:
            _send(operation, *to_submit(changes, operation.payloads))
            return
        with in_trace():  # records made in the background have this cause too
            call, records = to_submit(changes, {})
        self._start_in_background(self, lambda: _send(self.require_operation(), call, records))

    def get_history(self, memory_id: str) -> list[dict[str, Any]]:
        """Return the records that the operation read before it called mem0."""
        return list(self.require_operation().history)

    def save_messages(self, messages: Sequence[Mapping[str, Any]], session_scope: str) -> None:
        """Submit messages for a session scope's buffer."""
        if self.operation is None:
            self._start_in_background(
                self, functools.partial(self.save_messages, messages, session_scope)
            )
            return
        operation = self.require_operation()
        operation.begin_change()
        with Sanitizer() as sanitizer:
            to_store = [sanitizer.message(message) for message in messages]
            scope = sanitizer.text("session_scope", session_scope)
        if scope and to_store:
            operation.submit(
                lambda: operation.manager.store.writer.submit(checked_messages(to_store, scope))
            )

    def get_last_messages(self, session_scope: str, limit: int = 10) -> list[dict[str, Any]]:
        """Return the records that the operation read before it called mem0."""
        return list(self.require_operation().last_messages[-limit:]) if limit else []

    def reset(self) -> None:
        """Submit a reset."""
        if self.operation is None:
            self._start_in_background(self, self.reset)
            return
        operation = self.require_operation()
        operation.begin_change()
        operation.has_reset = True
        operation.submit(lambda: operation.manager.store.reset(new_operation("reset")))

    def close(self) -> None:
        """Do nothing: `AsyncMemory.aclose` closes the store."""


def _send(operation: Operation, call: Callable[[], AddRecords], records: Records) -> None:
    operation.note_change()  # the vector store changed before
    operation.submit(lambda: operation.manager.store.writer.submit(call()), records)


def to_submit(
    changes: Sequence[Mapping[str, Any]], payloads: dict[str, Payload]
) -> tuple[Callable[[], AddRecords], Records]:
    """Return a function that returns the submission of changes, or raises, and their records.

    Args:
        payloads: the memories' last known payloads by id; those of these changes are removed.
    """
    with Sanitizer() as sanitizer:
        columns = [
            with_details(sanitizer.columns(change), payloads, sanitizer) for change in changes
        ]
    now = now_text()
    try:
        submission = checked_records(
            (storable_record(each, now) for each in columns), must_match_owner=False
        )
    except InvalidInput as error:
        known = [{k: v for k, v in each.items() if k not in DETAILS} for each in columns]
        return functools.partial(_refuse, error), [{**each, "id": new_id()} for each in known]
    return lambda: submission, submission.records


def _refuse(error: HistoryError) -> AddRecords:
    raise error


async def read_history(operation: Operation, memory_id: str) -> None:
    """Read the records that `Recorder.get_history` returns later."""
    records = await operation.manager.get_history(Sanitizer().text("memory_id", memory_id))
    operation.history = [record.as_dict() for record in records]


async def read_last_messages(operation: Operation, session_scope: str) -> None:
    """Read the messages that `Recorder.get_last_messages` returns later."""
    if session_scope:
        scope = Sanitizer().text("session_scope", session_scope)
        kept = await operation.manager.get_last_messages(scope)
        operation.last_messages = [message_as_given(message) for message in kept]
