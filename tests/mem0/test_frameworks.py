"""agno and LlamaIndex build mem0's classes themselves. `async-history run` runs them."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import stores, url_of
from tests.mem0.memories import Configured, infers, recorded
from tests.subprocesses.openai_server import Model
from tests.support.patience import LONG_S

for framework in ("agno", "llama_index"):
    if find_spec(framework) is None:
        pytest.skip(f"{framework} is missing: run nox -s frameworks", allow_module_level=True)

RUN = ("-m", "async_history.cli", "run", "--", sys.executable, "-W", "ignore", "-m")


@pytest.mark.once
@pytest.mark.subprocess
@pytest.mark.parametrize("store", stores("file", "postgres"))
@pytest.mark.parametrize(
    ("framework", "events"), [("agno", ["ADD", "DELETE"]), ("llama_index", ["ADD"])]
)
def test_frameworks_record_into_any_url(
    store: str,
    framework: str,
    events: list[str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    configured: Configured,
    model: Model,
) -> None:
    url = url_of(store, request, tmp_path)
    infers(model, "likes tea")
    configuration = json.dumps(configured(history_db_path=url))
    done = subprocess.run(
        [sys.executable, *RUN, "tests.subprocesses.mem0_frameworks", framework, configuration],
        capture_output=True,
        text=True,
        timeout=LONG_S,
        env={**os.environ, "MEM0_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert "likes tea" in done.stdout
    records = recorded(url)
    assert [record.event for record in records] == events
    for record in records:
        assert (record.new_memory or record.old_memory) == "likes tea"
        assert record.owner is not None
        assert record.owner.user_id == "ann"
