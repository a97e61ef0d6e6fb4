"""A store's texts, which transactions read and rewrite, sealed or decrypted.

A transaction reads the next texts by their places, locks them if others could change them, and
replaces them. The places increase in an order of the database that skips no existing text.
"""

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from async_history._core.encryption.key_statements import KeyTable
from async_history._core.encryption.sealing import DataKey
from async_history._core.operations.operation_log import Tally
from async_history._core.operations.progress import Progress
from async_history._core.records.owners import Owner
from async_history._core.writing.erased_names import Name
from async_history._core.writing.message_buffers import MessageRow

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class TextLimits:
    """Limits of rewriting.

    Attributes:
        rows: most rows that one transaction reads; writers wait some milliseconds for it.
    """

    rows: int = 500


class StoredTexts(NamedTuple):
    """A record's stored texts; context and cause as JSON. Another program may have written values
    that are not texts.
    """

    place: Any
    id: str
    memory_id: str
    owner: Owner | None
    old_memory: Any
    new_memory: Any
    context: str | None
    cause: str | None


TEXT_COLUMNS: Final = StoredTexts._fields[4:]
"""The columns of a record's texts."""
LEDGER_MEANWHILE: Final = (
    "the history was given a ledger meanwhile, whose salts need the keys: these stay. encrypt() "
    "turns encryption on again"
)
"""The hint if keys cannot be removed at the end of a decryption."""
TURNED_OFF: Final = (
    "another call has begun to decrypt the history meanwhile: let it end, or call encrypt()"
)
"""The message if nothing can be sealed."""
SCOPE: Final = 1
CONTENT: Final = 3
"""Columns of a message's row."""


class StoredMessage(NamedTuple):
    """A stored buffered message."""

    place: Any
    row: MessageRow


Row = TypeVar("Row", StoredTexts, StoredMessage)


class Page(NamedTuple, Generic[Row]):
    """The rows found, and the place after which to continue; None after the last."""

    rows: Sequence[Row]
    after: Any


class TextTransaction(Protocol):
    """A transaction on stored texts. `after` is None at first."""

    @property
    def table(self) -> KeyTable:
        """The tables of keys, inside this transaction."""

    async def clear_records(self, after: Any, limit: int) -> Page[StoredTexts]:
        """Return the next records with a clear text, found by an index."""

    async def detailed_records(self, after: Any, limit: int) -> Page[StoredTexts]:
        """Return the next records with a context or a cause, if that index does not cover them."""

    async def sealed_records(self, after: Any, limit: int) -> Page[StoredTexts]:
        """Read the next records and return those with a sealed text."""

    async def retired_records(self, after: Any, limit: int) -> Page[StoredTexts]:
        """Read the next records and return those with a text under a retired key."""

    async def messages(self, after: Any, limit: int) -> Page[StoredMessage]:
        """Return the next buffered messages."""

    async def replace_records(self, rows: Sequence[StoredTexts]) -> None:
        """Write records' texts, and their causes' index entries.

        Raises:
            StorageRefused: a rule of the store's owner prevents the change.
        """

    async def replace_messages(self, rows: Sequence[StoredMessage]) -> None:
        """Write messages' contents.

        Raises:
            StorageRefused: as `replace_records`.
        """

    async def keys_of(self, owners: Sequence[Owner | None]) -> Sequence[DataKey | None]:
        """Return each owner's sealing key, with uses for all texts of a record; None if encryption
        is turned off.
        """

    async def lock_keys(self) -> None:
        """Wait for other transactions that change keys, and block new ones until this one ends.

        Then `TextStore.in_transaction` waits for the recording transactions that may not have seen
        the change.
        """

    async def retire_keys(self) -> None:
        """Retire all data keys. Call it after `lock_keys`."""

    async def retire_keys_of(self, name: Name) -> None:
        """Retire the data keys of owners with a scope, like `retire_keys`."""

    async def retired_keys(self) -> Sequence[str]:
        """Return the ids of retired data keys, except those whose owner is being erased."""

    async def turn_on(self) -> None:
        """Seal new records again."""

    async def turn_off(self) -> None:
        """Note that not all causes are sealed."""

    async def end(self) -> None:
        """Remove all keys except `OFF`, and everything else that only an encrypted store has."""

    async def compute(self, work: Callable[[], T]) -> T:
        """Call a function that only computes, without blocking the event loop."""

    async def note_whole(self) -> None:
        """Note whether all causes are sealed, so that tokens find all of them."""


class TextStore(Protocol):
    """A store whose texts can be rewritten in place."""

    async def in_transaction(self, work: Callable[[TextTransaction], Coroutine[Any, Any, T]]) -> T:
        """Run work in one transaction, in the queue of the writes."""

    async def require_decryptable(self) -> None:
        """Check the requirements of a decryption before anything is changed.

        Raises:
            StorageDenied, InvalidInput: the store cannot be decrypted in place.
        """

    async def finish_decrypting(self) -> None:
        """Remove what `end` cannot remove in a transaction."""

    async def count_records(self) -> int:
        """Return the number of records."""

    async def count_clear(self) -> int:
        """Return the number of records with a clear text."""

    @property
    def overwrite(self) -> Callable[[], Awaitable[Sequence[str]]]:
        """Free the space of old rows; return where texts may remain, one sentence each."""


Find = Callable[[TextTransaction], Callable[[Any, int], Coroutine[Any, Any, Page[Row]]]]
"""Finds the next rows in a transaction."""
Step = Callable[[TextTransaction, Sequence[Row]], Coroutine[Any, Any, int]]
"""Rewrites rows; returns how many were rewritten."""


class Rewriting:
    """Rewrites a store's texts, some rows in each transaction, and counts them.

    Args:
        tally: counts records and messages.
        on_progress: called with the number of records done and the total.
        total: the approximate number of records.
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
        """Rewrite all records found."""
        await self._all(find, step, self._note_records)

    async def messages(self, step: Step[StoredMessage]) -> None:
        """Rewrite the buffered messages that the step chooses."""
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
