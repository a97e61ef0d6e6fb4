"""The rest of the interpreter's stack."""

from typing import Final

_DRIVER_FRAMES: Final = 60
"""More frames than a driver needs to make a connection or to give one back."""


def require_stack(frames: int = _DRIVER_FRAMES) -> None:
    """Raise RecursionError unless so many more frames fit on the stack.

    For work that must not fail halfway, because what it has taken would never be given back.
    """
    if frames:
        require_stack(frames - 1)
