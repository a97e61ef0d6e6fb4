"""The encryption of an open history, for code that does not await."""

from collections.abc import Awaitable, Callable

from async_history._core.encryption import KeyRotation
from async_history._core.manager import HistoryManager
from async_history._core.progress import Progress

Rotate = Callable[[HistoryManager], Awaitable[KeyRotation]]


class BlockingEncryption:
    """What `history.encryption` is of a `BlockingHistoryManager`.

    Args:
        call: calls a function with the manager, and waits for what that returns.
    """

    def __init__(self, call: Callable[[Rotate], KeyRotation]) -> None:
        self._call = call

    def rotate_keys(self, *, on_progress: Progress | None = None) -> KeyRotation:
        """Wrap the store's keys by the current master key: see `Encryption.rotate_keys`.

        Args:
            on_progress: called on a thread of the manager's with how many keys are done and how
                many there are.

        Raises:
            InvalidInput: the history was opened without `keys`.
            KeyMissing, StorageError, CommitUnknown: as there.
        """
        return self._call(lambda manager: manager.encryption.rotate_keys(on_progress=on_progress))
