"""The errors of this package: one root, and a subclass where a caller would act differently.

HistoryError
├── InvalidInput          a field, option, URL or cursor is unusable; nothing was queued
├── IdConflict            the id is taken by a record with other content; not written
├── HistoryConflict       `if_latest` is no longer its memory's latest record; not written
├── OwnerConflict         the memory has another owner; not written
├── Erased                the memory or its owner was erased after the change began; not written
├── KeyMissing            the key ring lacks a key that the store's texts need; the error names it
├── Overloaded            the queue stayed full past `queue_timeout_s`; not written
├── HistoryClosed         the manager is closed, or closed before the call's turn; not written
├── WrongLoop             the manager belongs to another event loop or process; not written
├── CommitUnknown         the store cannot say whether the named ids were written
├── CursorGone            the record a cursor points at was removed or moved
├── NotProven             a checkpoint or proof of a ledger does not hold
├── CopyMismatch          a copy's target does not hold the source's records, in their order
├── MigrationError        the store's layout cannot be used or adopted; left untouched
└── StorageError          the store refused or failed; not written
    ├── StorageRefused      a constraint or trigger of the owner rejected this submission
    ├── StorageMissing      the file, database or schema does not exist
    ├── StorageUnreachable  the server does not answer, or went away
    ├── StorageDenied       the server refuses this role, or lacks a right for it
    ├── StorageLocked       others held a lock for too long
    ├── StorageFull         the disk, quota or page limit is exhausted
    ├── StorageReadOnly     the file or its folder may not be written, or the server is a standby
    └── StorageCorrupt      the file or table is damaged, or is not a database
"""

from collections.abc import Iterable


class HistoryError(Exception):
    """Root of all errors that this library raises on purpose."""


class InvalidInput(HistoryError, ValueError):
    """A value cannot be used as given. Nothing was queued or written."""


class IdConflict(HistoryError):
    """A record of this id exists with other content. The submission was not written."""


class HistoryConflict(HistoryError):
    """The record given as `if_latest` is not its memory's latest, or a text that was read has been
    erased since. Nothing was written.
    """


class OwnerConflict(HistoryError):
    """The memory has an owner, and this call gives it another one. Nothing was written."""

    def __init__(self, memory_id: str, scopes: Iterable[str]) -> None:
        self.memory_id = memory_id
        self.scopes = tuple(scopes)
        super().__init__(memory_id, self.scopes)

    def __str__(self) -> str:
        return (
            f"memory {self.memory_id!r} has an owner with another {' and '.join(self.scopes)}, or "
            "without it; an owner is given once. Leave the owner out, nothing was written"
        )


class Erased(HistoryError):
    """The memory or owner of a change was erased after the change began. Nothing was written.

    Do not try the change again: it could bring erased texts back. Changes that begin after the
    erasure are accepted, except changes of memories that were erased with their owner.
    """

    def __init__(self, what: str, kind: str) -> None:
        self.what = what
        self.kind = kind
        super().__init__(what, kind)

    def __str__(self) -> str:
        if self.kind == "memory_id":
            return (
                f"memory {self.what!r} was erased, and gets no text any more; nothing was written"
            )
        return (
            f"the {self.kind} of {self.what!r} was erased after this change began; nothing was "
            "written"
        )


class KeyMissing(HistoryError):
    """A text can't be read, or the store can't be opened, because a key is missing.

    `name` is the name of the master key, or the id of a data key that the store no longer has. It
    is empty if an encrypted store was opened without `keys`. Texts under other keys stay readable.
    """

    def __init__(self, name: str, message: str) -> None:
        self.name = name
        super().__init__(name, message)

    def __str__(self) -> str:
        return str(self.args[1])


class Overloaded(HistoryError):
    """The queue had no space within `queue_timeout_s`. Nothing was written."""


class HistoryClosed(HistoryError):
    """The manager is closed or was closed before this call's turn. Nothing was written."""


class WrongLoop(HistoryError, RuntimeError):
    """The manager was opened by another event loop or process. Open one here."""


class CommitUnknown(HistoryError):
    """Whether these ids were written is not known: the store failed while committing.

    Submitting again under the same ids is safe: no record is written twice.
    """

    def __init__(self, message: str, ids: Iterable[str] = ()) -> None:
        self.ids = tuple(ids)
        super().__init__(message, self.ids)

    def __str__(self) -> str:
        return f"{self.args[0]} (ids: {', '.join(self.ids) or 'none'})"


class CursorGone(HistoryError):
    """The record a cursor points at was removed or moved. Start again without the cursor."""


class NotProven(HistoryError):
    """A checkpoint or a proof of a ledger does not hold, or the store is not what it says."""


class CopyMismatch(HistoryError):
    """The target of a copy has a record of the source with other content, elsewhere, or not at all.

    Nothing was removed from the target. Copying again does not help: use an empty target.
    """


class MigrationError(HistoryError):
    """The store's layout is unknown, newer than this library, or incomplete.

    The store was not changed.
    """


class StorageError(HistoryError):
    """The store refused or failed. Nothing of the submission was written."""


class StorageRefused(StorageError):
    """A constraint or trigger of the owner rejected this submission; others are not affected."""


class StorageMissing(StorageError):
    """The file is missing or empty and `create=False`, or the database or schema is missing."""


class StorageUnreachable(StorageError):
    """The server could not be reached in time, or went away. Try again when it is back."""


class StorageDenied(StorageError):
    """The server refuses this role, its password, or the statement."""


class StorageLocked(StorageError):
    """Others held a lock: a file's for longer than `lock_timeout_s`, or a row's or table's."""


class StorageFull(StorageError):
    """The storage is full. Acked records are kept; writing resumes when there is space."""


class StorageReadOnly(StorageError):
    """The file or its folder may not be written by this process, or the server is a standby."""


class StorageCorrupt(StorageError):
    """Data that was read is damaged, or the file is not a database. Nothing was repaired."""
