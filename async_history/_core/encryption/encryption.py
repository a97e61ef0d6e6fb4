"""The encryption of an open history: `history.encryption`."""

from collections.abc import Callable
from typing import Any, Final

from async_history._core.encryption.decrypting import DecryptionReport, decrypt
from async_history._core.encryption.encrypting import EncryptionReport, encrypt
from async_history._core.encryption.key_ring import KeyRing
from async_history._core.encryption.replacing import DataKeyReplacement, replace_data_keys
from async_history._core.encryption.store_encryption import KeyRotation, StoreEncryption
from async_history._core.encryption.stored_texts import TextLimits
from async_history._core.operations.operation_log import OperationLog, logged
from async_history._core.operations.operations import hashed, new_operation
from async_history._core.operations.progress import Progress
from async_history._core.records.owners import new_owner
from async_history._core.validation import check_function
from async_history.errors import InvalidInput

REKEY: Final = "rekey"
"""The kind of a rotation or a replacement of data keys in the log."""


class Encryption:
    """The encryption of an open history: `history.encryption`.

    Args:
        require: returns the open store's encryption and its log of operations; raises if it is not
            open.
        ring: its master keys.
        where: its name in messages.
        limits: the sizes of steps.
        has_ledger: whether the history has a ledger.
    """

    def __init__(
        self,
        require: Callable[[], tuple[StoreEncryption, OperationLog]],
        ring: KeyRing,
        where: str,
        limits: TextLimits,
        *,
        has_ledger: bool,
    ) -> None:
        self._require = require
        self._ring = ring
        self._where = where
        self._limits = limits
        self._has_ledger = has_ledger

    def __repr__(self) -> str:
        return f"<Encryption by {self._ring!r}>"

    async def rotate_keys(self, *, on_progress: Progress | None = None) -> KeyRotation:
        """Rewrap the store's keys by the current master key, the first of the ring.

        To replace a master key, put the new one first in the ring of every process, call this, then
        remove the old one. Writers continue. No record is changed: texts stay encrypted under their
        data keys, which are rewrapped. The call may be interrupted at any point and repeated.
        Earlier backups still need the old master key.

        Args:
            on_progress: called from time to time with the keys done and the total.

        Raises:
            KeyMissing: some keys need a master key that the ring lacks. The others are done.
            StorageError, CommitUnknown: what was done stays done. Call it again.
        """
        check_function("on_progress", on_progress)
        store, log = self._require()
        async with logged(log, new_operation(REKEY, {"master_key": self._ring.current})):
            return await store.rotate(on_progress)

    async def replace_data_keys(
        self,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        app_id: str | None = None,
        on_progress: Progress | None = None,
    ) -> DataKeyReplacement:
        """Give owners new data keys, encrypt their texts under them, and remove the old ones.

        All records are processed in small transactions between the writes. The call may be
        interrupted at any point and repeated. Earlier backups still have the old keys, wrapped. To
        replace a master key, `rotate_keys` is enough.

        Args:
            user_id, agent_id, run_id, app_id: replace the keys of all owners with one of these
                scopes. Without any, replace all data keys.
            on_progress: called from time to time with the records done and the total.

        Raises:
            InvalidInput: a name is not text.
            KeyMissing, StorageCorrupt: a text can't be decrypted. It stays, as do the old keys.
            StorageError, CommitUnknown: what was done stays done. Call it again.
        """
        check_function("on_progress", on_progress)
        owner = new_owner(
            {"user_id": user_id, "agent_id": agent_id, "run_id": run_id, "app_id": app_id}
        )
        names = [] if owner is None else list(owner.as_dict().items())
        arguments: dict[str, Any] = {"data_keys": True}
        for name, value in names:
            arguments |= hashed(name, value)
        operation = new_operation(REKEY, arguments)
        store, log = self._require()
        return await replace_data_keys(
            store.texts, store.keys, names, log, operation, on_progress, self._limits
        )

    async def encrypt(self, *, on_progress: Progress | None = None) -> EncryptionReport:
        """Encrypt in place all texts in clear, then rewrite the file or vacuum the tables.

        These are records from before the history was opened with keys, and records that programs
        without keys have written since. They are encrypted in small transactions between the
        writes. The call may be interrupted at any point and repeated. Earlier backups have the
        texts in clear. The report's `remains` says where else they may be.

        Args:
            on_progress: called from time to time with the records done and the total.

        Raises:
            StorageError, CommitUnknown: what was done stays done. Call it again.
        """
        check_function("on_progress", on_progress)
        store, log = self._require()
        return await encrypt(store.texts, store.keys, log, on_progress, self._limits)

    async def decrypt(self, *, on_progress: Progress | None = None) -> DecryptionReport:
        """Turn encryption off: decrypt all texts in place, then remove the keys.

        First all texts are decrypted without a change, as a check. From the next step on, all
        processes record in clear. All texts are decrypted in small transactions between the
        writes. The call may be interrupted at any point and repeated;
        `encrypt` reverses it. Afterwards the history is opened without keys. Managers that have it
        open with keys continue in clear, except those that recorded nothing since `rotate_keys`:
        they get `KeyMissing` and must open it again. Opening it with keys turns encryption on
        again.

        Args:
            on_progress: called from time to time with the records done and the total.

        Raises:
            InvalidInput: the history has a ledger.
            KeyMissing, StorageCorrupt: a text can't be decrypted. Nothing was changed.
            StorageError, CommitUnknown: what was done stays done. Call it again.
        """
        check_function("on_progress", on_progress)
        if self._has_ledger:
            raise InvalidInput(
                f"{self._where} has a ledger, which needs the keys for its salts: to decrypt it, "
                "copy it into a new history that is opened without keys (copy_history)"
            )
        store, log = self._require()
        return await decrypt(store.texts, store.keys, log, on_progress, self._limits)
