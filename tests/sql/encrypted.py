"""Encrypted histories in one database, as several managers open them."""

from typing import Any

from sqlalchemy.engine import URL

from async_history.sql import SqlHistoryManager
from tests.support.keys import ring


def opened(url: URL, *names: str, **options: Any) -> SqlHistoryManager:
    """Return a manager that has the master keys of these names, the current one first."""
    return SqlHistoryManager(url, keys=ring(*(names or ("one",))), **options)
