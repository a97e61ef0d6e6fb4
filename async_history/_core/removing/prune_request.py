"""Prune requests and limits."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from async_history._core.operations.operations import StoreOperation, new_operation
from async_history._core.records.new_records import new_id
from async_history._core.records.values import in_utc, is_aware
from async_history._core.validation import check_count, check_flag, shown
from async_history.errors import InvalidInput

_MOST_GROWTH: Final = 4
"""A step reads at most four times as many records as the one before."""
_LEAST_S: Final = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneLimits:
    """Limits of a pruning's steps.

    Attributes:
        records: most records read in one step, for which writers wait; on SQLite and PostgreSQL, in
            the first step.
        most_records: most records in a later step there. More make a record hardly cheaper.
        step_s: seconds that such a step should take. The next step's records are fitted to the
            time that the last one took: a cold disk, a ledger or triggers make it longer.
        passed_over: most other records that a step skips because they must stay; a server needs
            about 5 ms for them.
        edges: most memories whose edge is cached in a walk: 20 MB.
    """

    records: int = 500
    most_records: int = 1 << 14
    step_s: float = 0.1
    passed_over: int = 1 << 14
    edges: int = 50_000

    def next_records(self, records: int, took_s: float, keep_last: int) -> int:
        """Return how many records a step reads after one of `records` and `took_s`.

        Each of them may be the last of a memory that goes as a whole, with `keep_last` records.
        """
        fitting = int(records * min(_MOST_GROWTH, self.step_s / max(took_s, _LEAST_S)))
        return max(self.records, min(fitting, self.most_records // max(keep_last, 1)))


@dataclass(frozen=True, slots=True)
class PruneRequest:
    """A checked prune request: records from before an instant, except a memory's last ones.

    `id` is the id of the operation in the store's log.
    """

    id: str
    before: datetime
    keep_last: int
    dry_run: bool
    limits: PruneLimits

    def operation(self) -> StoreOperation:
        """Return the operation for the store's log."""
        arguments = {"before": in_utc(self.before).isoformat(), "keep_last": self.keep_last}
        return new_operation("prune", arguments, operation_id=self.id)

    def is_old(self, moment: datetime | None) -> bool | None:
        """Return whether a record with this instant is old; None if its instant is unknown."""
        return None if moment is None else moment < self.before


def new_prune_request(
    older_than: datetime | timedelta,
    keep_last: int,
    *,
    dry_run: bool,
    limits: PruneLimits,
) -> PruneRequest:
    """Check the arguments of a pruning.

    Raises:
        InvalidInput: naming the argument that can't be used.
    """
    if isinstance(older_than, timedelta):
        if older_than < timedelta():
            raise InvalidInput(f"older_than must not lie in the future, as {older_than} does")
        try:
            older_than = datetime.now(UTC) - older_than
        except OverflowError as error:
            raise InvalidInput(f"older_than reaches beyond year 1: {older_than}") from error
    if not is_aware(older_than):
        raise InvalidInput(
            "older_than must be a datetime with a time zone or a timedelta before now, "
            f"not {shown(older_than)}"
        )
    return PruneRequest(
        new_id(),
        older_than,
        check_count("keep_last", keep_last),
        check_flag("dry_run", dry_run),
        limits,
    )
