"""The statements of plain batches, made with their batch or before it."""

from collections.abc import Sequence

from async_history._core.ledger.leaves import Bundle
from async_history._core.records.records import Fields
from async_history._core.writing.additions import fields_of, have_details
from async_history._core.writing.submissions import AddFields
from async_history._postgres.writing.add import Statement, plain

Ahead = tuple[Sequence[Fields], Statement] | None
"""The records that waited, and the statement made for them, if any."""


class PlainStatements:
    """The statements `plain` of a store's batches.

    A server commits a batch for longer than the event loop needs to wake the callers of the
    previous one. So the statement for the records that wait then is made meanwhile. The next batch
    takes it, whatever it has, so no text stays in memory longer.
    """

    def __init__(self) -> None:
        self._ahead: Ahead = None

    def begin(self, submissions: Sequence[object]) -> None:
        """Make the statement for submissions that wait, if all are single records without
        details."""
        waiting = [one for one in submissions if type(one) is AddFields]
        if 1 < len(waiting) == len(submissions) and not have_details(waiting):
            fields = list(fields_of(waiting))
            self._ahead = fields, plain(fields, ())

    def drop(self) -> None:
        """Forget what was made: one of its records may not be written any more."""
        self._ahead = None

    def take(self) -> Ahead:
        """Return what was made for the next batch."""
        ahead, self._ahead = self._ahead, None
        return ahead


def plain_statement(ahead: Ahead, fields: Sequence[Fields], leaves: Sequence[Bundle]) -> Statement:
    """Return the statement of a batch: the one made ahead if it is for exactly these records.

    Args:
        leaves: as in `plain`.
    """
    if ahead is not None and ahead[0] == fields and not leaves:
        return ahead[1]
    return plain(fields, leaves)
