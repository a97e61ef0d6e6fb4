"""Batches that a test commits on a connection of its own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from async_history import HistoryError
from async_history._core.writing.commit_function import CommitTry
from async_history._core.writing.submissions import Submission
from async_history._postgres.keys import InClear
from async_history._postgres.ledger import Attestation
from async_history._postgres.writing.commit import BatchCommitter, BatchTry
from async_history._postgres.writing.owners import KnownOwners
from async_history._postgres.writing.plain_statements import PlainStatements


class ServerWithStandbys:
    """A server whose commits may wait for standbys."""

    has_standbys = True


async def commit_on(
    connection: Any,
    schema: str,
    batch: Sequence[Submission],
    *,
    known: KnownOwners | None = None,
    plain: PlainStatements | None = None,
    attestation: Attestation | None = None,
    settings: Sequence[str] = (),
    is_repeated: bool = False,
    sent: Callable[[], None] = lambda: None,
) -> Mapping[int, HistoryError]:
    """Commit a batch of records in clear, as the writer of an open store does.

    Args:
        schema: not quoted.
        sent: called when the callers of the previous batch would be woken.
        The others: see `BatchCommitter`.
    """
    committer = BatchCommitter(
        f'"{schema}"',
        InClear(),
        attestation,
        server=ServerWithStandbys(),
        where="here",
        is_distributed=False,
        known=KnownOwners() if known is None else known,
        plain=PlainStatements() if plain is None else plain,
        added=lambda _: None,
        waited=lambda _: None,
    )
    this = CommitTry(is_repeated, 0.0, sent)
    return await committer.commit(
        BatchTry(batch, this, connection, settings, leaves_out_late=False)
    )
