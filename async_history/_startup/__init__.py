"""Starts programs in which our classes replace mem0's as soon as mem0 is imported.

A folder with our `sitecustomize` comes first in the program's PYTHONPATH. So each Python that the
program starts finds it too. Nothing here imports mem0, which takes seconds.
"""

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NoReturn

_FOLDER: Final = str(Path(__file__).parent / "path")


def environment(before: Mapping[str, str]) -> dict[str, str]:
    """Return a program's environment, with our `sitecustomize` in it."""
    path = before.get("PYTHONPATH")
    others = [entry for entry in (path or "").split(os.pathsep) if entry != _FOLDER]
    return {**before, "PYTHONPATH": os.pathsep.join([_FOLDER, *(others if path else [])])}


def become(command: list[str]) -> NoReturn:
    """Replace this process by a program, which then gets the signals and sets the exit status.

    Raises:
        OSError: the program was not found, or can't be executed.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python; the program would inherit that
        signal.signal(ignored, signal.SIG_DFL)
    os.execvpe(command[0], command, environment(os.environ))  # noqa: S606 - what was asked for
