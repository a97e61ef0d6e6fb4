"""How long a test waits for an event that must happen.

A test waits for an event. These limits only end a test that is stuck, and cost nothing otherwise:
they suffice for two processors that eight other processes keep busy. On a slower machine,
`TEST_PATIENCE` multiplies them and pytest's own timeouts.
"""

import os
from typing import Final

PATIENCE: Final = float(os.environ.get("TEST_PATIENCE", "1"))

SOON_S: Final = 20 * PATIENCE
"""More than a call takes that waits for nothing; less than the library's timeouts of 30 s."""
LONG_S: Final = 120 * PATIENCE
"""More than anything takes that is not stuck."""
MINUTES_S: Final = 1_100 * PATIENCE
"""For a program that is killed, or whose writes fail, hundreds of times."""
