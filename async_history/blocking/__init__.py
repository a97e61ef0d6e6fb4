"""The synchronous API: a drop-in for mem0's `SQLiteManager`, over any URL."""

from async_history._core.public import show_as
from async_history.blocking._encryption import BlockingEncryption
from async_history.blocking._ledger import BlockingLedger
from async_history.blocking._manager import BlockingHistoryManager

__all__ = ["BlockingEncryption", "BlockingHistoryManager", "BlockingLedger"]

show_as(__name__, __all__, globals())
