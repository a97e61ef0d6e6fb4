"""The report: options, tables in Markdown, bars and whether they are reached, JSON."""

import argparse
import json
import math
import os
import platform
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

RESULTS: Final = Path(__file__).parent / "results"
_IN_MEMORY: Final = ("tmpfs", "ramfs", "devtmpfs")


@dataclass(frozen=True, slots=True)
class Bar:
    """A target, and what this run reached; NaN if it was not measured."""

    measure: str
    limit: float
    reached: float
    figures: str
    at_most: bool = False
    unit: str = "x"

    @property
    def is_met(self) -> bool:
        return self.reached <= self.limit if self.at_most else self.reached >= self.limit

    @property
    def verdict(self) -> str:
        if math.isnan(self.reached):
            return "not measured"
        return "yes" if self.is_met else "NO"

    def as_row(self) -> list[str]:
        sign = "≤" if self.at_most else "≥"
        return [
            self.measure,
            f"{sign} {self.limit:.3g} {self.unit}",
            "-" if math.isnan(self.reached) else f"{self.reached:.3g} {self.unit}",
            self.figures,
            self.verdict,
        ]


def print_bars(bars: Sequence[Bar]) -> None:
    """Print the targets, and what was reached."""
    print_table(("bar", "wanted", "reached", "figures", "met"), [bar.as_row() for bar in bars])


def print_load(processors: float) -> None:
    """Print the load of other programs, which makes a run unfair."""
    print(f"Others kept {processors:.2f} of {os.cpu_count()} processors busy meanwhile.")


def each(ratios: Sequence[float]) -> str:
    """Return a ratio's repetitions as text, in ascending order."""
    return " ".join(f"{ratio:.2f}" for ratio in sorted(ratios))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table: the first column left, the others right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return f"| {' | '.join([first, *rest])} |"

    print()
    print(line(header))
    print(line(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]))
    for row in rows:
        print(line(row))
    print(flush=True)


def milliseconds(seconds: float) -> str:
    """Return a time as text, in milliseconds; "-" if there is none."""
    if math.isnan(seconds):
        return "-"
    return f"{seconds * 1e3:,.2f}" if seconds < 0.1 else f"{seconds * 1e3:,.0f}"


def rate(per_s: float) -> str:
    """Return a rate as text; "-" if there is none."""
    return "-" if math.isnan(per_s) else f"{per_s:,.0f}"


def as_json(bar: Bar) -> dict[str, Any]:
    """Return a bar for the JSON file."""
    return {
        "bar": bar.measure,
        "limit": bar.limit,
        "at_most": bar.at_most,
        "reached": bar.reached,
        "met": bar.verdict,
        "figures": bar.figures,
    }


def write_json(path: Path, findings: Mapping[str, Any]) -> None:
    """Write findings after a description of the machine; NaN becomes null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_without_nan({"machine": machine(), **findings}), indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value


def machine() -> dict[str, Any]:
    """Return a description of the machine, on which the figures depend."""
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def save_plot(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    print(f"plot: {path}")


# Options


def options_parser(question: str | None) -> argparse.ArgumentParser:
    """Return a parser with the common options of all scripts."""
    parser = argparse.ArgumentParser(
        description=question, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run: its figures mean little")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions to take medians of")
    parser.add_argument(
        "--dir", type=Path, default=Path(tempfile.gettempdir()), help="a folder on a real disk"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=None,
        help=f"where JSON and PNG go: {RESULTS}, or nowhere for --quick",
    )
    return parser


def results_folder(options: argparse.Namespace, scratch: Path) -> Path:
    """Return the folder for results; a quick run removes them unless a folder is given."""
    chosen: Path | None = options.results
    return chosen or (scratch if options.quick else RESULTS)


@contextmanager
def work_folder(parent: Path, needed_bytes: int = 0) -> Iterator[Path]:
    """Create a folder for the run's files, and remove it afterwards.

    Raises:
        SystemExit: it would be in memory, where a commit costs nothing, or there is no space.
    """
    kind = _file_system(parent)
    if kind in _IN_MEMORY:
        raise SystemExit(f"{parent} is in memory ({kind}); choose a folder on a disk with --dir")
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise SystemExit(f"{parent} has {free:,} bytes free, {needed_bytes:,} are needed")
    with tempfile.TemporaryDirectory(prefix="async_history-", dir=parent) as folder:
        yield Path(folder)


def _file_system(path: Path) -> str:
    """Return the type of a path's file system; empty if the system doesn't say."""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    found, kind = "", ""
    for line in mounts:
        _, point, mounted, *_ = line.split()
        if path.resolve().is_relative_to(point) and len(point) >= len(found):
            found, kind = point, mounted
    return kind
