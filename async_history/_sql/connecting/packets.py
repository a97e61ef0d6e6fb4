"""The server's limit on the size of a statement: a longer one ends the connection."""

from collections.abc import Iterable, Sequence

from async_history._core.writing.submissions import AddRecords, SaveMessages, Submission
from async_history._sql.keys import Seal, escaped_bytes
from async_history._sql.rows import texts_of
from async_history.errors import HistoryError, StorageRefused


def find_too_large(
    batch: Sequence[Submission], most: int | None, seal: Seal, where: str
) -> dict[int, HistoryError]:
    """Return an error for each submission with too much text for the server, by index.

    Args:
        most: most bytes of a statement's texts; None: unlimited.
        seal: seals texts.
        where: the server, for messages.
    """
    refused: dict[int, HistoryError] = {}
    if most is None:
        return refused
    for index, one in enumerate(batch):
        if seal.statement_bytes(one.size_bytes) <= most:
            continue
        size = max([sum(map(seal.text_bytes, texts)) for texts in _texts_in(one)], default=0)
        if size > most:
            refused[index] = StorageRefused(f"{_too_large(size, most, where)}. Nothing was written")
    return refused


def require_fits(rows: Iterable[Sequence[str | None]], most: int | None, where: str) -> None:
    """Check that each row of texts fits one statement.

    Raises:
        StorageRefused: a row is too large.
    """
    if most is None:
        return
    for texts in rows:
        size = sum(escaped_bytes(text) for text in texts if text is not None)
        if size > most:
            raise StorageRefused(f"{_too_large(size, most, where)}, and call this again")


def _too_large(size: int, most: int, where: str) -> str:
    return (
        f"{size:,} bytes of text are more than {where} takes at once (about {most:,}): raise the "
        "server's max_allowed_packet"
    )


def _texts_in(submission: Submission) -> list[list[str]]:
    """Return the long texts of a submission, row by row."""
    if isinstance(submission, AddRecords):
        return list(map(texts_of, submission.records))
    if isinstance(submission, SaveMessages):
        return [[one.content or ""] for one in submission.messages]
    return []
