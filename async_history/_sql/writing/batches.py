"""What the batches of an open store share: a cache, compiled statements, and leaves made ahead."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection

from async_history._core.writing.commit_function import CommitTry
from async_history._core.writing.submissions import Submission
from async_history._sql.connecting.connections import Connections
from async_history._sql.connecting.driver import PreparedStatements, prepares
from async_history._sql.errors import DriverError, RowsLeftOut, is_refusal
from async_history._sql.keys import Seal
from async_history._sql.ledger import Attestation
from async_history._sql.tables import Tables
from async_history._sql.transaction import Transaction, savepoint
from async_history._sql.writing.commit import BatchCommitter, Progress
from async_history._sql.writing.inserts import BulkInserts, Inserts
from async_history._sql.writing.known import Known
from async_history._sql.writing.single_statement import SingleStatement, takes_blocks
from async_history.errors import HistoryError


class WrittenBatch(NamedTuple):
    """A batch whose transaction is not committed yet.

    Attributes:
        refused: the errors of refused submissions, by index in the batch.
        learn: a function to call once it is committed.
    """

    refused: Mapping[int, HistoryError]
    learn: Callable[[], None]


class Batches:
    """Writes batches, and computes leaves while they wait.

    Args:
        statement_bytes: the most bytes of a statement; None: unlimited.
        seal, attestation: see `BatchCommitter`.

    Attributes:
        where: the server, for messages.
    """

    def __init__(
        self,
        connections: Connections,
        tables: Tables,
        *,
        statement_bytes: int | None,
        seal: Seal,
        attestation: Attestation | None,
    ) -> None:
        dialect = connections.dialect
        self._tables = tables
        self.where = connections.where
        self._seal = seal
        self._attestation = attestation
        self._known = Known()
        self._inserts = Inserts(tables, dialect)
        prepared = PreparedStatements(dialect) if prepares(dialect) else None
        self._single_statement: SingleStatement | None = None
        if takes_blocks(dialect):
            self._single_statement = SingleStatement(
                tables, dialect, self._inserts, statement_bytes, prepared, connections.committing
            )
        self._bulk: BulkInserts | None = None
        if prepared is not None:
            self._bulk = BulkInserts(tables, dialect, prepared, statement_bytes)

    def prepare(self, submissions: Sequence[Submission]) -> None:
        """Begin to compute the leaves of submissions that wait."""
        if self._attestation is not None:
            self._attestation.new.begin(submissions)

    def forget_prepared(self) -> None:
        """Keep nothing of calls that are not written, whose texts may be erased."""
        if self._attestation is not None:
            self._attestation.new.drop()

    async def write(
        self,
        connection: AsyncConnection,
        batch: Sequence[Submission],
        this: CommitTry,
        waited: Callable[[float], None],
        progress: Progress,
    ) -> WrittenBatch:
        """Write a batch in the transaction of the writing connection: at once, or in steps.

        Args:
            waited: called with the seconds of each wait for a lock.
            progress: is told how far the batch has come.
        """
        committer = self._committer(connection, this, waited, progress)
        try:
            is_done = await committer.add_at_once(batch, this.has_begun)
        except (*DriverError, RowsLeftOut) as error:
            if not isinstance(error, RowsLeftOut) and not is_refusal(error):
                raise
            self._seal.undone()
            is_done = False
        if is_done:
            return WrittenBatch({}, committer.learn)
        await connection.rollback()
        committer = self._committer(connection, this, waited, progress)
        this.has_begun()  # it waits for the server in each step
        refused = await committer.commit_in_steps(batch)
        return WrittenBatch(refused, committer.learn)

    def _committer(
        self,
        connection: AsyncConnection,
        this: CommitTry,
        waited: Callable[[float], None],
        progress: Progress,
    ) -> BatchCommitter:
        return BatchCommitter(
            Transaction(connection, self._tables, is_ours=True, waited=waited),
            self._inserts,
            self._known,
            self._seal,
            self.where,
            is_repeated=this.is_repeated,
            attestation=self._attestation,
            single_statement=self._single_statement,
            bulk=self._bulk,
            progress=progress,
        )

    async def write_apart(
        self, connection: AsyncConnection, batch: Sequence[Submission]
    ) -> Mapping[int, HistoryError]:
        """Write a batch in a transaction of the user; return the errors of refused submissions."""
        committer = BatchCommitter(
            Transaction(connection, self._tables, is_ours=False),
            self._inserts,
            Known(),
            self._seal.apart(),
            self.where,
            is_repeated=True,
            attestation=self._attestation,
        )
        async with savepoint(connection):
            return await committer.commit_in_steps(batch)
