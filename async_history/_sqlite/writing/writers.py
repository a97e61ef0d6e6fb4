"""Writers that refuse what their file can't store."""

import asyncio
from collections.abc import Awaitable, Callable

from async_history._core.backend import Writer
from async_history._core.writing.observer import WriterObserver
from async_history._core.writing.submissions import Submission
from async_history._core.writing.writer_stats import WriterStats
from async_history._sqlite.writing.encoding import check_submission
from async_history.errors import MigrationError


class UnpreparedWriter:
    """A writer that refuses every call: the file must be adopted or indexed first."""

    def __init__(self, where: str) -> None:
        self._where = where

    def require_writable(self) -> None:
        raise unprepared_error(self._where)

    def submit(self, submission: Submission) -> "asyncio.Future[None]":
        raise unprepared_error(self._where)

    async def submit_when_ready(self, prepare: Callable[[], Awaitable[Submission]]) -> None:
        raise unprepared_error(self._where)

    def observe(self, observer: WriterObserver) -> None: ...

    def stats(self) -> None:
        return None


class UTF16Writer:
    """A writer that refuses, before queueing, what a file in UTF-16 can't hold."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def require_writable(self) -> None:
        self._writer.require_writable()

    def submit(self, submission: Submission) -> "asyncio.Future[None]":
        check_submission(submission)
        return self._writer.submit(submission)

    async def submit_when_ready(self, prepare: Callable[[], Awaitable[Submission]]) -> None:
        async def checked() -> Submission:
            submission = await prepare()
            check_submission(submission)
            return submission

        await self._writer.submit_when_ready(checked)

    def observe(self, observer: WriterObserver) -> None:
        self._writer.observe(observer)

    def stats(self) -> WriterStats | None:
        return self._writer.stats()


def unprepared_error(where: str) -> MigrationError:
    """Return the error of a write to a file that was not prepared."""
    return MigrationError(
        f"{where} was opened with migrate=False and needs adoption or indexing before it can be "
        "written; open it with migrate=True"
    )
