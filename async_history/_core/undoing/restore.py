"""The restoration of a memory: in one transaction, or after all its records were read."""

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


async def restore(
    submission: RestoreMemory,
    writer: Writer,
    read: Callable[[str], Awaitable[Sequence[HistoryRecord]]],
) -> HistoryRecord:
    """Restore a memory; return the new record, or its latest one if nothing had to be written.

    Args:
        read: returns all records of a memory, if the transaction can't find the text by itself.

    Raises:
        InvalidInput: the memory is unknown, did not exist then, or its text is not known.
        HistoryConflict: its records changed each time that they were read.
    """
    memory_id, to = submission.decided_by, submission.to
    await writer.submit(submission)
    reads = 0
    while not submission.is_decided and reads < _MOST_READS:
        with operation():
            records = await read(memory_id)
        wanted = restoration_of(memory_id, records, to).wanted
        version = 1 + [record is wanted for record in records].index(True)
        submission.look_at(version, wanted.new_memory)
        await writer.submit(submission)
        reads += 1
    if submission.is_decided:
        return submission.records[0]
    raise HistoryConflict(
        f"the record of {memory_id!r} to restore was erased or removed each of {_MOST_READS} times "
        "after it was read; nothing was written"
    )
