# mypy: disable-error-code=import-untyped
"""Limits of a batch's late tries, which find the submission that keeps it from being written."""

from time import monotonic
from typing import Final

import asyncpg

from async_history._core.writing.commit_function import CommitTry, OutcomeUnknown, TryAgain
from async_history._postgres.connecting.bounds import Parts
from async_history._postgres.connecting.work_limit import CutOff

_LOCKS: Final = Parts(lock_waits=50, statements=None)
_LOCKS_AND_STATEMENTS: Final = _LOCKS._replace(statements=20)
"""Lock waits and statements that fit into a try's time. A statement gets more time, because a slow
server may need it."""


class LateTries:
    """Decides how long lock waits and statements of a batch's late tries may take.

    A statement is limited only if an earlier try of the batch was too long: otherwise a server that
    is merely slow would not get to the end of any.

    Args:
        after_s: seconds after the begin of a batch's first try when others are late.
    """

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._too_long: float | None = None  # when the batch's first try began

    def is_late(self, this: CommitTry) -> bool:
        """Return whether submissions that wait or take too long are refused one by one."""
        return this.is_repeated and monotonic() - this.first_begun > self._after_s

    def parts(self, this: CommitTry) -> Parts:
        """Return how many lock waits and statements must fit into a late try."""
        return _LOCKS_AND_STATEMENTS if self._too_long == this.first_begun else _LOCKS

    def note(self, this: CommitTry, error: TryAgain | OutcomeUnknown) -> None:
        """Note why a try failed: the server ended a statement, or we closed the connection."""
        if isinstance(error, CutOff) or isinstance(error.__cause__, asyncpg.QueryCanceledError):
            self._too_long = this.first_begun
