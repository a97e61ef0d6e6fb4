"""Pruning in PostgreSQL: the transaction of one step."""

from collections.abc import Sequence
from dataclasses import replace
from time import monotonic
from typing import Any

from async_history._core.removing.prune import PruneCursor, PruneStep, prune_step
from async_history._core.removing.prune_request import PruneRequest
from async_history._core.removing.prune_transaction import PruneTries
from async_history._postgres.ledger import Attestation, locks, tables_of
from async_history._postgres.removing.prune_distributed import DistributedPruning
from async_history._postgres.removing.prune_sets import SetPruning, prune_set
from async_history._postgres.transaction import BY_INDEX, WAIT_FOR_REPLICAS_TOO, transaction


async def prune(
    connection: Any,
    schema: str,
    settings: Sequence[str],
    asked: PruneRequest,
    reached: PruneCursor | None,
    tries: PruneTries[Any],
    attestation: Attestation | None,
    *,
    is_distributed: bool,
) -> PruneStep:
    """Prune the next records in one transaction that begins with `settings`."""
    began_at, has_removed_before = monotonic(), tries.has_removed
    kind = DistributedPruning if is_distributed else SetPruning
    async with transaction(connection, *settings, BY_INDEX, *locks(attestation)):
        ledger = tables_of(attestation, connection)
        steps = kind(connection, schema, ledger, is_distributed=is_distributed)
        if isinstance(steps, SetPruning):
            step = await prune_set(asked, reached, steps, tries)
        else:
            step = await prune_step(asked, reached, steps, tries)
        if has_removed_before and not steps.has_removed:
            await connection.execute(WAIT_FOR_REPLICAS_TOO)
    if is_distributed or step.reached is None:
        return step
    # Deferred constraints and triggers run at the commit, and writers wait for them too.
    records = asked.limits.next_records(
        step.reached.records, monotonic() - began_at, asked.keep_last
    )
    return replace(step, reached=replace(step.reached, records=records))
