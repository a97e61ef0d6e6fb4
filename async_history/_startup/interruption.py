"""Lets Ctrl-C end this package's own programs quietly while they are still being imported.

Python's handler would raise KeyboardInterrupt within some module, and print its traceback. To
import this module is enough, until `raise_again`. In other programs it changes nothing.
"""

import os
import signal
import sys
from contextlib import suppress
from typing import Final, NoReturn

_SCRIPT: Final = "async-history"
_MODULES: Final = ("async_history", "async_history.cli", "async_history.mem0")
_INTERRUPTED: Final = 128 + signal.SIGINT


def raise_again() -> None:
    """Let SIGINT raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_own_program() -> bool:
    if not getattr(sys, "argv", None):  # in an embedded interpreter
        return False
    if sys.argv[0] != "-m":  # Python's name for the program while it finds and imports the module
        return os.path.basename(sys.argv[0]) in (_SCRIPT, f"{_SCRIPT}.exe")
    module = next(iter(sys.orig_argv[-len(sys.argv) :]), "")
    return module in _MODULES or module.partition("m")[2] in _MODULES  # as in -m NAME, -mNAME


def _end(number: int, frame: object) -> NoReturn:
    os._exit(_INTERRUPTED)


if _is_own_program() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    with suppress(ValueError):  # it is not the main thread, and no other may
        signal.signal(signal.SIGINT, _end)
