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
├── MigrationError        the store's layout cannot be used or adopted; left untouched
└── StorageError          the store refused or failed; not written
    ├── StorageRefused    a rule of the file's owner refuses this submission alone
    ├── StorageMissing    there is no such file
    ├── StorageLocked     another process held the file past `lock_timeout_s`
    ├── StorageFull       the disk, quota or page limit is exhausted
    ├── StorageReadOnly   the file or its folder may not be written
    └── StorageCorrupt    the file is damaged, or is no database
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


class MigrationError(HistoryError):
    """The store's layout is unknown, newer than this library, or needs what is not there.

    The store was left untouched.
    """


class StorageError(HistoryError):
    """The store refused or failed. Nothing of the submission was written."""


class StorageRefused(StorageError):
    """A constraint or trigger of the file's owner refuses this submission; others it does not."""


class StorageMissing(StorageError):
    """There is no file at this path, or an empty one, and `create=False`."""


class StorageLocked(StorageError):
    """Another process held the file's lock for longer than `lock_timeout_s`."""


class StorageFull(StorageError):
    """No room is left for the file. What was acked is kept; writing resumes when there is."""


class StorageReadOnly(StorageError):
    """The file or its folder may not be written by this process."""


class StorageCorrupt(StorageError):
    """The file is damaged where it was touched, or is no SQLite database. It was not repaired."""
