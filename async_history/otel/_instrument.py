"""Switching telemetry on and off."""

import os
from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import Final, Literal, get_args
from weakref import WeakKeyDictionary

from opentelemetry.metrics import Meter, MeterProvider, get_meter_provider
from opentelemetry.trace import TracerProvider, get_tracer

from async_history._core.backend import CallReader
from async_history._core.telemetry import NoteMemory, ReportedStore, set_telemetry
from async_history._core.validation import check_choice
from async_history.errors import InvalidInput
from async_history.otel._gauges import create_gauges
from async_history.otel._memory import MemoryOperations
from async_history.otel._open_stores import OpenStores
from async_history.otel._reads import TracedReader
from async_history.otel._store import Instruments, StoreTelemetry, attributes_of

SpanKind = Literal["memory", "calls", "commits"]
"""The kinds of spans: operations of mem0's classes, calls, commits."""
_KINDS: Final[tuple[SpanKind, ...]] = get_args(SpanKind)
_SCOPE: Final = "async_history"
_stores: Final[WeakKeyDictionary[MeterProvider, OpenStores]] = WeakKeyDictionary()
"""The stores that a provider's counters and gauges read."""
_last_global: MeterProvider | None = None
"""The global provider when it was last used."""


def _forget_in_child() -> None:
    for stores in _stores.values():
        stores.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def instrument(
    *,
    spans: Collection[SpanKind] = (),
    meter_provider: MeterProvider | None = None,
    tracer_provider: TracerProvider | None = None,
) -> None:
    """Report metrics, and optionally spans, of all managers that this process opens from now on.

    Metrics have no cost per record: they are recorded once per batch, or read when they are
    collected. Another call replaces the arguments.

    Args:
        spans: "memory": one for each operation of mem0's classes, and for each change of a memory
            in it. "calls": one for each write call, until its acknowledgement, and one for each
            read of the store by a call. "commits": one for each commit, linked with the spans of
            its calls.
        meter_provider, tracer_provider: default: the global ones.

    Raises:
        InvalidInput: a kind of span is not known.
    """
    if isinstance(spans, str):
        raise InvalidInput(f"spans must be a collection of kinds, as {{{spans!r}}}")
    kinds = frozenset(check_choice("spans", kind, _KINDS) for kind in spans)
    set_telemetry(_OpenTelemetry(kinds, meter_provider, tracer_provider))


def uninstrument() -> None:
    """Stop reporting managers that are opened from now on, and mem0's operations."""
    set_telemetry(None)


def _stores_of(provider: MeterProvider, meter: Meter) -> OpenStores:
    """Return the stores that a provider's counters and gauges read.

    They are created once: the SDK ignores further functions that read the same metrics. Until the
    program sets the global provider, OpenTelemetry gives a proxy, whose meters later are those of
    the one that was set.
    """
    global _last_global
    if provider not in _stores:
        before = _last_global
        if before is not None and before.get_meter(_SCOPE) is meter:
            _stores[provider] = _stores[before]
        else:
            _stores[provider] = OpenStores()
            create_gauges(meter, _stores[provider])
    if provider is get_meter_provider():
        _last_global = provider
    return _stores[provider]


class _OpenTelemetry:
    """Reports to OpenTelemetry."""

    def __init__(
        self,
        spans: Collection[SpanKind],
        meter_provider: MeterProvider | None,
        tracer_provider: TracerProvider | None,
    ) -> None:
        provider = meter_provider or get_meter_provider()
        meter = provider.get_meter(_SCOPE)
        tracer = get_tracer(_SCOPE, tracer_provider=tracer_provider)
        self._spans = spans
        self._tracer = tracer
        self._instruments = Instruments(meter)
        self._operations = MemoryOperations(meter, tracer if "memory" in spans else None)
        self._stores = _stores_of(provider, meter)

    def opened(self, store: ReportedStore) -> None:
        self._stores.add(store)
        store.writer.observe(
            StoreTelemetry(
                store,
                self._instruments,
                self._tracer,
                sees_calls="calls" in self._spans,
                sees_commits="commits" in self._spans,
            )
        )

    def reader(self, store: ReportedStore, reader: CallReader) -> CallReader | None:
        if "calls" not in self._spans:
            return None
        return TracedReader(reader, self._tracer, attributes_of(store.system, store.where))

    def memory_operation(
        self, name: str, store: str, memory_id: str | None, within: str | None
    ) -> AbstractContextManager[NoteMemory]:
        if within is None:
            return self._operations.operation(name, store, memory_id)
        return self._operations.change(name, store, memory_id, within)
