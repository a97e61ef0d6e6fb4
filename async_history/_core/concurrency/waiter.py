"""A future for one waiting task: waking it either succeeds or changes nothing."""

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any, Self


class Waiter(asyncio.Future[None]):
    """A future that one task awaits.

    An ordinary future is done first, and then asks the loop to resume the task. If that raises, as
    in a call near the interpreter's recursion limit, the task is never resumed. This one asks
    first.
    """

    _resume: Callable[..., object] | None = None
    _context: Context | None = None

    def add_done_callback(
        self, fn: Callable[[Self], object], /, *, context: Context | None = None
    ) -> None:
        """Store what resumes the task. Called by the task, once."""
        self._resume = fn
        self._context = context

    def wake(self) -> None:
        """Resume the task, unless its wait is over.

        Raises what the loop raises; then nothing has changed.
        """
        if not self.done():
            self._resume_task()
            self.set_result(None)

    def cancel(self, msg: Any = None) -> bool:
        """Cancel the task's wait, unless it is over."""
        if self.done():
            return False
        self._resume_task()
        return super().cancel(msg)

    def _resume_task(self) -> None:
        if self._resume is not None:  # the task awaits this, and not only has it
            self.get_loop().call_soon(self._resume, self, context=self._context)
