"""Encrypts what a store has in clear: from before encryption, or of a program without keys.

It goes through the store in small transactions, in turn with the writes. Each looks for what is in
clear still, and replaces it. Killed at any place, it can be begun again: what is sealed stays so.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from async_history._core.operations import OperationLog, logged, new_operation
from async_history._core.progress import Progress
from async_history._core.wording import counted

ENCRYPT: Final = "encrypt"
"""The kind of the operation in the log."""
_ROWS: Final = 500
"""Rows that one transaction looks at: writers wait some milliseconds for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncryptionReport:
    """What `encrypt` did."""

    records: int
    """How many times a record's texts, or its context and cause, were encrypted."""
    messages: int
    """Buffered messages whose content was encrypted."""
    clear: int
    """Records that have a text in clear still: written meanwhile by a program without keys, or of
    a type that is not text."""
    remains: tuple[str, ...] = ()
    """Where else texts may be in clear, and what to do about it: a sentence each."""

    def outcome(self) -> str:
        """Return the outcome as one sentence for people."""
        left = f"; {counted(self.clear, 'record')} in clear still" if self.clear else ""
        return (
            f"encrypted {counted(self.records, 'record')} and "
            f"{counted(self.messages, 'message')}{left}"
        )


class Sealed(NamedTuple):
    """How many rows a transaction sealed, and the id to go on after; None after the last."""

    rows: int
    after: str | None


class ClearTexts(Protocol):
    """What a store has in clear, and how a database seals it, each call in one transaction."""

    async def count(self) -> int:
        """Return how many records have a text in clear."""

    async def seal_texts(self, limit: int) -> int:
        """Seal the texts of the next records that have one in clear; return how many these were."""

    async def seal_details(self, after: str, limit: int) -> Sealed:
        """Seal contexts and causes of records after an id, in the order of ids."""

    async def seal_messages(self, after: str, limit: int) -> Sealed:
        """Seal the contents of messages after an id, in the order of ids."""

    async def note_whole(self) -> None:
        """Note whether all causes are sealed, so that they are found by their tokens."""

    @property
    def overwrite(self) -> Callable[[], Awaitable[Sequence[str]]]:
        """Write what is free in the files again; return where texts may be still."""


async def encrypt(
    texts: ClearTexts, log: OperationLog, on_progress: Progress | None
) -> EncryptionReport:
    """Seal all that is in clear, a step at a time."""
    async with logged(log, new_operation(ENCRYPT)) as tally:
        total = await texts.count()
        while count := await texts.seal_texts(_ROWS):
            tally.records += count
            if on_progress is not None:
                on_progress(tally.records, max(total, tally.records))
        tally.records += await _walk(texts.seal_details)
        tally.messages = await _walk(texts.seal_messages)
        await texts.note_whole()
        remains = await texts.overwrite()
        clear = await texts.count()
    return EncryptionReport(
        records=tally.records, messages=tally.messages, clear=clear, remains=tuple(remains)
    )


async def _walk(seal: Callable[[str, int], Awaitable[Sealed]]) -> int:
    done = 0
    after: str | None = ""
    while after is not None:
        count, after = await seal(after, _ROWS)
        done += count
    return done
