"""Learning unknown owners of a history's memories from mem0's vector store.

Each memory is read from the vector store by id. A list would be faster, but every store limits its
length, mostly to 100 or 10,000 rows, and mem0 cannot read the rest.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from async_history._core.manager import HistoryManager
from async_history._core.records.owners import Owner
from async_history._core.writing.new_submissions import owners_to_give
from async_history._core.writing.submissions import GiveOwners
from async_history.blocking._sanitize import Sanitizer
from async_history.mem0._steps import Steps
from async_history.mem0._vectors.payloads import owner_in, unwatched

_AT_ONCE: Final = 200
"""Memories read and written at once: a fraction of a second with most stores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedOwners:
    """The result of `learn_owners`."""

    memories: int
    """Number of memories whose owner the history did not know."""
    learned: int
    """Number of memories whose owner it knows now."""
    unknown: int
    """Number of memories that the vector store does not have (they were deleted) or has no owner
    of.
    """


async def unowned(history: HistoryManager) -> list[str]:
    """Return the memories whose owner is not known."""
    found: dict[str, None] = {}
    async for record in history.query_history():
        if record.owner is None:
            found[record.memory_id] = None
    return list(found)


def owners_in_store(memory: Any, memory_ids: Sequence[str]) -> dict[str, Owner]:
    """Read the owners of memories from the vector store. It blocks."""
    store = unwatched(memory.vector_store)
    owners: dict[str, Owner] = {}
    for memory_id in memory_ids:
        payload = getattr(store.get(vector_id=memory_id), "payload", None)
        with Sanitizer() as sanitizer:
            owner = owner_in(payload, sanitizer) if isinstance(payload, Mapping) else None
        if owner is not None:
            owners[memory_id] = owner
    return owners


def parts(memory_ids: Sequence[str]) -> Iterator[list[str]]:
    """Yield memories in parts to read and write at once."""
    left = iter(memory_ids)
    while part := list(islice(left, _AT_ONCE)):
        yield part


def _learned(memory_ids: Sequence[str], given: Sequence[GiveOwners]) -> LearnedOwners:
    learned = sum(len(one.given) for one in given)
    return LearnedOwners(
        memories=len(memory_ids), learned=learned, unknown=len(memory_ids) - learned
    )


async def learn(steps: Steps) -> LearnedOwners:
    """Learn the owners of the history's memories."""
    memory_ids = await steps.ask(unowned)
    given: list[GiveOwners] = []
    for part in parts(memory_ids):
        owners = await steps.call(owners_in_store, steps.memory, part)
        if owners:
            submission = owners_to_give(owners)
            await steps.ask(lambda history, one=submission: history.store.writer.submit(one))  # type: ignore[misc]
            given.append(submission)
    return _learned(memory_ids, given)
