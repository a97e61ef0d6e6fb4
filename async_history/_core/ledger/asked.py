"""Statements that are sent ahead: a server reads the next rows while others are processed."""

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Sequence
from typing import Any, Final

Answer = Awaitable[Sequence[Sequence[Any]]]
"""The rows of a statement, to be awaited."""
Run = Callable[..., Answer]
"""A function that runs one statement with its parameters, and returns its rows."""
Asked = tuple[Any, ...]
"""A statement and its parameters."""

_AHEAD: Final = 2
"""Answers that are kept besides the one in use: about 512 rows each."""


def ask_ahead(run: Run, statements: Iterable[Asked]) -> Generator[Answer, None, None]:
    """Run statements in order, and yield the answers.

    Close the generator: it closes the answers that were not awaited.
    """
    asked: deque[Answer] = deque()
    try:
        for each in statements:
            asked.append(run(*each))
            if len(asked) > _AHEAD:
                yield asked.popleft()
        while asked:
            yield asked.popleft()
    finally:
        for answer in asked:
            if isinstance(answer, Coroutine):
                answer.close()
