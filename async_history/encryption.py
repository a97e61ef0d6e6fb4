"""Encryption of a history at rest: the master keys, and the operations on a store's keys."""

from async_history._core.encryption.decrypting import DecryptionReport
from async_history._core.encryption.encrypting import EncryptionReport
from async_history._core.encryption.encryption import Encryption
from async_history._core.encryption.key_ring import KeyRing
from async_history._core.encryption.key_service import KeyService
from async_history._core.encryption.replacing import DataKeyReplacement
from async_history._core.encryption.store_encryption import KeyRotation
from async_history._core.public import show_as

__all__ = [
    "DataKeyReplacement",
    "DecryptionReport",
    "Encryption",
    "EncryptionReport",
    "KeyRing",
    "KeyRotation",
    "KeyService",
]

show_as(__name__, __all__, globals())
