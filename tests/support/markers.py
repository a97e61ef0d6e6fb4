"""Whether a test's markers name what it uses.

Also imported by benchmarks, which have no pytest.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

_running: "pytest.Item | None" = None


def begin(item: "pytest.Item") -> None:
    """Note which test runs."""
    global _running
    _running = item


def require(marker: str) -> None:
    """Fail a test that lacks this marker: it would be chosen where what it needs is missing."""
    assert _running is None or _running.get_closest_marker(marker) is not None, (
        f"mark {_running.nodeid} with pytest.mark.{marker}: it uses what that names"
    )
