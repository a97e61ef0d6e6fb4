"""The cases of `async_history.testing`, run as another repository runs them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from async_history import testing
from tests.support.docs_examples import REPOSITORY
from tests.support.patience import LONG_S


def cases_of(topic: type) -> set[str]:
    return {name for name in vars(topic) if name.startswith("test_")}


def test_all_cases_has_every_topic_and_case() -> None:
    """No topic is left out, and no case hides another of the same name."""
    topics = [
        value
        for name in testing.__all__
        if name.endswith("Cases")
        and (value := getattr(testing, name)) not in (testing.Cases, testing.BackendCases)
    ]
    assert set(topics) == set(testing.BackendCases.__bases__)
    names = [name for topic in topics for name in cases_of(topic)]
    assert len(names) == len(set(names)) > 40


@pytest.mark.subprocess
@pytest.mark.once
def test_a_repository_without_our_settings_runs_the_cases(tmp_path: Path) -> None:
    """A copy of the example, with no configuration, and pytest-asyncio in its strict mode."""
    folder = tmp_path / "elsewhere"
    shutil.copytree(REPOSITORY / "examples" / "dict_backend", folder)
    chosen = "messages or repeated_id or closing or cursor or loop"
    options = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", chosen)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=LONG_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
