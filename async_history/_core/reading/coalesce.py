"""Coalescing of concurrent reads of single memories into one SELECT.

A read needs a hop to a connection's thread and back, which costs more than the SELECT. So a single
call reads at once. Calls made during a read share the next one. As with commits, no call is delayed
to gather more.
"""

import asyncio
import copy
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Final, Generic, TypeVar

from async_history.errors import StorageUnreachable

_MOST: Final = 64
"""Most calls that share a read: twice as many were not faster."""
LONG_S: Final = 0.005
"""Seconds after which a read is long. Calls do not wait for long reads."""

Q = TypeVar("Q", bound=Hashable)
"""The argument of a call."""
A = TypeVar("A")
"""The result of a call."""
_Pending = tuple[Q, asyncio.Future[A]]
"""A call's argument, and the future that the caller awaits."""


class CoalescedReads(Generic[Q, A]):
    """Reads shared by concurrent callers; one at a time while reads are short.

    Args:
        read: returns the results for one or more arguments, by argument. Callers with equal
            arguments get the same result.
        at_once: most reads at the same time, if they are long.
        long_s: seconds after which a read is long.
    """

    def __init__(
        self,
        read: Callable[[Sequence[Q]], Awaitable[Mapping[Q, A]]],
        at_once: int,
        *,
        long_s: float = LONG_S,
    ) -> None:
        self._read = read
        self._at_once = at_once
        self._long_s = long_s
        self._waiting: list[_Pending[Q, A]] = []
        self._under_way: dict[asyncio.Task[None], asyncio.TimerHandle] = {}
        self._groups: dict[asyncio.Task[None], list[_Pending[Q, A]]] = {}
        self._short: set[asyncio.Task[None]] = set()

    async def of(self, question: Q) -> A:
        """Return the result for an argument, read at some moment after this call.

        Raises the errors of reading this argument, not those of other callers' arguments.
        """
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, answer))
        self._begin()
        try:
            return await answer
        except asyncio.CancelledError:
            self._cancel_unwanted()
            raise
        finally:
            del answer  # otherwise a cycle: error, traceback, this frame, future

    def _begin(self) -> None:
        """Start a read for the waiting calls, unless a short one is about to do so."""
        if not self._waiting or self._short or len(self._under_way) == self._at_once:
            return
        loop = asyncio.get_running_loop()
        group: list[_Pending[Q, A]] = []
        task = loop.create_task(self._answer_waiting(group))
        self._short.add(task)
        self._groups[task] = group
        self._under_way[task] = loop.call_later(self._long_s, self._is_long, task)
        task.add_done_callback(partial(self._ended, group))

    async def _answer_waiting(self, group: list[_Pending[Q, A]]) -> None:
        """Read for the calls that wait now, and note them in `group`.

        Now, not when this task was created: callers that are woken together call in the same
        iteration of the event loop.
        """
        waiting = [one for one in self._waiting if not one[1].done()]
        group += waiting[:_MOST]
        self._waiting = waiting[_MOST:]
        if group:
            await self._answer(group)

    def _cancel_unwanted(self) -> None:
        """Cancel the reads whose callers have all left."""
        for task, group in self._groups.items():
            if group and all(answer.done() for _, answer in group):
                task.cancel()

    def _is_long(self, task: "asyncio.Task[None]") -> None:
        self._short.discard(task)
        if task.done():  # `_ended` was interrupted by an exception, as of a signal handler
            self._under_way.pop(task, None)
        self._begin()

    def _ended(self, group: Sequence[_Pending[Q, A]], task: "asyncio.Task[None]") -> None:
        self._short.discard(task)
        self._groups.pop(task, None)
        for _, answer in group:
            answer.cancel()  # if the task was cancelled before it had a result
        timer = self._under_way.pop(task, None)
        if timer is not None:
            timer.cancel()
        self._begin()

    async def _answer(self, group: Sequence[_Pending[Q, A]]) -> None:
        try:
            found = await self._read([question for question, _ in group])
        except StorageUnreachable as error:  # reading one by one would only take as long again
            for _, answer in group:
                if not answer.done():
                    own = copy.copy(error)  # each raise of an error extends its traceback
                    own.__cause__ = error
                    answer.set_exception(own)
            return
        except Exception as error:  # raised to the callers whose read failed
            if len(group) > 1:
                await asyncio.gather(*(self._answer([one]) for one in group))
            elif not group[0][1].done():
                group[0][1].set_exception(error)
            return
        for question, answer in group:
            if not answer.done():
                answer.set_result(found[question])
