"""The null backend: history is checked, accepted and forgotten; message buffers are kept.

mem0-ts has it as its Dummy. The buffers stay, in memory, because mem0 2.x feeds them to its LLM.
"""

from collections import defaultdict, deque
from collections.abc import Sequence

from async_history.manager import CLOSE_TIMEOUT_S, HistoryManager, HistoryStats
from async_history.queries import Cursor, Filter, PageRead
from async_history.records import HistoryRecord, Message
from async_history.submissions import MESSAGES_KEPT, SaveMessages, Submission


class NullHistoryManager(HistoryManager):
    """A history that remembers nothing: switch it off without changing the program.

    There is nothing to create or to migrate: `create` and `migrate` are as in the contract, and
    mean nothing.
    """

    def __init__(
        self,
        *,
        create: bool = True,
        migrate: bool = True,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
    ) -> None:
        super().__init__(close_timeout_s=close_timeout_s)

    async def _open(self) -> None:
        self._buffers: dict[str, deque[Message]] = defaultdict(lambda: deque(maxlen=MESSAGES_KEPT))

    async def _close(self) -> None:
        self._abandon()

    def _abandon(self) -> None:
        self._buffers.clear()

    async def _submit(self, submission: Submission) -> None:
        if isinstance(submission, SaveMessages):
            self._buffers[submission.session_scope].extend(submission.messages)

    async def _read_history(self, memory_id: str) -> list[HistoryRecord]:
        return []

    async def _read_page(self, wanted: Filter, after: Cursor | None, limit: int) -> PageRead:
        return PageRead([], None, is_last=True)

    async def _read_messages(self, session_scope: str, limit: int) -> Sequence[Message]:
        buffer = self._buffers.get(session_scope, ())
        return list(buffer)[max(0, len(buffer) - limit) :]

    async def _read_stats(self) -> HistoryStats:
        return HistoryStats("null://", None, 0, 0, ())

    async def _empty(self) -> None:
        self._buffers.clear()
