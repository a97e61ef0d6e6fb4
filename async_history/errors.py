"""Every error a caller can meet. One root, and a subclass where a caller would act differently.

HistoryError
├── InvalidInput          a field, option, URL or cursor is unusable; nothing was queued
├── IdConflict            the id is taken by a record with other content; not written
├── HistoryConflict       `if_latest` is no longer its memory's latest record; not written
├── Overloaded            the queue stayed full past `queue_timeout_s`; not written
├── HistoryClosed         the manager is closed, or closed before the call's turn; not written
├── WrongLoop             the manager belongs to another event loop or process; not written
├── CommitUnknown         the store cannot say whether the named ids were written
├── CursorGone            the record a cursor points at is no longer at its place
├── CopyMismatch          a copy's target does not hold the source's records, in their order
├── MigrationError        the store's layout cannot be used or adopted; left untouched
└── StorageError          the store refused or failed; not written
    ├── StorageRefused      a rule of the database's owner refuses this submission alone
    ├── StorageMissing      there is no such file, database or schema
    ├── StorageUnreachable  the server does not answer, or went away
    ├── StorageDenied       the server refuses this role, or lacks a right for it
    ├── StorageLocked       others held a lock for too long
    ├── StorageFull         the disk, quota or page limit is exhausted
    ├── StorageReadOnly     the file or its folder may not be written, or the server is a standby
    └── StorageCorrupt      the file or table is damaged, or is no database
"""

from collections.abc import Iterable


class HistoryError(Exception):
    """Root of every error this library raises on purpose."""


class InvalidInput(HistoryError, ValueError):
    """A value cannot be used as given. Nothing was queued or written."""


class IdConflict(HistoryError):
    """A record of this id exists with other content. The submission was not written."""


class HistoryConflict(HistoryError):
    """The record given as `if_latest` is not its memory's latest. Nothing was written."""


class Overloaded(HistoryError):
    """The queue had no room within `queue_timeout_s`. Nothing was written."""


class HistoryClosed(HistoryError):
    """The manager is closed or was closed before this call's turn. Nothing was written."""


class WrongLoop(HistoryError, RuntimeError):
    """The manager was opened by another event loop or process. Open one here."""


class CommitUnknown(HistoryError):
    """Whether these ids were written is not known: the store failed while committing.

    Submitting again under the same ids is safe: what is there already is not written twice.
    """

    def __init__(self, message: str, ids: Iterable[str] = ()) -> None:
        self.ids = tuple(ids)
        super().__init__(message, self.ids)

    def __str__(self) -> str:
        return f"{self.args[0]} (ids: {', '.join(self.ids) or 'none'})"


class CursorGone(HistoryError):
    """The record a cursor points at was removed or moved. Start again without the cursor."""


class CopyMismatch(HistoryError):
    """The target of a copy holds a record of the source with other content, elsewhere, or not.

    Nothing of the target was taken away. Copying again cannot mend it: use an empty target.
    """


class MigrationError(HistoryError):
    """The store's layout is unknown, newer than this library, or needs what is not there.

    The store was left untouched.
    """


class StorageError(HistoryError):
    """The store refused or failed. Nothing of the submission was written."""


class StorageRefused(StorageError):
    """A rule of the database's owner refuses this submission; others it does not."""


class StorageMissing(StorageError):
    """There is no such file (or an empty one) and `create=False`; no such database or schema."""


class StorageUnreachable(StorageError):
    """The server could not be reached in time, or went away. Try again when it is back."""


class StorageDenied(StorageError):
    """The server refuses this role, its password, or what it wants to do."""


class StorageLocked(StorageError):
    """Others held a lock: a file's for longer than `lock_timeout_s`, or a row's or table's."""


class StorageFull(StorageError):
    """No room is left. What was acked is kept; writing resumes when there is."""


class StorageReadOnly(StorageError):
    """The file or its folder may not be written by this process, or the server is a standby."""


class StorageCorrupt(StorageError):
    """Data is damaged where it was touched, or a file is no database. Nothing was repaired."""
