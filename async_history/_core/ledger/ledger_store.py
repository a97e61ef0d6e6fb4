"""A store with a ledger: its transactions over the ledger's tables."""

from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

from async_history._core.ledger.tables import LedgerTables

T = TypeVar("T")

GIVEN_A_LEDGER: Final = (
    "the history was given a ledger since it was opened here, which has to note what is removed; "
    "nothing was removed. Open it again"
)
"""The message if a store that was opened without a ledger has one when it removes records."""


@runtime_checkable
class LedgeredStore(Protocol):
    """An open store that can have a ledger."""

    @property
    def ledger(self) -> "LedgerStore | None":
        """Its ledger; None if it has none."""


class LedgerStore(Protocol):
    """A store's ledger: transactions over its tables."""

    async def write(self, work: Callable[[LedgerTables], Coroutine[Any, Any, T]]) -> T:
        """Run work in one transaction, queued with the writes of this store."""

    async def read(self, work: Callable[[LedgerTables], Coroutine[Any, Any, T]]) -> T:
        """Run work that only reads, in one snapshot if the database has snapshots.

        Long work does not run on the event loop.
        """


async def place_all(ledger: LedgerStore) -> None:
    """Assign places to all written leaves, some in each transaction.

    This is called before records are removed, so that the removing transaction has few left.
    """
    while await ledger.write(LedgerTables.grow):
        pass
