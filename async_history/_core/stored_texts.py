"""What a store has of texts, as a transaction reads them and writes them again: sealed, or opened.

A transaction reads the next texts by their places, locked where others could change them, and
replaces them. The places grow in an order of the database's, in which nothing that was there before
is passed over.
"""

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from async_history._core.batch import MessageRow
from async_history._core.erased_names import Name
from async_history._core.key_statements import KeyTable
from async_history._core.operations import Tally
from async_history._core.owners import Owner
from async_history._core.progress import Progress
from async_history._core.sealing import DataKey

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class TextLimits:
    """How much is done at once.

    Attributes:
        rows: that one transaction looks at: writers wait some milliseconds for it.
    """

    rows: int = 500


class StoredTexts(NamedTuple):
    """A record's texts, as they are stored; context and cause as JSON. A foreign program may have
    written other values than texts."""

    place: Any
    id: str
    memory_id: str
    owner: Owner | None
    old_memory: Any
    new_memory: Any
    context: str | None
    cause: str | None


LEDGER_MEANWHILE: Final = (
    "the history was given a ledger meanwhile, whose salts need the keys: these stay. encrypt() "
    "turns encryption on again"
)
"""What is said where the keys can't be removed at the end of a decryption."""
TURNED_OFF: Final = (
    "another call has begun to decrypt the history meanwhile: let it end, or call encrypt()"
)
"""What is said where nothing can be sealed."""
SCOPE: Final = 1
CONTENT: Final = 3
"""Columns of a message's row."""


class StoredMessage(NamedTuple):
    """A buffered message, as it is stored."""

    place: Any
    row: MessageRow


Row = TypeVar("Row", StoredTexts, StoredMessage)


class Page(NamedTuple, Generic[Row]):
    """What was found, and the place to go on after; None after the last."""

    rows: Sequence[Row]
    after: Any


class TextTransaction(Protocol):
    """What a transaction does with stored texts. `after` is None at first."""

    @property
    def table(self) -> KeyTable:
        """The tables of keys, inside this transaction."""

    async def clear_records(self, after: Any, limit: int) -> Page[StoredTexts]:
        """Return the next records with a text in clear, as an index finds them."""

    async def detailed_records(self, after: Any, limit: int) -> Page[StoredTexts]:
        """Return the next records with a context or a cause, where that index does not find
        them."""

    async def sealed_records(self, after: Any, limit: int) -> Page[StoredTexts]:
        """Return those of the next records that have a sealed text."""

    async def retired_records(self, after: Any, limit: int) -> Page[StoredTexts]:
        """Return those of the next records that have a text under a retired key."""

    async def messages(self, after: Any, limit: int) -> Page[StoredMessage]:
        """Return the next buffered messages."""

    async def replace_records(self, rows: Sequence[StoredTexts]) -> None:
        """Write records' texts, and what indexes have of causes.

        Raises:
            StorageRefused: a rule of the store's owner keeps rows as they are.
        """

    async def replace_messages(self, rows: Sequence[StoredMessage]) -> None:
        """Write messages' contents.

        Raises:
            StorageRefused: as `replace_records`.
        """

    async def keys_of(self, owners: Sequence[Owner | None]) -> Sequence[DataKey | None]:
        """Return the key that seals what each owner has, for all texts of a record; None where
        encryption is turned off."""

    async def hold_writers(self) -> None:
        """Wait for all transactions that record, and let none begin until this one has ended."""

    async def retire_keys(self) -> None:
        """Retire all data keys. To be called once writers are held."""

    async def retire_keys_of(self, name: Name) -> None:
        """Retire the data keys of owners that have a scope. As `retire_keys`."""

    async def retired_keys(self) -> Sequence[str]:
        """Return the ids of retired data keys, but of those whose owner is being erased."""

    async def remove_keys(self, ids: Sequence[str]) -> None:
        """Remove data keys, but those whose owner is being erased."""

    async def turn_on(self) -> None:
        """Have all that is recorded sealed, again."""

    async def turn_off(self) -> None:
        """Note that not all causes are sealed."""

    async def end(self) -> None:
        """Remove all keys but `OFF`, and what else an encrypted store has."""

    async def compute(self, work: Callable[[], T]) -> T:
        """Call a function that only computes, where it does not hold up the event loop."""

    async def note_whole(self) -> None:
        """Note whether all causes are sealed, so that they are found by their tokens."""


class TextStore(Protocol):
    """A store whose texts can be written again in place."""

    async def in_transaction(self, work: Callable[[TextTransaction], Coroutine[Any, Any, T]]) -> T:
        """Do work in one transaction, in its turn among the writes."""

    async def require_decryptable(self) -> None:
        """Check, before anything is changed, what the end of a decryption needs.

        Raises:
            StorageDenied, InvalidInput: it can't be decrypted in place.
        """

    async def finish_decrypting(self) -> None:
        """Remove what `end` could not in a transaction."""

    async def count_records(self) -> int:
        """Return how many records there are."""

    async def count_clear(self) -> int:
        """Return how many records have a text in clear."""

    @property
    def overwrite(self) -> Callable[[], Awaitable[Sequence[str]]]:
        """Free what the old rows took; return where texts may be still, a sentence each."""


Find = Callable[[TextTransaction], Callable[[Any, int], Coroutine[Any, Any, Page[Row]]]]
"""Return what finds the next rows in a transaction."""
Step = Callable[[TextTransaction, Sequence[Row]], Coroutine[Any, Any, int]]
"""Write rows again; return how many of them that were."""


class Rewriting:
    """Writes a store's texts again, some rows in each transaction, and counts them.

    Args:
        tally: counts records and messages.
        on_progress: called after some records with how many are done and how many there are.
        total: how many records there are, about.
    """

    def __init__(
        self,
        store: TextStore,
        tally: Tally,
        on_progress: Progress | None,
        total: int,
        limits: TextLimits,
    ) -> None:
        self._store = store
        self._tally = tally
        self._on_progress = on_progress
        self._total = total
        self._limits = limits

    async def records(self, find: Find[StoredTexts], step: Step[StoredTexts]) -> None:
        """Write all records again that are found."""
        await self._all(find, step, self._note_records)

    async def messages(self, step: Step[StoredMessage]) -> None:
        """Write the buffered messages again that the step chooses."""
        await self._all(lambda texts: texts.messages, step, self._note_messages)

    def _note_records(self, count: int) -> None:
        self._tally.records += count
        if count and self._on_progress is not None:
            self._on_progress(self._tally.records, max(self._total, self._tally.records))

    def _note_messages(self, count: int) -> None:
        self._tally.messages += count

    async def _all(self, find: Find[Row], step: Step[Row], note: Callable[[int], None]) -> None:
        after: Any = None

        async def work(texts: TextTransaction) -> tuple[int, Any]:
            page = await find(texts)(after, self._limits.rows)
            return await step(texts, page.rows), page.after

        while True:
            count, after = await self._store.in_transaction(work)
            note(count)
            if after is None:
                return
