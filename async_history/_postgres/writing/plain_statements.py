"""The statements of plain batches, made before their batch."""

from collections.abc import Sequence

from async_history._core.writing.additions import fields_have_details, fields_of
from async_history._core.writing.submissions import AddFields
from async_history._postgres.writing.add import Statement, plain


class PlainStatements:
    """The statements `plain` of a store's batches.

    A server commits a batch for longer than the event loop needs to wake the callers of the
    previous one. So the statement for the records that wait then is made meanwhile. The next batch
    takes it, whatever it has, so no text stays in memory longer.
    """

    def __init__(self) -> None:
        self._ahead: tuple[Sequence[object], Statement] | None = None

    def begin(self, submissions: Sequence[object]) -> None:
        """Make the statement for submissions that wait, if all are single records without
        details."""
        waiting = [one for one in submissions if type(one) is AddFields]
        if not 1 < len(waiting) == len(submissions):
            return
        fields = list(fields_of(waiting))
        if not fields_have_details(fields):
            self._ahead = waiting, plain(fields, ())

    def drop(self) -> None:
        """Forget what was made: one of its records may not be written any more."""
        self._ahead = None

    def take(self, batch: Sequence[object]) -> Statement | None:
        """Return the statement that was made for exactly these submissions, if any."""
        ahead, self._ahead = self._ahead, None
        return ahead[1] if ahead is not None and ahead[0] == batch else None
