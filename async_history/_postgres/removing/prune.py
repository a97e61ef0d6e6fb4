"""Pruning in PostgreSQL: the transaction of one step."""

from collections.abc import Sequence
from time import monotonic
from typing import Any

from async_history._core.removing.prune import PruneCursor, PruneStep, fitted
from async_history._core.removing.prune_request import PruneRequest
from async_history._core.removing.prune_transaction import PruneTries
from async_history._postgres.ledger import Attestation, locks, tables_of
from async_history._postgres.removing.prune_distributed import DistributedPruning
from async_history._postgres.removing.prune_sets import SetPruning
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
        step = await steps.step(asked, reached, tries)
        if has_removed_before and not steps.has_removed:
            await connection.execute(WAIT_FOR_REPLICAS_TOO)
    # Deferred constraints and triggers run at the commit, and writers wait for them too.
    return step if is_distributed else fitted(step, asked, monotonic() - began_at)
