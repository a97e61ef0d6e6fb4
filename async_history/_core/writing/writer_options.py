"""The limits of a writer: of its queue and of one batch."""

from dataclasses import dataclass

from async_history._core.writing.queue import QUEUE_BYTES, QUEUE_RECORDS

BATCH_RECORDS = 512
"""Most records of a batch. With 1,000 tasks, half of them commit while the other half is woken.
With 1,000 records in a batch both waited for each other, at two thirds of the speed.
"""
BATCH_BYTES = 16 * 1024 * 1024
"""Most bytes of a batch. A larger submission is a separate batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterOptions:
    """The limits of a writer.

    `queue_records` and `queue_bytes` limit the queue (without the batch being committed),
    `batch_records` and `batch_bytes` one batch. `queue_timeout_s` is how long a caller may wait for
    space; None waits without limit.
    """

    queue_records: int = QUEUE_RECORDS
    queue_bytes: int = QUEUE_BYTES
    queue_timeout_s: float | None = None
    batch_records: int = BATCH_RECORDS
    batch_bytes: int = BATCH_BYTES


DEFAULT_OPTIONS = WriterOptions()
