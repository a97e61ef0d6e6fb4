"""Checks that a test's markers name what it uses.

Benchmarks import it too, and have no pytest.
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
    """Fail a test that lacks this marker: it would be selected where its needs are missing."""
    assert _running is None or _running.get_closest_marker(marker) is not None, (
        f"mark {_running.nodeid} with pytest.mark.{marker}, which it needs"
    )
