"""Ends a command early by Ctrl-C, and by SIGTERM in the same way.

`docker stop`, systemd and Kubernetes end a program by SIGTERM.
"""

import asyncio
import signal
import threading
from collections.abc import Coroutine
from typing import Any, Final, TypeVar, cast

T = TypeVar("T")

_SIGNALLED: Final = 128
"""A shell's exit status for a program ended by a signal is this and the signal's number."""
_terminated: Final = threading.Event()


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine as `asyncio.run` does, and cancel it by SIGTERM too.

    A second SIGTERM ends the program at once.

    Raises:
        KeyboardInterrupt: either signal ended it: see `early_end`.
    """
    _terminated.clear()
    try:
        return asyncio.run(_cancelled_by_sigterm(main))
    except asyncio.CancelledError:
        if _terminated.is_set():
            raise KeyboardInterrupt from None
        raise


def early_end() -> tuple[str, int]:
    """Return the word and the exit status for a command that a signal ended."""
    if _terminated.is_set():
        return "terminated", _SIGNALLED + signal.SIGTERM
    return "interrupted", _SIGNALLED + signal.SIGINT


async def _cancelled_by_sigterm(main: Coroutine[Any, Any, T]) -> T:
    loop = asyncio.get_running_loop()
    cancel = cast("asyncio.Task[T]", asyncio.current_task()).cancel

    def end(*_: object) -> None:
        _terminated.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        loop.call_soon_threadsafe(cancel)

    if threading.current_thread() is not threading.main_thread():
        return await main
    before = signal.signal(signal.SIGTERM, end)
    try:
        return await main
    finally:
        signal.signal(signal.SIGTERM, before)
