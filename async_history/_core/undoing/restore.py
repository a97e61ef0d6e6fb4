"""The restoration of a memory whose text of the moment a transaction can't find by itself."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from async_history._core.backend import Writer
from async_history._core.reading.restoration import restoration_of
from async_history._core.records.recording import operation
from async_history._core.records.records import HistoryRecord
from async_history._core.writing.submissions import RestoreMemory
from async_history.errors import HistoryConflict

_MOST_READS: Final = 5
"""Most reads of a memory for its restoration: each is repeated if an erasure comes in between."""


async def restore_after_reading(
    submission: RestoreMemory,
    writer: Writer,
    read: Callable[[str], Awaitable[Sequence[HistoryRecord]]],
) -> None:
    """Submit a restoration again, with the version that the memory's records show.

    Args:
        read: returns all records of a memory.

    Raises:
        InvalidInput: the memory is unknown, did not exist then, or its text is not known.
        HistoryConflict: its records changed each time that they were read.
    """
    memory_id, to = submission.decided_by, submission.to
    for _ in range(_MOST_READS):
        with operation():
            records = await read(memory_id)
        wanted = restoration_of(memory_id, records, to).wanted
        version = 1 + [record is wanted for record in records].index(True)
        submission.look_at(version, wanted.new_memory)
        await writer.submit(submission)
        if submission.is_decided:
            return
    raise HistoryConflict(
        f"the record of {memory_id!r} to restore was erased or removed each of {_MOST_READS} times "
        "after it was read; nothing was written"
    )
