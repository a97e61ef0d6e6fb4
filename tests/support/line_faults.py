"""An exception at a chosen line of the library, as a signal handler can raise it anywhere."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any


class LineFault(Exception):
    """The exception."""


class Interruption:
    """Whether it has come, and where.

    Attributes:
        line: file, line and function; None if so many lines were not run.
    """

    line: str | None = None


@contextlib.contextmanager
def fault_at_line(nth: int, *, of: Callable[[CodeType], bool]) -> Iterator[Interruption]:
    """Raise `LineFault` before the nth line that this thread runs in some functions.

    Args:
        nth: counted from 1.
        of: whether a function's lines count.
    """
    interruption = Interruption()
    left = nth
    before = sys.gettrace()

    def trace_lines(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            if not left:
                sys.settrace(before)
                code = frame.f_code
                interruption.line = f"{code.co_filename}:{frame.f_lineno} {code.co_name}"
                raise LineFault
        return trace_lines

    def trace_calls(frame: FrameType, event: str, _: Any) -> Any:
        return trace_lines if of(frame.f_code) else None

    sys.settrace(trace_calls)
    try:
        yield interruption
    finally:
        sys.settrace(before)
