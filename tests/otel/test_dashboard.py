"""The dashboard for Grafana asks for metrics that there are."""

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from async_history import open_history
from async_history._core.telemetry import memory_operation
from tests.otel.conftest import Exported
from tests.support.docs_examples import example

pytestmark = pytest.mark.once

DASHBOARD = Path(__file__).parents[2] / "examples" / "grafana" / "async_history.json"
NAMES = r"((?:async_history|db_client|gen_ai_client)\w+)(?=[{\[])"
UNITS = {"s": "_seconds", "By": "_bytes"}


def name_in_prometheus(name: str, unit: str, is_counter: bool) -> str:
    """Return a metric's name as Prometheus writes it: its documentation of OTLP says how."""
    return name.replace(".", "_") + UNITS.get(unit, "") + "_total" * is_counter


async def test_every_metric_of_the_dashboard(instrumented: Callable[..., Exported]) -> None:
    exported = instrumented()
    async with open_history("memory://", queue_records=1, queue_timeout_s=0.01) as history:
        await asyncio.gather(
            *(history.add_history("m", None, "x", "ADD") for _ in range(3)), return_exceptions=True
        )
        with memory_operation("add", "memory://"):
            pass
        there = {name_in_prometheus(*kind) for kind in exported.kinds()}
    # What comes only with a failure or a warning; each has a test of its own.
    there |= {
        "async_history_refusals_total",
        "async_history_retries_total",
        "async_history_warnings",
    }
    dashboard = json.loads(DASHBOARD.read_text())
    asked = {
        name.removesuffix("_bucket").removesuffix("_count")
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(NAMES, target["expr"])
    }
    assert len(asked) >= 15
    assert asked - there == set()
    assert there - asked == set()


async def test_the_example_of_the_guide(instrumented: Callable[..., Exported]) -> None:
    instrumented()  # which ends it
    exec(example("otel"), {})
    async with open_history("memory://") as history:
        await history.add_history("m", None, "x", "ADD")
