"""Encryption of a history at rest: the master keys, and the operations on a store's keys."""

from async_history._core.decrypting import DecryptionReport
from async_history._core.encrypting import EncryptionReport
from async_history._core.encryption import Encryption
from async_history._core.key_ring import KeyRing, KeyService
from async_history._core.public import show_as
from async_history._core.replacing import DataKeyReplacement
from async_history._core.store_encryption import KeyRotation

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
