"""What is to be pruned, checked."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from async_history._core.new_records import new_id
from async_history._core.operations import StoreOperation, new_operation
from async_history._core.validation import check_count, check_flag
from async_history._core.values import in_utc, is_aware
from async_history.errors import InvalidInput


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneLimits:
    """How much pruning does at once.

    Attributes:
        records: looked at in one step, which writers wait for.
        passed_over: records that a step may pass over besides, because they may not go; a server
            takes about 5 ms for them.
        edges: memories whose edge is not looked up again in a walk: 20 MB.
    """

    records: int = 500
    passed_over: int = 1 << 14
    edges: int = 50_000


@dataclass(frozen=True, slots=True)
class PruneRequest:
    """What is to be pruned: records from before an instant, but a memory's last ones.

    `id` is its own, under which the store logs it.
    """

    id: str
    before: datetime
    keep_last: int
    dry_run: bool
    limits: PruneLimits

    def operation(self) -> StoreOperation:
        """Return what the store logs."""
        arguments = {"before": in_utc(self.before).isoformat(), "keep_last": self.keep_last}
        return new_operation("prune", arguments, operation_id=self.id)

    def is_old(self, moment: datetime | None) -> bool | None:
        """Return whether a record of this instant may go; None where its instant is not known."""
        return None if moment is None else moment < self.before


def new_prune_request(
    older_than: datetime | timedelta,
    keep_last: int,
    *,
    dry_run: bool,
    limits: PruneLimits,
) -> PruneRequest:
    """Check what is to be pruned.

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
            f"not {older_than!r}"
        )
    return PruneRequest(
        new_id(),
        older_than,
        check_count("keep_last", keep_last),
        check_flag("dry_run", dry_run),
        limits,
    )
