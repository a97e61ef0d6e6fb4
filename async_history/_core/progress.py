"""Functions that long work calls to report its progress, on the event loop or on its thread."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with how much is done, and how much there is in all."""
OpenProgress = Callable[[int, int | None], None]
"""Called with how much is done, and how much there is in all; None if that is not known."""
StepProgress = Callable[[str, int, int], None]
"""Called with the name of a step, how much of it is done, and how much there is in all."""
