# mypy: disable-error-code=import-untyped
"""Limits of a batch's late tries, which find the submission that keeps it from being written."""

import asyncio
from typing import Final

import asyncpg

from async_history._core.writing.commit_function import CommitTry, OutcomeUnknown, TryAgain
from async_history._core.writing.late_tries import LateTries
from async_history._postgres.connecting.bounds import Shares
from async_history._postgres.connecting.work_limit import CutOff

_LOCKS: Final = Shares(lock_waits=50, statements=None)
_LOCKS_AND_STATEMENTS: Final = _LOCKS._replace(statements=20)
"""Lock waits and statements that share a try's time. A statement gets more time, because a slow
server may need it."""


def shares_of(tries: LateTries, this: CommitTry) -> Shares:
    """Return how many lock waits and statements share the time of a late try."""
    return _LOCKS_AND_STATEMENTS if tries.was_too_long(this) else _LOCKS


def note(
    tries: LateTries, this: CommitTry, error: TryAgain | OutcomeUnknown | asyncio.CancelledError
) -> None:
    """Note why a try failed: its outcome is unknown, or it took too long.

    The latter is so if the server ended a statement, or we closed the connection.
    """
    if not isinstance(error, TryAgain):
        tries.note_unknown(this)
    if isinstance(error, CutOff) or isinstance(error.__cause__, asyncpg.QueryCanceledError):
        tries.note_too_long(this)
