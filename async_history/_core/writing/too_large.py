"""Batches with calls that are too large for the server, and so refused before they are sent."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from async_history._core.writing.submissions import Submission
from async_history.errors import HistoryError

WriteBatch = Callable[[Sequence[Submission]], Awaitable[Mapping[int, HistoryError]]]
"""A function that writes submissions, and returns the refused ones by index."""


async def write_others(
    batch: Sequence[Submission], too_large: Mapping[int, HistoryError], write: WriteBatch
) -> Mapping[int, HistoryError]:
    """Write the submissions that are not too large; return all refused ones by index in the batch.

    Args:
        too_large: the errors of those that are, by index.
    """
    if not too_large:
        return await write(batch)
    left = [index for index in range(len(batch)) if index not in too_large]
    refused = await write([batch[index] for index in left]) if left else {}
    return {left[index]: error for index, error in refused.items()} | dict(too_large)
