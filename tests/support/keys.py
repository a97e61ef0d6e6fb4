"""Master keys for tests."""

from hashlib import sha256

from async_history.encryption import KeyRing


def master(name: str) -> bytes:
    """Return the master key of a name, the same in each process."""
    return sha256(name.encode()).digest()


def ring(*names: str) -> KeyRing:
    """Return a ring of named master keys, the current one first."""
    return KeyRing({name: master(name) for name in names})
