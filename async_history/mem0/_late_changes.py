"""Late changes, which are taken back: their owner, or their memory, was erased after they began.

The history has refused their records, so the vector store must not keep them either.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

from async_history._core.records.records import Event, HistoryRecord
from async_history._core.writing.erased_names import MEMORY
from async_history.errors import Erased
from async_history.mem0._errors import Unwritten, history_not_written
from async_history.mem0._steps import Steps, result_of

_SCOPES: Final = ("user_id", "agent_id", "run_id")
"""The scopes that mem0 filters entities by."""
_UNLINK: Final = "_remove_memory_from_entity_store"
"""mem0's function that removes a memory from its entities: since 2.0."""


def raise_unwritten(result: object, unwritten: Sequence[Unwritten]) -> None:
    """Raise the error of an operation that returned `result`, if its history was not written.

    Raises:
        Erased: the history has refused it as too late, and there was no other error.
        HistoryNotWritten: records were not written (they are named, without late ones).
    """
    others = [one for one in unwritten if not isinstance(one[0], Erased)]
    if others:
        raise history_not_written(result, others) from others[0][0]
    for error, _ in unwritten:
        raise error


async def take_back(steps: Steps, unwritten: Sequence[Unwritten]) -> None:
    """Remove the results of late changes from the vector store."""
    memory = steps.memory
    for error, record in _puts(memory, unwritten):
        with _noting(error, record.memory_id):
            await steps.call(_remove, memory, record.memory_id)
            unlink = getattr(memory, _UNLINK, None)
            if unlink is not None:
                await result_of(unlink(record.memory_id, _filters(record)))


@asynccontextmanager
async def kept(steps: Steps, record: HistoryRecord) -> AsyncIterator[None]:
    """Change the vector store after the history; remove what was erased since.

    Raises:
        Erased: the text of the record was erased before the vector store had it.
    """
    try:
        yield
        _require_kept(record, await steps.ask(lambda one: one.get_history(record.memory_id)))
    except Erased as error:
        await take_back(steps, [(error, [record])])
        raise


def _require_kept(record: HistoryRecord, history: Sequence[HistoryRecord]) -> None:
    there = next((one for one in history if one.id == record.id), None)
    if there is not None and there.new_memory is None and record.new_memory is not None:
        raise Erased(record.memory_id, MEMORY)


def _puts(memory: Any, unwritten: Sequence[Unwritten]) -> Iterator[tuple[Exception, HistoryRecord]]:
    if "vector_store" not in vars(memory):
        return  # a call outside mem0's operations
    for error, records in unwritten:
        if not isinstance(error, Erased):
            continue
        for record in records:
            if isinstance(record, HistoryRecord) and record.event != Event.DELETE:
                yield error, record


def _remove(memory: Any, memory_id: str) -> None:
    store = vars(memory)["vector_store"]
    if store.get(vector_id=memory_id) is not None:
        store.delete(vector_id=memory_id)


def _filters(record: HistoryRecord) -> dict[str, str]:
    owner = {} if record.owner is None else record.owner.as_dict()
    return {name: owner[name] for name in _SCOPES if name in owner}


@contextmanager
def _noting(error: Exception, memory_id: str) -> Iterator[None]:
    """Add a note to the error of a late change that cannot be taken back."""
    try:
        yield
    except Exception as failure:
        error.add_note(
            f"the vector store may have memory {memory_id!r} again, and could not be asked to "
            f"remove it ({failure}): forget its owner again"
        )
