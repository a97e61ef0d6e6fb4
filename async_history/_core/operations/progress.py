"""Functions that long work calls to report its progress, on the event loop or on its thread."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with the amount done and the total."""
OpenProgress = Callable[[int, int | None], None]
"""Called with the amount done and the total, or None if the total is unknown."""
StepProgress = Callable[[str, int, int], None]
"""Called with the name of a step, the amount done and the total."""
