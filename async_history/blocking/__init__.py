"""The synchronous face: mem0's `SQLiteManager` in signature and behaviour, over any URL."""

from async_history._core.public import show_as
from async_history.blocking._manager import BlockingHistoryManager

__all__ = ["BlockingHistoryManager"]

show_as(__name__, __all__, globals())
