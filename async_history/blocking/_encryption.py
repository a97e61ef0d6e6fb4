"""The encryption of an open history, for code that does not await."""

from collections.abc import Awaitable, Callable
from typing import Any

from async_history._core.encryption.decrypting import DecryptionReport
from async_history._core.encryption.encrypting import EncryptionReport
from async_history._core.encryption.replacing import DataKeyReplacement
from async_history._core.encryption.store_encryption import KeyRotation
from async_history._core.manager import HistoryManager
from async_history._core.operations.progress import Progress

Call = Callable[[HistoryManager], Awaitable[Any]]


class BlockingEncryption:
    """The keys of an encrypted history: `BlockingHistoryManager.encryption`.

    Args:
        call: calls a function with the manager, and waits for its result.
    """

    def __init__(self, call: Callable[[Call], Any]) -> None:
        self._call = call

    def rotate_keys(self, *, on_progress: Progress | None = None) -> KeyRotation:
        """Wrap the store's keys with the current master key: see `Encryption.rotate_keys`.

        Args:
            on_progress: called on a thread of the manager's with how many keys are done and how
                many there are.

        Raises:
            InvalidInput: the history was opened without `keys`.
            KeyMissing, StorageError, CommitUnknown: as there.
        """
        rotation: KeyRotation = self._call(
            lambda manager: manager.encryption.rotate_keys(on_progress=on_progress)
        )
        return rotation

    def replace_data_keys(
        self,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        app_id: str | None = None,
        on_progress: Progress | None = None,
    ) -> DataKeyReplacement:
        """Give owners new data keys: see `Encryption.replace_data_keys`.

        Args:
            user_id, agent_id, run_id, app_id: the owner, as there.
            on_progress: called on a thread of the manager's with how many records are done and how
                many there are.

        Raises:
            InvalidInput: the history was opened without `keys`.
            KeyMissing, StorageError, CommitUnknown: as there.
        """
        replacement: DataKeyReplacement = self._call(
            lambda manager: manager.encryption.replace_data_keys(
                user_id=user_id,
                agent_id=agent_id,
                run_id=run_id,
                app_id=app_id,
                on_progress=on_progress,
            )
        )
        return replacement

    def encrypt(self, *, on_progress: Progress | None = None) -> EncryptionReport:
        """Encrypt the history's clear texts in place: see `Encryption.encrypt`.

        Args:
            on_progress: called on a thread of the manager's with how many records are done and how
                many there are.

        Raises:
            InvalidInput: the history was opened without `keys`.
            StorageError, CommitUnknown: as there.
        """
        report: EncryptionReport = self._call(
            lambda manager: manager.encryption.encrypt(on_progress=on_progress)
        )
        return report

    def decrypt(self, *, on_progress: Progress | None = None) -> DecryptionReport:
        """Decrypt the history in place, and remove its keys: see `Encryption.decrypt`.

        Args:
            on_progress: called on a thread of the manager's with how many records are done and how
                many there are.

        Raises:
            InvalidInput: the history was opened without `keys`, or has a ledger.
            KeyMissing, StorageError, CommitUnknown: as there.
        """
        report: DecryptionReport = self._call(
            lambda manager: manager.encryption.decrypt(on_progress=on_progress)
        )
        return report
