"""The steps of SQLite's virtual machine, counted."""

from types import TracebackType

from async_history import HistoryManager
from async_history.sqlite import SQLiteHistoryManager

_EVERY = 100


class Steps:
    """Counts the VM steps of a manager's connections during the block."""

    def __init__(self, history: HistoryManager) -> None:
        assert isinstance(history, SQLiteHistoryManager)
        connections = history.store.pool
        self._connections = {*connections.readers.connections, connections._writer}
        self.taken = 0

    def _count(self) -> int:
        self.taken += _EVERY
        return 0

    async def __aenter__(self) -> "Steps":
        for connection in self._connections:
            assert connection is not None
            await connection.set_progress_handler(self._count, _EVERY)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for connection in self._connections:
            assert connection is not None
            await connection.set_progress_handler(None, _EVERY)  # type: ignore[arg-type]
