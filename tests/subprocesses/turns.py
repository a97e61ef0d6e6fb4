"""Another process that has the turn of the memory "m" of a history until it is told to leave it.

It is forked from a process that has already imported mem0, which takes seconds.
"""

import multiprocessing
import os
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Final

from async_history import open_history
from async_history.mem0._turns.store_turns import turns_of

_CONTEXT: Final = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


class Holder:
    """The process. It has the turn once this object is made.

    Args:
        forks: whether it forks a child during the turn. The child lives until `end`.
    """

    def __init__(self, url: str, *, forks: bool = False) -> None:
        self._pipe, its_pipe = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_hold, args=(url, forks, its_pipe), daemon=True)
        self._process.start()
        its_pipe.close()
        self.says("has it")

    def says(self, line: str) -> None:
        """Wait for its next word, which must be this."""
        assert self._pipe.recv() == line

    def go_on(self) -> None:
        """Let it leave the turn and say "left it"."""
        self._pipe.send("go on")

    def die(self) -> None:
        """Kill it, but not its child."""
        self._process.kill()
        self._process.join()

    def end(self) -> None:
        """Kill it, and let its child end."""
        self.die()
        self._pipe.close()


def _hold(url: str, forks: bool, pipe: Connection) -> None:
    with turns_of(open_history(url)).of("m", "store"):
        if forks and not os.fork():
            with suppress(EOFError):
                pipe.recv()
            os._exit(0)
        pipe.send("has it")
        pipe.recv()
    pipe.send("left it")
    with suppress(EOFError):
        pipe.recv()
