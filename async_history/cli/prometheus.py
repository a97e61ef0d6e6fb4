"""Statistics as Prometheus's text format."""

from collections.abc import Iterator

from async_history import HistoryStats
from async_history._opening import without_secrets


def as_prometheus(found: HistoryStats, records: int) -> str:
    """Return a history's statistics in Prometheus's text format, version 0.0.4."""
    store = _label("store", without_secrets(found.store))
    return "".join(_lines(found, records, store))


def _lines(found: HistoryStats, records: int, store: str) -> Iterator[str]:
    for name, text, value in (
        ("records", "Records of the history.", records),
        ("store_size_bytes", "Size of the file, or of the tables.", found.file_bytes),
        ("store_log_size_bytes", "Size of a file's write-ahead log.", found.wal_bytes),
    ):
        yield from _head(name, text)
        yield f"async_history_{name}{{{store}}} {value}\n"
    yield from _head("warning", "Warnings that hold now.")
    for warning in found.warnings:
        labels = (store, _label("code", warning.code), _label("severity", warning.severity))
        yield f"async_history_warning{{{','.join(labels)}}} 1\n"


def _head(name: str, text: str) -> Iterator[str]:
    yield f"# HELP async_history_{name} {text}\n"
    yield f"# TYPE async_history_{name} gauge\n"


def _label(name: str, value: str) -> str:
    escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'{name}="{escaped}"'
