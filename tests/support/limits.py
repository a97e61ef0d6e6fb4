"""Managers whose parts process little at once, so that a few records take many steps."""

from typing import Any

from async_history import HistoryManager
from async_history._core.limits import Limits


def limited(history: HistoryManager, **limits: Any) -> HistoryManager:
    """Return a manager with an unopened one's backend, and with limits by the name of the part."""
    return HistoryManager(
        history.backend,
        close_timeout_s=history._close_timeout_s,
        limits=Limits(**limits),
    )
