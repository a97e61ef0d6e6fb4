"""Latencies of the last minute: near the true figures, in constant memory, forgotten later."""

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_history import open_history
from async_history._core.writing.latency import Latencies
from async_history._core.writing.writer import GroupCommitWriter
from tests.core.writers import Item, MakeWriter, Store, submit, turn

pytestmark = pytest.mark.once

NEAR = 1 / 30

durations = st.floats(1e-6, 1e6)
starts = st.floats(0, 1e9)


def true_quantile(values: list[float], share: float) -> float:
    return sorted(values)[math.ceil(share * len(values)) - 1]


@given(st.lists(st.tuples(durations, st.integers(1, 600)), min_size=1, max_size=30), starts)
def test_figures_are_near_the_true_ones(measured: list[tuple[float, int]], now: float) -> None:
    latencies = Latencies()
    for seconds, count in measured:
        latencies.add(now, seconds, count)
    found = latencies.quantiles(now)
    values = [seconds for seconds, count in measured for _ in range(count)]
    assert found.p50_s == pytest.approx(true_quantile(values, 0.5), rel=NEAR)
    assert found.p99_s == pytest.approx(true_quantile(values, 0.99), rel=NEAR)


@given(starts, st.floats(0, 200))
def test_only_the_last_minute_counts(now: float, passed: float) -> None:
    latencies = Latencies()
    latencies.add(now, 3.0)
    found = latencies.quantiles(now + passed)
    if passed <= 55:
        assert found.p50_s == pytest.approx(3.0, rel=NEAR)
    if passed >= 60:
        assert (found.p50_s, found.p99_s) == (None, None)


@given(st.lists(st.floats(allow_nan=False), max_size=5))
def test_memory_is_bounded(odd: list[float]) -> None:
    """Whatever is measured, however long."""
    latencies = Latencies()
    values = [*odd, *(10.0**exponent for exponent in range(-12, 13))]
    for second in range(300):
        for value in values[second % 7 :: 7]:
            latencies.add(float(second), value)
    assert len(latencies._slots) <= 12
    assert max(map(len, latencies._slots.values())) <= 640


class Counted(Latencies):
    def __init__(self) -> None:
        super().__init__()
        self.counts: list[int] = []

    def add(self, now: float, seconds: float, count: int = 1) -> None:
        self.counts.append(count)
        super().add(now, seconds, count)


class TestOfAWriter:
    @pytest.mark.parametrize("calls", [1, 2, 3, 4, 5, 100, 500])
    async def test_a_batch_is_counted_in_few_buckets(
        self, calls: int, store: Store, make_writer: MakeWriter
    ) -> None:
        """Each of its calls counts, and no call costs a measurement."""
        writer: GroupCommitWriter[Item] = make_writer(batch_records=500)
        acks, commits = Counted(), Counted()
        writer._counters.acks, writer._counters.commits = acks, commits
        store.gate.clear()
        tasks = submit(writer, *(Item(str(n)) for n in range(calls + 1)))
        await turn()  # the first is committed alone or with the others
        store.gate.set()
        for task in tasks:
            await task
        assert sum(acks.counts) == calls + 1
        assert len(commits.counts) == len(store.batches) <= 2
        assert len(acks.counts) <= 4 * len(store.batches)

    async def test_the_ack_latency_includes_the_commit(
        self, store: Store, make_writer: MakeWriter
    ) -> None:
        writer = make_writer()
        before = writer.stats()
        assert (before.ack_p50_s, before.ack_p99_s) == (None, None)
        assert (before.commit_p50_s, before.commit_p99_s) == (None, None)
        for n in range(20):
            await writer.submit(Item(str(n)))
        stats = writer.stats()
        assert stats.ack_p50_s is not None
        assert stats.ack_p99_s is not None
        assert stats.commit_p50_s is not None
        assert stats.commit_p99_s is not None
        assert stats.ack_p50_s >= stats.commit_p50_s * (1 - 2 * NEAR)
        assert stats.ack_p99_s >= stats.ack_p50_s
        assert stats.commit_p99_s >= stats.commit_p50_s

    async def test_failures_and_operations_are_not_measured(
        self, store: Store, make_writer: MakeWriter
    ) -> None:
        writer = make_writer()

        async def operation() -> None: ...

        await writer.run_alone(operation)
        store.script.append(ValueError("broken"))
        with pytest.raises(Exception, match="broken"):
            await writer.submit(Item("a"))
        assert (writer.stats().ack_p50_s, writer.stats().commit_p50_s) == (None, None)


async def test_a_managers_stats_have_latencies() -> None:
    async with open_history("memory://") as history:
        await history.add_history("m", None, "tea", "ADD")
        writer = (await history.stats()).writer
        assert writer is not None
        assert writer.ack_p99_s is not None
        assert 0 < (writer.commit_p50_s or 0) <= writer.ack_p99_s * (1 + 2 * NEAR)


def test_an_interruption_anywhere_loses_a_few_figures_and_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A signal handler's exception may come at any line."""
    latencies = Latencies()
    with monkeypatch.context() as patched:
        patched.setattr("async_history._core.writing.latency.math.frexp", _raise)
        with pytest.raises(KeyboardInterrupt):
            _add(latencies, 1_000)
    _add(latencies, 1_000)
    size = len(pickle.dumps(latencies))
    _add(latencies, 10_000)
    assert len(pickle.dumps(latencies)) < 2 * size


def _add(latencies: Latencies, many: int) -> None:
    for _ in range(many):
        latencies.add(1.0, 0.5)


def _raise(_: float) -> None:
    raise KeyboardInterrupt
