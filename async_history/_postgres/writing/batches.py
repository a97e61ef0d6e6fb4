"""What the batches of an open store share: a cache of owners, and what was made ahead of them."""

from collections.abc import Callable, Sequence
from typing import Any

from async_history._core.writing.commit_function import CommitTry
from async_history._core.writing.submissions import Submission
from async_history._postgres.key_statements import Access
from async_history._postgres.keys import Seal
from async_history._postgres.ledger import Attestation
from async_history._postgres.writing.commit import BatchCommitter
from async_history._postgres.writing.owners import KnownOwners
from async_history._postgres.writing.plain_statements import PlainStatements


class Batches:
    """Makes the committer of each batch, and prepares batches while they wait.

    Args:
        schema, seal, attestation, where, is_distributed: see `BatchCommitter`.
    """

    def __init__(
        self,
        schema: str,
        seal: Seal,
        attestation: Attestation | None,
        *,
        where: str,
        is_distributed: bool,
    ) -> None:
        self._schema = schema
        self._seal = seal
        self._attestation = attestation
        self._where = where
        self._is_distributed = is_distributed
        self._known = KnownOwners()
        self._plain = PlainStatements()

    def prepare(self, submissions: Sequence[Submission]) -> None:
        """Begin to seal submissions that wait, and to compute their leaves."""
        self._seal.begin(submissions, self._known.expected)
        if self._attestation is not None:
            self._attestation.new.begin(submissions)

    def prepare_plain(self, submissions: Sequence[Submission]) -> None:
        """Begin to make the statement of submissions that wait: in clear, without leaves."""
        if not self._known.number:
            self._plain.begin(submissions)

    def forget_prepared(self) -> None:
        """Keep nothing of calls that are not written, whose texts may be erased."""
        self._plain.drop()
        self._seal.drop()
        if self._attestation is not None:
            self._attestation.new.drop()

    def committer(
        self,
        connection: Any,
        settings: Sequence[str],
        this: CommitTry,
        *,
        has_standbys: bool,
        leaves_out_late: bool,
        waited: Callable[[float], None],
    ) -> BatchCommitter:
        """Return the committer of a batch on the writing connection."""
        return BatchCommitter(
            connection,
            self._schema,
            settings=settings,
            is_distributed=self._is_distributed,
            has_standbys=has_standbys,
            is_repeated=this.is_repeated,
            leaves_out_late=leaves_out_late,
            known=self._known,
            plain=self._plain,
            seal=self._seal,
            attestation=self._attestation,
            where=self._where,
            sent=this.has_begun,
            waited=waited,
        )

    def committer_apart(self, connection: Any, keys: Access) -> BatchCommitter:
        """Return the committer of a batch in a transaction of the user, without the cache."""
        return BatchCommitter(
            connection,
            self._schema,
            is_distributed=False,
            owns_transaction=False,
            known=KnownOwners(),
            plain=PlainStatements(),
            seal=self._seal,
            attestation=self._attestation,
            keys=keys,
            where=self._where,
            sent=lambda: None,
        )
