"""The dashboard for Grafana uses existing metrics, and Prometheus answers its queries."""

import asyncio
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import start_http_server

from async_history import IdConflict, StorageLocked, open_history
from async_history._core.telemetry import memory_operation
from async_history.otel import instrument, uninstrument
from tests.otel.conftest import Exported
from tests.support.docs_examples import example
from tests.support.patience import LONG_S
from tests.support.prometheus import prometheus, require_prometheus

pytestmark = pytest.mark.once

DASHBOARD = Path(__file__).parents[2] / "examples" / "grafana" / "async_history.json"
NAMES = r"((?:async_history|db_client|gen_ai_client)\w+)(?=[{\[])"
UNITS = {"s": "_seconds", "By": "_bytes"}


def name_in_prometheus(name: str, unit: str, is_counter: bool) -> str:
    """Return a metric's name in Prometheus, as its documentation of OTLP describes."""
    return name.replace(".", "_") + UNITS.get(unit, "") + "_total" * is_counter


async def test_every_metric_of_the_dashboard_exists(instrumented: Callable[..., Exported]) -> None:
    exported = instrumented()
    async with open_history("memory://", queue_records=1, queue_timeout_s=0.01) as history:
        await asyncio.gather(
            *(history.add_history("m", None, "x", "ADD") for _ in range(3)), return_exceptions=True
        )
        with memory_operation("add", "memory://"):
            pass
        there = {name_in_prometheus(*kind) for kind in exported.kinds()}
    # Metrics that need a failure or a warning; each has its own test.
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


@contextmanager
def exporting() -> Iterator[str]:
    """Export the metrics of this process as `examples/compose` does; yield the host and port."""
    meters = MeterProvider([PrometheusMetricReader()])
    instrument(meter_provider=meters)
    server, thread = start_http_server(0, "127.0.0.1")
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        uninstrument()
        meters.shutdown()


def test_every_field_of_the_dashboard_exists_in_grafana() -> None:
    """Grafana's own types omit unknown fields."""
    register_default_plugins()
    dashboard = json.loads(DASHBOARD.read_text())
    known = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))
    assert _unknown(dashboard, known) == []


def _unknown(given: Any, known: Any, path: str = "") -> list[str]:
    """Return the paths of fields that are missing or different in the known ones."""
    if isinstance(given, dict):
        return [
            found
            for key, value in given.items()
            for found in _unknown(value, known.get(key, "missing"), f"{path}/{key}")
        ]
    if isinstance(given, list):
        pairs = enumerate(zip(given, known, strict=True))
        return [found for at, pair in pairs for found in _unknown(*pair, f"{path}/{at}")]
    return [] if given == known else [path]


@pytest.mark.subprocess
async def test_prometheus_answers_every_panel(tmp_path: Path) -> None:
    """Each query has an answer, and each name in a legend is one of its labels."""
    require_prometheus()
    dashboard = json.loads(DASHBOARD.read_text())
    asked = [
        (panel["title"], target["expr"], target["legendFormat"])
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]
    path = tmp_path / "h.db"
    with exporting() as target:
        async with open_history(path, queue_records=1, queue_timeout_s=0.01) as history:
            record = await history.add_history("m", None, "x", "ADD")
            with pytest.raises(IdConflict):
                await history.add_history("n", None, "x", "ADD", id=record.id)
            await asyncio.gather(
                *(history.add_history("m", None, "x", "ADD") for _ in range(9)),
                return_exceptions=True,
            )
            with memory_operation("add", str(path)):
                pass
            store: Any = history.store
            store.writer._observer.retried(StorageLocked("made up"))
            path.rename(tmp_path / "other.db")  # a warning
            async with prometheus(tmp_path, target) as server:
                await server.wait_for("count_over_time(async_history_warnings[1m]) >= 2")
                for title, expression, legend in asked:
                    now = expression.replace("$store", ".*").replace("$__rate_interval", "1m")
                    for labels in await server.wait_for(now):
                        assert set(re.findall(r"{{(\w+)}}", legend)) <= labels.keys(), title
                _, variable = dashboard["templating"]["list"]
                asks = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
                assert asks is not None
                metric, label = asks.groups()
                values = await server.get(f"label/{label}/values", **{"match[]": metric})
                assert values == [history.backend.where]
            (tmp_path / "other.db").rename(path)


@pytest.mark.subprocess
def test_prometheus_accepts_the_examples_configuration() -> None:
    require_prometheus()
    config = DASHBOARD.parents[1] / "compose" / "prometheus.yml"
    ran = subprocess.run(
        ["promtool", "check", "config", config], capture_output=True, text=True, timeout=LONG_S
    )
    assert ran.returncode == 0, ran.stderr


async def test_the_example_of_the_guide(instrumented: Callable[..., Exported]) -> None:
    instrumented()  # which ends the program
    exec(example("otel"), {})
    async with open_history("memory://") as history:
        await history.add_history("m", None, "x", "ADD")
