"""The outcomes of calls."""

from collections.abc import Awaitable

from async_history import HistoryError


async def outcome(call: Awaitable[object]) -> str:
    """Return the name of the error of a call, or "ok"."""
    try:
        await call
    except HistoryError as error:
        return type(error).__name__
    return "ok"
