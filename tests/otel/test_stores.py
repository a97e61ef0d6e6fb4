"""The metrics and spans of stores, through the SDK's own exporters."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import StatusCode

from async_history import HistoryManager, IdConflict, InvalidInput, Overloaded, open_history
from async_history._core.writing.commit_function import TryAgain
from async_history._core.writing.submissions import Submission
from async_history._core.writing.writer import GroupCommitWriter
from async_history._core.writing.writer_options import WriterOptions
from async_history.errors import StorageLocked
from async_history.otel import instrument
from tests.conftest import OpenStore, stores, url_of
from tests.otel.conftest import Exported
from tests.support.patience import LONG_S
from tests.support.postgres_server import with_query

pytestmark = pytest.mark.once

Instrumented = Callable[..., Exported]
SYSTEMS = {"file": "sqlite", "postgres": "postgresql"}


def held(history: HistoryManager) -> tuple[asyncio.Event, "asyncio.Future[None]"]:
    """Hold a store's writer until the event is set: the calls until then are one batch."""
    gate = asyncio.Event()

    async def hold() -> None:
        await gate.wait()

    writer: Any = history.store.writer
    return gate, writer.run_alone(hold)


@pytest.mark.parametrize("store", stores("file", "postgres"))
async def test_metrics_of_a_batch(
    store: str, instrumented: Instrumented, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    exported = instrumented()
    async with open_history(url_of(store, request, tmp_path)) as history:
        record = await history.add_history("m", None, "tea", "ADD")
        gate, holding = held(history)
        calls = [
            asyncio.ensure_future(history.add_history(f"m{n}", None, "x", "ADD")) for n in range(3)
        ]
        taken = asyncio.ensure_future(history.add_history("n", None, "x", "ADD", id=record.id))
        await asyncio.sleep(0)
        ours = {
            "db.system.name": SYSTEMS[store],
            "async_history.store": history.backend.where,
        }
        queued = exported.metrics()
        assert queued["async_history.queue.records"] == [(ours, 4)]
        assert queued["async_history.queue.size"][0][1] > 0
        assert queued["async_history.queue.oldest_wait"][0][1] >= 0
        gate.set()
        await asyncio.gather(*calls, holding)
        with pytest.raises(IdConflict):
            await taken
        await history.stats()
        found = exported.metrics()
    assert found["async_history.submissions"] == [(ours, 4)]
    assert found["async_history.records"] == [(ours, 4)]
    assert found["async_history.batches"] == [(ours, 2)]
    assert found["async_history.queue.records"] == [(ours, 0)]
    assert found["async_history.batch.records"] == [(ours, (2, 5))]
    assert found["async_history.refusals"] == [({**ours, "error.type": "IdConflict"}, 1)]
    ((attributes, (commits, took_s)),) = found["db.client.operation.duration"]
    assert (attributes, commits) == ({**ours, "db.operation.name": "COMMIT"}, 2)
    assert took_s > 0
    assert found["async_history.ack.duration"][0][1][0] == 5
    assert found["async_history.store.size"][0][1] > 0


async def test_each_warning_is_a_series(instrumented: Instrumented, tmp_path: Path) -> None:
    exported = instrumented()
    async with open_history(tmp_path / "h.db") as history:
        (tmp_path / "h.db").rename(tmp_path / "other.db")
        expected = [(w.code, w.severity) for w in (await history.stats()).warnings]
        assert expected
        points = exported.metrics()["async_history.warnings"]
    assert [
        (attributes["async_history.warning"], attributes["severity"]) for attributes, _ in points
    ] == expected


async def test_calls_that_found_no_space_in_the_queue_are_counted(
    instrumented: Instrumented,
) -> None:
    exported = instrumented()
    async with open_history("memory://", queue_records=1, queue_timeout_s=0.01) as history:
        gate, holding = held(history)
        first = asyncio.ensure_future(history.add_history("m", None, "x", "ADD"))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await history.add_history("m", None, "y", "ADD")
        ((attributes, count),) = exported.metrics()["async_history.overloads"]
        assert (attributes["error.type"], count) == ("Overloaded", 1)
        assert (await history.stats()).writer.overloaded_submissions == 1  # type: ignore[union-attr]
        gate.set()
        await asyncio.gather(first, holding)


async def test_retries_are_counted_by_reason(instrumented: Instrumented) -> None:
    """A failed batch has its error in the metric and in its span."""
    exported = instrumented("commits", "calls")
    tries = 0

    async def commit(batch: object, this: object) -> dict[int, Any]:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise TryAgain(StorageLocked("locked"))
        raise StorageLocked("locked for good")

    async def finish() -> None: ...

    async with open_history("memory://") as history:
        writer = GroupCommitWriter[Submission](commit, finish=finish, options=WriterOptions())
        store: Any = history.store
        store.writer = history._reported.writer = writer  # type: ignore[union-attr]
        from async_history._core.telemetry import telemetry

        telemetry().opened(history._reported)  # type: ignore[union-attr, arg-type]
        calls = [history.add_history(f"m{n}", None, "x", "ADD") for n in range(2)]
        failed = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(one) for one in failed] == [StorageLocked] * 2
        await writer.aclose(LONG_S)
    found = exported.metrics()
    assert [(a["error.type"], n) for a, n in found["async_history.retries"]] == [
        ("StorageLocked", 1)
    ]
    assert [(a["error.type"], n) for a, n in found["async_history.refusals"]] == [
        ("StorageLocked", 2)
    ]
    assert {a["error.type"] for a, _ in found["db.client.operation.duration"]} == {"StorageLocked"}
    spans = [*exported.spans("COMMIT"), *exported.spans("add_history")]
    assert len(spans) == 3
    for span in spans:
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes is not None
        assert span.attributes["error.type"] == "StorageLocked"


@pytest.mark.postgres
@pytest.mark.faults
async def test_a_lost_connection_is_counted(
    instrumented: Instrumented, new_schema: Callable[[], str], postgres: str
) -> None:
    """The commit is retried on another connection."""
    exported = instrumented()
    url = new_schema()
    (schema,) = parse_qs(urlsplit(url).query)["schema"]
    admin = await asyncpg.connect(postgres)
    waiting = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = $1 AND wait_event_type = 'Lock'"
    )
    async with open_history(with_query(url, application_name=schema)) as history:
        await history.add_history("m", None, "x", "ADD")
        async with asyncio.timeout(LONG_S), admin.transaction():
            await admin.execute(f'LOCK TABLE "{schema}".history IN SHARE MODE')
            adding = asyncio.create_task(history.add_history("m", None, "y", "ADD"))
            while not await admin.fetchval(waiting, schema):  # noqa: ASYNC110 - the server has no event for it
                await asyncio.sleep(0.01)
        await adding
        found = exported.metrics()["async_history.retries"]
        assert {attributes["error.type"] for attributes, _ in found} <= {
            "StorageUnreachable",
            "OutcomeUnknown",
        }
        assert sum(count for _, count in found) >= 1
        assert found[0][0]["db.system.name"] == "postgresql"
    await admin.close()


def linked_by(span: ReadableSpan) -> list[int]:
    return [link.context.span_id for link in span.links]


@pytest.mark.parametrize("store", stores("file", "postgres"))
async def test_a_trace_goes_through_the_queue(
    store: str, instrumented: Instrumented, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Each call is in its caller's trace; the commit of several is linked with all of them."""
    exported = instrumented("calls", "commits")
    tracer = exported.tracers.get_tracer("test")

    async def request_of(number: int) -> None:
        with tracer.start_as_current_span(f"request {number}"):
            await history.add_history(f"m{number}", None, "secret tea", "ADD")

    async with open_history(url_of(store, request, tmp_path)) as history:
        gate, holding = held(history)
        requests = [asyncio.ensure_future(request_of(number)) for number in range(2)]
        saving = asyncio.ensure_future(
            history.save_messages([{"role": "user", "content": "secret"}], "scope")
        )
        changed = asyncio.ensure_future(history.update_history("u", "secret"))
        many = [{"memory_id": "b", "new_memory": "secret", "event": "ADD"}] * 700
        batch = asyncio.ensure_future(history.batch_add_history(many))
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*requests, saving, changed, batch, holding)
    commits = exported.spans("COMMIT")
    calls = exported.spans("add_history")
    assert len(calls) == 2
    for number, call in enumerate(calls):
        (parent,) = exported.spans(f"request {number}")
        assert call.parent is not None
        assert call.parent.span_id == parent.context.span_id
        assert parent.start_time <= call.start_time <= call.end_time <= parent.end_time  # type: ignore[operator]
    for name in ("add_history", "save_messages", "update_history", "batch_add_history"):
        for call in exported.spans(name):
            (commit,) = [one for one in commits if call.context.span_id in linked_by(one)]
            assert linked_by(call) == [commit.context.span_id]
            assert commit.start_time < commit.end_time  # type: ignore[operator]
    (call,) = exported.spans("batch_add_history")
    assert call.attributes is not None
    assert call.attributes["db.operation.batch.size"] == 700
    assert "secret" not in "".join(span.to_json() for span in exported.spans())


@pytest.mark.parametrize("kinds", [["calls"], ["calls", "commits"]])
async def test_a_span_starts_with_its_name_and_attributes(
    instrumented: Instrumented, kinds: list[str]
) -> None:
    """So samplers see them."""
    begun: dict[str, dict[str, Any]] = {}

    class Beginnings(SpanProcessor):
        def on_start(self, span: Span, parent_context: Context | None = None) -> None:
            begun[span.name] = dict(span.attributes or {})

    exported = instrumented(*kinds)
    exported.tracers.add_span_processor(Beginnings())
    async with open_history("memory://") as history:
        await history.batch_add_history([{"memory_id": "m", "event": "ADD"}] * 3)
    (call,) = exported.spans("batch_add_history")
    assert begun.keys() - {"COMMIT"} == {"batch_add_history"}
    assert begun["batch_add_history"] == call.attributes
    assert begun["batch_add_history"]["db.operation.name"] == "batch_add_history"
    assert begun["batch_add_history"]["db.operation.batch.size"] == 3


async def test_a_cancelled_call_ends_its_span(instrumented: Instrumented) -> None:
    exported = instrumented("calls")
    async with open_history("memory://") as history:
        gate, holding = held(history)
        call = asyncio.ensure_future(history.add_history("m", None, "x", "ADD"))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])
        gate.set()
        await holding
    (span,) = exported.spans("add_history")
    assert span.attributes is not None
    assert span.attributes["error.type"] == "CancelledError"


async def test_spans_that_were_not_chosen(instrumented: Instrumented) -> None:
    exported = instrumented()
    async with open_history("memory://") as history:
        await history.add_history("m", None, "x", "ADD")
    assert exported.spans() == []


async def test_the_lag_of_a_follower(instrumented: Instrumented) -> None:
    exported = instrumented()
    async with open_history("memory://") as history:
        assert (await history.stats()).followers == 0
        follower = history.follow()
        behind = exported.metrics()
        assert behind["async_history.followers"][0][1] == 1
        assert behind["async_history.follower.lag"][0][1] > 0
        await history.add_history("m", None, "x", "ADD")
        await anext(follower)
        assert await follower.next_records(timeout_s=0.05) == []
        assert follower.lag_s == 0
        assert exported.metrics()["async_history.follower.lag"][0][1] == 0
        await history.add_history("m", None, "y", "ADD")
        assert (await history.stats()).follower_lag_s >= 0
        assert follower.lag_s > 0


async def test_a_closed_manager_is_not_reported(
    instrumented: Instrumented, open_store: OpenStore
) -> None:
    exported = instrumented()
    async with open_store() as history:
        await history.add_history("m", None, "x", "ADD")
        assert exported.metrics()["async_history.followers"]
    assert exported.metrics().get("async_history.followers", []) == []


async def test_counters_of_a_store_never_decrease(
    instrumented: Instrumented, open_keeping_store: OpenStore
) -> None:
    """Of several managers of one store, one after the other and at once, collected or not."""
    exported = instrumented()
    written = 0
    async with open_keeping_store() as history:
        ours = {
            "db.system.name": history.backend.system,
            "async_history.store": history.backend.where,
        }
    for _ in range(3):
        async with open_keeping_store() as history, open_keeping_store() as other:
            for manager in (history, other):
                await manager.add_history("m", None, "x", "ADD")
                written += 1
            assert exported.metrics()["async_history.records"] == [(ours, written)]
        async with open_keeping_store() as history:
            await history.add_history("m", None, "x", "ADD")
            written += 1
        assert exported.metrics()["async_history.records"] == [(ours, written)]
    found = exported.metrics()
    assert found["async_history.submissions"] == [(ours, written)]
    assert found["async_history.batches"] == [(ours, written)]
    assert found["async_history.batches.failed"] == [(ours, 0)]
    assert found["async_history.overloads"] == [({**ours, "error.type": "Overloaded"}, 0)]
    assert "async_history.store.size" not in found


async def test_instrumented_again(instrumented: Instrumented) -> None:
    """Metrics go on, of managers that were opened before and after."""
    async with open_history("memory://") as history:
        await history.add_history("m", None, "x", "ADD")
    for count in (1, 2, 3):
        exported = instrumented()
        async with open_history("memory://") as history:
            await history.add_history("m", None, "x", "ADD")
            found = exported.metrics()
            assert [n for _, n in found["async_history.records"]] == [count]
            assert [n for _, n in found["async_history.batch.records"]] == [(count, count)]
            assert [n for _, n in found["async_history.followers"]] == [0]


@pytest.mark.subprocess
@pytest.mark.parametrize("again", ["None", "provider", "proxy", "get_meter_provider()"])
def test_instrumented_before_and_after_the_global_provider_is_set(again: str) -> None:
    program = f"""
import asyncio
from opentelemetry.metrics import get_meter_provider, set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from async_history import open_history
from async_history.otel import instrument

reader = InMemoryMetricReader()
proxy, provider = get_meter_provider(), MeterProvider([reader])

async def main():
    async with open_history("memory://") as history:
        await history.add_history("m", None, "x", "ADD")
        (found,) = reader.get_metrics_data().resource_metrics
        metrics = {{m.name: m.data.data_points for m in found.scope_metrics[0].metrics}}
        print([p.value for p in metrics["async_history.records"]])
        print([p.value for p in metrics["async_history.followers"]])

instrument()
set_meter_provider(provider)
asyncio.run(main())
for given in ({again}, None):
    instrument(meter_provider=given)
    asyncio.run(main())
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=LONG_S, check=True
    )
    assert ran.stdout.split() == ["[1]", "[0]", "[2]", "[0]", "[3]", "[0]"]
    assert ran.stderr == ""


async def test_a_signal_handler_collects_while_a_manager_opens(instrumented: Instrumented) -> None:
    """In the same thread, here while a closed manager's counters are added up."""
    exported = instrumented()
    async with open_history("memory://") as history:
        await history.add_history("m", None, "x", "ADD")
        writer: Any = history.store.writer
    stats = writer.stats
    found: list[dict[str, Any]] = []

    def interrupted() -> object:
        writer.stats = stats
        found.append(exported.metrics())
        return stats()

    writer.stats = interrupted
    async with open_history("memory://") as other:
        await other.add_history("m", None, "x", "ADD")
        found.append(exported.metrics())
    assert [one["async_history.records"][0][1] for one in found] == [1, 2]


async def test_what_is_written_while_a_manager_closes_is_counted(
    instrumented: Instrumented, tmp_path: Path
) -> None:
    exported = instrumented()
    history = await open_history(tmp_path / "h.db")
    gate, holding = held(history)
    call = asyncio.ensure_future(history.add_history("m", None, "x", "ADD"))
    await asyncio.sleep(0)
    history.close()
    assert exported.metrics()["async_history.queue.records"][0][1] == 1
    gate.set()
    await asyncio.gather(call, holding, history.aclose())
    assert exported.metrics()["async_history.records"][0][1] == 1


async def test_an_abandoned_manager_s_counters_stay(
    instrumented: Instrumented, tmp_path: Path
) -> None:
    """Its loop has ended before it was closed."""
    exported = instrumented()
    managers: list[HistoryManager] = []

    async def record() -> None:
        managers.append(await open_history(tmp_path / "h.db"))
        await managers[-1].add_history("m", None, "x", "ADD")

    for _ in range(2):
        await asyncio.to_thread(asyncio.run, record())
    managers[0].close()
    assert exported.metrics()["async_history.records"][0][1] == 2
    managers[1].close()
    assert "async_history.store.size" not in exported.metrics()
    managers.clear()
    assert exported.metrics()["async_history.records"][0][1] == 2


async def test_managers_of_one_store_show_their_gauges_together(
    instrumented: Instrumented, tmp_path: Path
) -> None:
    exported = instrumented()
    async with open_history(tmp_path / "h.db") as one, open_history(tmp_path / "h.db") as other:
        gates = []
        tasks: list[asyncio.Future[Any]] = []
        for manager in (one, other):
            gate, holding = held(manager)
            gates.append(gate)
            tasks += [holding, asyncio.ensure_future(manager.add_history("m", None, "x", "ADD"))]
        followers = [manager.follow() for manager in (one, one, other)]
        for follower in followers:
            await follower.next_records(timeout_s=0)
        found = exported.metrics()
        assert [n for _, n in found["async_history.queue.records"]] == [2]
        assert [n for _, n in found["async_history.followers"]] == [3]
        for gate in gates:
            gate.set()
        await asyncio.gather(*tasks)


async def test_metrics_are_collected_on_another_thread(instrumented: Instrumented) -> None:
    """As by the SDK's periodic reader; also while the loop does not answer."""
    exported = instrumented()
    async with open_history("memory://") as history:
        await history.add_history("m", None, "x", "ADD")
        found = await asyncio.to_thread(exported.metrics)
        assert found["async_history.records"][0][1] == 1
        collecting = threading.Thread(target=exported.metrics)
        collecting.start()
        collecting.join(LONG_S)  # the loop waits here
        assert not collecting.is_alive()


async def test_a_commit_is_counted_in_records(instrumented: Instrumented) -> None:
    exported = instrumented()
    async with open_history("memory://") as history:
        await history.batch_add_history([{"memory_id": "m", "event": "ADD"}] * 3)
        found = exported.metrics()
    assert found["async_history.batch.records"][0][1] == (1, 3)
    assert found["async_history.records"][0][1] == 3
    assert found["async_history.submissions"][0][1] == 1


async def test_a_collection_ends_when_the_loop_has_answered(instrumented: Instrumented) -> None:
    exported = instrumented()
    async with open_history("memory://") as history:
        assert history._reported is not None
        history._reported.answer_within_s = 10 * LONG_S
        collected = asyncio.Event()
        loop = asyncio.get_running_loop()

        def collect() -> None:
            exported.metrics()
            loop.call_soon_threadsafe(collected.set)

        threading.Thread(target=collect, daemon=True).start()
        async with asyncio.timeout(LONG_S):
            await collected.wait()


async def test_collecting_measures_the_store(instrumented: Instrumented, tmp_path: Path) -> None:
    """Each collection has the sizes of the measurement that the one before began."""
    exported = instrumented()
    async with open_history(tmp_path / "h.db") as history:
        await history.add_history("m", None, "x", "ADD")
        assert exported.metrics()["async_history.store.size"][0][1] == 0
        measuring = history._measurements._under_way
        assert measuring is not None
        await measuring
        found = exported.metrics()
        assert found["async_history.store.size"][0][1] > 0
        assert found["async_history.store.log.size"][0][1] > 0


def test_a_store_whose_loop_has_ended_keeps_its_last_figures(instrumented: Instrumented) -> None:
    """The collecting thread can't ask the loop any more."""
    exported = instrumented()
    kept: list[Any] = []

    async def record() -> None:
        async with open_history("memory://") as history:
            await history.add_history("m", None, "x", "ADD")
            exported.metrics()
            kept.append(history._reported)

    thread = threading.Thread(target=asyncio.run, args=[record()])
    thread.start()
    thread.join(LONG_S)
    found = exported.metrics()
    assert found["async_history.submissions"][0][1] == 1  # missing if asking raised an error
    assert found["async_history.records"][0][1] == 1


@contextmanager
def collector() -> Iterator[tuple[str, dict[str, list[bytes]]]]:
    """A server that receives OTLP's requests, by path."""
    received: dict[str, list[bytes]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.setdefault(self.path, []).append(body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", received
        finally:
            server.shutdown()
            serving.join()


async def test_metrics_and_spans_are_exported_by_otlp(
    instrumented: Instrumented, tmp_path: Path
) -> None:
    instrumented()  # which ends it
    with collector() as (url, received):
        meters = MeterProvider(
            [PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=f"{url}/v1/metrics"))]
        )
        tracers = TracerProvider()
        tracers.add_span_processor(
            BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{url}/v1/traces"))
        )
        instrument(spans=["commits"], meter_provider=meters, tracer_provider=tracers)
        async with open_history(tmp_path / "h.db") as history:
            await history.add_history("m", None, "x", "ADD")
            await asyncio.to_thread(meters.force_flush)
        await asyncio.to_thread(meters.shutdown)
        await asyncio.to_thread(tracers.shutdown)
    metrics = ExportMetricsServiceRequest.FromString(received["/v1/metrics"][0])
    names = {
        metric.name
        for resource in metrics.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    assert {"async_history.records", "db.client.operation.duration"} <= names
    traces = ExportTraceServiceRequest.FromString(received["/v1/traces"][0])
    ((span,),) = [scope.spans for one in traces.resource_spans for scope in one.scope_spans]
    assert span.name == "COMMIT"


def test_kinds_of_spans_are_checked() -> None:
    for wrong in (["call"], "calls", [1]):
        with pytest.raises(InvalidInput, match="spans"):
            instrument(spans=wrong)  # type: ignore[arg-type]


@pytest.mark.subprocess
def test_a_forked_process_reports_its_own_stores() -> None:
    """Also if another thread was opening a manager when the process forked."""
    program = """
import asyncio, os, threading
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from async_history import open_history
from async_history.otel import instrument

reader = InMemoryMetricReader()
provider = MeterProvider([reader])
instrument(meter_provider=provider)

def shown():
    (found,) = reader.get_metrics_data().resource_metrics
    metrics = found.scope_metrics[0].metrics
    return [[p.value for p in m.data.data_points] for m in metrics if m.name.endswith("y.records")]

async def main(records):
    async with open_history("memory://") as history:
        for _ in range(records):
            await history.add_history("m", None, "x", "ADD")
        print(shown(), flush=True)
        return history.store.writer

writer = asyncio.run(main(3))
pid = os.fork()
if pid == 0:
    asyncio.run(main(1))
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

stats, counting, forked = writer.stats, threading.Event(), threading.Event()

def count():
    counting.set()
    forked.wait()
    return stats()

async def open_and_close():
    async with open_history("memory://"):
        pass

writer.stats = count
opening = threading.Thread(target=asyncio.run, args=[open_and_close()])
opening.start()
counting.wait()
pid = os.fork()
if pid == 0:
    asyncio.run(main(2))
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
forked.set()
opening.join()
asyncio.run(main(4))
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=LONG_S, check=True
    )
    assert ran.stdout.split() == ["[[3]]", "[[1]]", "[[2]]", "[[7]]"]


def test_opentelemetry_is_imported_only_when_it_is_used() -> None:
    program = """
import asyncio, sys
from async_history import open_history

async def main():
    async with open_history("memory://") as history:
        await history.add_history("m", None, "x", "ADD")

asyncio.run(main())
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "[]\n"
