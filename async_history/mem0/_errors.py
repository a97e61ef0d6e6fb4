"""The error of an operation whose history could not be written."""

from collections.abc import Mapping, Sequence
from typing import Any

from async_history._core.records.records import HistoryRecord
from async_history._core.records.rows import fields_of
from async_history._core.undoing.rollback import RollbackReport
from async_history._core.wording import counted
from async_history.errors import CommitUnknown, HistoryError

Unwritten = tuple[Exception, Sequence[HistoryRecord | Mapping[str, Any]]]
"""Why records were not acknowledged, and the records."""


class HistoryNotWritten(HistoryError):
    """mem0 changed its vector store, and the records of the change were not acknowledged.

    When the cause is gone, pass `records` to a manager's `batch_add_history`. Each record has its
    id, so a record that was written after all is not written twice.

    Attributes:
        result: what mem0 returned.
        records: the records that were not acknowledged, in order, as mappings: mem0's columns, and
            owner, context and cause where they are known.
        unknown_ids: the ids of those that may have been written, because the store failed while it
            committed. The others were not written.
    """

    def __init__(
        self,
        message: str,
        result: object,
        records: Sequence[Mapping[str, Any]],
        unknown_ids: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.result = result
        self.records = records
        self.unknown_ids = tuple(unknown_ids)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how it is pickled: another process may have called mem0."""
        return type(self), (*self.args, self.result, self.records, self.unknown_ids), vars(self)


class RollbackIncomplete(HistoryError):
    """The vector store or the embedding model failed for some memories of a rollback or an undo.

    Completed steps are kept. Call it again when the cause is gone: it does what is missing, and
    records nothing twice.

    Attributes:
        report: the step of each memory. Failed memories are among its `conflicts`; one whose
            history was written has a `record_id`. If a whole part failed, later memories are not in
            it.
        failed: the errors by memory id.
    """

    def __init__(self, report: RollbackReport, failed: Mapping[str, Exception]) -> None:
        memory_id, error = next(iter(failed.items()))
        super().__init__(
            f"{counted(len(failed), 'memory', 'memories')} could not be taken back (first "
            f"{memory_id!r}: {error!r}); what was done stays done. Call it again: it does what is "
            "missing"
        )
        self.report = report
        self.failed = dict(failed)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how it is pickled, as `HistoryNotWritten`."""
        return type(self), (self.report, self.failed), vars(self)


def history_not_written(result: object, unwritten: Sequence[Unwritten]) -> HistoryNotWritten:
    """Return the error of an operation that returned `result`; raise it `from` the first cause."""
    records = [
        fields_of(record) if isinstance(record, HistoryRecord) else dict(record)
        for _, of_one in unwritten
        for record in of_one
    ]
    unknown = [
        record["id"] if isinstance(record, Mapping) else record.id
        for error, of_one in unwritten
        if isinstance(error, CommitUnknown)
        for record in of_one
    ]
    cause = unwritten[0][0]
    what = (
        "whether its history was written is not known"
        if isinstance(cause, CommitUnknown)
        else "its history was not written"
    )
    return HistoryNotWritten(
        f"mem0 changed its vector store, and {what}: {cause}. "
        "Pass this error's records to batch_add_history",
        result,
        records,
        unknown,
    )
