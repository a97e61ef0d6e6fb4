"""What a caller may be told of long work, on the event loop or where the work is done."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Told how much is done, and how much there is in all."""
OpenProgress = Callable[[int, int | None], None]
"""Told how much is done, and how much there is in all; None if that is not known."""
StepProgress = Callable[[str, int, int], None]
"""Told the name of a step, how much of it is done, and how much there is in all."""
