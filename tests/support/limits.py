"""Managers whose parts do little at once, so that few records are many steps."""

from dataclasses import replace
from typing import Any

from async_history import HistoryManager


def limited(history: HistoryManager, **limits: Any) -> HistoryManager:
    """Return a manager with other limits, by the name of the part: see `Limits`."""
    history.limits = replace(history.limits, **limits)
    return history
