"""The check of an open history: its chains, and its backend's own checks.

Records are read in the order of recording, page by page. A memory whose chain seems broken is read
again separately, so records that arrive during the check are not reported as faults. The state in
memory is bounded: with more memories, the records are read more than once.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from async_history._core.backend import Reader, Store
from async_history._core.checking.chains import ChainWalk, broken_records
from async_history._core.checking.check_report import BrokenRecord, ChainFault, CheckReport
from async_history._core.reading.cursors import Cursor
from async_history._core.reading.filters import Filter
from async_history._core.reading.query import HistoryQuery
from async_history._core.records.records import HistoryRecord
from async_history._core.wording import counted
from async_history.errors import StorageCorrupt


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckLimits:
    """Limits of a check.

    Attributes:
        rows: records per page: about a millisecond of the loop's time.
        memories: most memories whose state is kept, about 100 bytes each.
        suspects: most memories that are checked closely at once.
        named: most records that a report names.
    """

    rows: int = 1_000
    memories: int = 500_000
    suspects: int = 2_000
    named: int = 100


_WORDS: Final = {
    ChainFault.TEXT: (
        "does not continue the text before it",
        "do not continue the text before them",
        "several writers changed the memory at the same time, or one without a record",
    ),
    ChainFault.EVENT: (
        "can't follow the one before it",
        "can't follow the one before them",
        "an ADD of a memory that exists, or a change of one that does not",
    ),
    ChainFault.ORDER: (
        "was recorded in another order than it happened",
        "were recorded in another order than they happened",
        "by their times",
    ),
    ChainFault.UNKNOWN_EVENT: (
        "has an event that is not ADD, UPDATE or DELETE",
        "have an event that is not ADD, UPDATE or DELETE",
        "it is shown as it is",
    ),
}


@dataclass(slots=True)
class BrokenChains:
    """A history's broken records: a count per fault, and the first records.

    Args:
        named: how many records are kept.
    """

    named: int
    first: list[BrokenRecord] = field(default_factory=list)
    _counts: Counter[ChainFault] = field(default_factory=Counter)
    _examples: dict[ChainFault, BrokenRecord] = field(default_factory=dict)

    def take(self, broken: Iterable[BrokenRecord]) -> None:
        """Add broken records."""
        for one in broken:
            self._counts[one.fault] += 1
            self._examples.setdefault(one.fault, one)
            if len(self.first) < self.named:
                self.first.append(one)

    def notes(self) -> tuple[str, ...]:
        """Return a sentence for each kind of fault."""
        return tuple(map(self._note, self._examples))

    def _note(self, fault: ChainFault) -> str:
        count, example = self._counts[fault], self._examples[fault]
        one, many, why = _WORDS[fault]
        return (
            f"{counted(count, 'record')} {one if count == 1 else many}, such as "
            f"{example.record_id} of memory {example.memory_id} ({why})."
        )


async def check_store(store: Store, where: str, limits: CheckLimits) -> CheckReport:
    """Read a whole history and report its faults.

    Raises:
        CursorGone: records were removed during the check.
    """
    problems = tuple(await store.faults())
    bits = 0
    try:
        while (report := await _check_in_parts(store.reader, where, limits, bits)) is None:
            bits += 1
    except StorageCorrupt as error:
        if not problems:
            raise
        note = f"The records could not all be read: {error}"
        report = CheckReport(store=where, records=0, notes=(note,))
    return replace(report, problems=problems)


async def _check_in_parts(
    reader: Reader, where: str, limits: CheckLimits, bits: int
) -> CheckReport | None:
    """Check the chains of all memories, in 2**bits parts; return None if a part has too many."""
    chains = BrokenChains(limits.named)
    records = memories = 0
    for part in range(1 << bits):
        walk = ChainWalk(limits.memories, bits, part)
        records = await _walk(reader, walk, chains, limits)
        if walk.is_full:
            return None
        memories += walk.memories
    return CheckReport(
        store=where,
        records=records,
        memories=memories,
        notes=chains.notes(),
        broken=tuple(chains.first),
    )


async def _walk(reader: Reader, walk: ChainWalk, chains: BrokenChains, limits: CheckLimits) -> int:
    """Pass all records through a walk and check its suspects closely; return their number."""
    count = 0
    after: Cursor | None = None
    suspects: list[str] = []
    while True:
        read = await reader.rows(after, limits.rows)
        suspects += walk.suspects(read.rows)
        count += len(read.rows)
        after = read.cursor
        if suspects and (read.is_last or len(suspects) >= limits.suspects):
            for records in (await _of_memories(reader, suspects, limits.rows)).values():
                chains.take(broken_records(records))
            suspects = []
        await asyncio.sleep(0)
        if read.is_last or walk.is_full:
            return count


async def _of_memories(
    reader: Reader, memory_ids: Sequence[str], page_size: int
) -> dict[str, list[HistoryRecord]]:
    wanted = Filter(memory_ids=tuple(memory_ids))
    return await by_memory(HistoryQuery(reader.page, wanted, None, None, page_size))


async def by_memory(query: HistoryQuery) -> dict[str, list[HistoryRecord]]:
    """Return a query's records by memory."""
    found: dict[str, list[HistoryRecord]] = {}
    async for page in query.pages():
        for record in page.records:
            found.setdefault(record.memory_id, []).append(record)
    return found
