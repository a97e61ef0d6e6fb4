"""Pages that are made from the code and from results: the command, and the benchmarks' figures.

`conf.py` writes them before Sphinx reads the pages. They are not kept in the repository.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

REPOSITORY: Final = Path(__file__).parent.parent
RESULTS: Final = REPOSITORY / "benchmarks" / "results"

TITLES: Final[Mapping[str, tuple[str, str]]] = {
    "peers": (
        "Writing to SQLite",
        "Durable acks, three records a memory, random memory ids.",
    ),
    "reads": (
        "Reading histories from SQLite",
        "Histories of three records, as objects.",
    ),
    "growth": (
        "A SQLite file that grows",
        "The same work in an empty file and in a large one.",
    ),
    "queries": ("Queries", "Pages of ten records; and writing while others read."),
    "timeline": (
        "All memories at an instant",
        "`memories_at` against a raw scan in order.",
    ),
    "follow": (
        "Following",
        "From the ack of a record to its delivery in the same process.",
    ),
    "postgres": (
        "Writing to PostgreSQL",
        "Every peer on the same tables and indexes.",
    ),
    "sql": (
        "Writing to MariaDB",
        "Every peer's commits are on disk; `executemany` of 512 rows into the same table.",
    ),
    "moving": (
        "Copying",
        "`copy_history` from SQLite to PostgreSQL, compared on the way.",
    ),
    "mem0": (
        "mem0's AsyncMemory",
        "Agents add, update twice, delete and read, with embeddings, a model and a vector store "
        "that take no time.",
    ),
    "latest": ("Conditional writes", "`if_latest` and `update_history`."),
    "processes": (
        "Several processes",
        "Processes of 250 tasks on one file and on one server, compared with raw ones.",
    ),
    "owners": (
        "Owners, on SQLite",
        "What owner, context and cause cost; an owner's questions, and writing, by size.",
    ),
    "owners_postgres": (
        "Owners, on PostgreSQL",
        "What owner, context and cause cost; an owner's questions, and writing, by size.",
    ),
    "encryption": (
        "Encryption, on SQLite",
        "Against a history in clear; and the loop's lag with a ledger too.",
    ),
    "encryption_postgres": (
        "Encryption, on PostgreSQL",
        "Against a history in clear; and the loop's lag with a ledger too.",
    ),
    "ledger": (
        "The ledger, on SQLite",
        "Against a history without one; verifying against a scan; one proof.",
    ),
    "ledger_postgres": (
        "The ledger, on PostgreSQL",
        "Against a history without one; verifying against a scan; one proof.",
    ),
    "telemetry": (
        "Telemetry",
        "Writing with metrics, and with a span for each call.",
    ),
    "sizes": ("Cost by size", "What a record costs in histories of growing sizes."),
}
"""What each script of `benchmarks` measures. Its order is the page's."""
_OURS: Final = "async_history"


def write_pages(docs: Path) -> None:
    """Write the generated pages, where they have changed."""
    pages = {
        "reference/command.md": command_page(),
        "performance/results.md": results_page(),
    }
    for name, text in pages.items():
        path = docs / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


# The command


_NAME: Final = ("--name", "async-history")


def command_page() -> str:
    """Return the reference of the command, as typer tells it."""
    said = subprocess.run(
        (
            sys.executable,
            "-m",
            "typer",
            "async_history.cli.app",
            "utils",
            "docs",
            *_NAME,
        ),
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    ).stdout
    sections = re.split(r"(?m)^## ", said)[1:]
    commands = [_command_section(section) for section in sections]
    parts = [
        "# The command",
        "The extra `cli` installs `async-history`; `python -m async_history` is the same.",
        "Every command takes `--db URL`, else the environment variable `ASYNC_HISTORY_URL`, else "
        "`history.db` in the current folder. Commands that only read then try mem0's own "
        "`~/.mem0/history.db`. They read a file as it is: they neither create nor migrate "
        "anything. Commands that remove or change something ask first; `--yes` answers, and "
        "`--dry-run` only shows the effect. `--json` prints for programs.",
        "| command | does |\n|---|---|\n"
        + "\n".join(
            f"| [`{name}`](#{name}) | {does} |" for name, does, _ in commands
        ),
        "## Exit statuses",
        "| status | meaning |\n|---|---|\n| 0 | done |\n| 1 | not done, or not all of it |\n"
        "| 2 | not understood: an unknown option, a value that cannot be used |\n"
        "| 130 | interrupted by Ctrl-C |\n| 141 | the reader of a pipe has closed it, "
        "and the command was to change something; where it only reads: 0 |\n"
        "| 143 | ended by SIGTERM |",
        *(text for _, _, text in commands),
    ]
    return "\n\n".join(parts) + "\n"


def _command_section(section: str) -> tuple[str, str, str]:
    """Return a command's name, the sentence that says what it does, and its section."""
    heading, body = section.split("\n", 1)
    name = heading.strip("` ").removeprefix("async-history ")
    body = re.sub(r" <(?:bool|str|int range|list\[str\])>`", "`", body.strip())
    body = body.replace("* `-h, --help`: Show this message and exit.", "").strip()
    body = (
        body.replace("**Options**:\n\n##", "##")
        .removesuffix("**Options**:")
        .strip()
    )
    body = body.replace("```console\n$ ", "```text\n")
    does = body.split("\n\n", 1)[0].replace("\n", " ")
    return name, does, f"## {name}\n\n{body}"


# Results


def results_page(folder: Path = RESULTS) -> str:
    """Return the figures of each benchmark's last full run, as its JSON has them."""
    parts = [
        "# Results",
        "This page is generated from `benchmarks/results/*.json`. [Method](method.md) says how to "
        "read it. Each figure is the median of a run's repetitions.",
    ]
    for name, (title, text) in TITLES.items():
        path = folder / f"{name}.json"
        if path.exists():
            findings = json.loads(path.read_text(encoding="utf-8"))
            parts += [f"## {title}", text, _conditions(name, findings)]
            parts += _tables(findings)
            if (folder / f"{name}.png").exists():
                parts.append(f"![{title}](../../benchmarks/results/{name}.png)")
    return "\n\n".join(parts) + "\n"


def _conditions(name: str, findings: Mapping[str, Any]) -> str:
    machine = findings["machine"]
    others = findings.get(
        "processors_others_used", findings.get("others_processors")
    )
    parts = [
        f"{machine['when'][:10]}",
        f"`python -m benchmarks.{script_of(name)}`",
        f"{machine['system']}, {machine['cpus']} processors",
        f"CPython {machine['python']}",
        f"SQLite {machine['sqlite']}",
    ]
    if server := findings.get("server"):
        parts.append(
            f"PostgreSQL {server['server_version']}, fsync {server['fsync']}"
        )
    if others is not None:
        parts.append(f"other programs used {others:.2f} processors meanwhile")
    return "; ".join(parts) + "."


def script_of(name: str) -> str:
    """Return the script of some results, and its option where it has one for the server."""
    if (REPOSITORY / "benchmarks" / f"{name}.py").exists():
        return name
    return f"{name.removesuffix('_postgres')} --postgres"


def _tables(findings: Mapping[str, Any]) -> Iterator[str]:
    if cells := findings.get("cells"):
        yield _cells_table(cells)
    if rates := findings.get("histories_per_s"):
        grouped = [
            (*key.split(" | "), median(values)) for key, values in rates.items()
        ]
        yield _grid(
            "histories/s",
            [(who, int(n), f"{rate:,.0f}") for who, n, rate in grouped],
        )
    if rates := findings.get("rows_inserted_per_s"):
        cells = [
            (one["who"], one["rows"], f"{median(one['values']):,.0f}")
            for one in rates
        ]
        yield _grid("rows inserted/s, by rows that are there", cells, unit="")
    if rates := findings.get("processes_events_per_s"):
        cells = [
            (one["who"], one["processes"], f"{median(one['values']):,.0f}")
            for one in rates
        ]
        yield _grid("events/s of all, by number of processes", cells, unit="")
    if bars := findings.get("bars"):
        yield _bars_table(bars)


def _cells_table(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of rates and acknowledgement times, by peer and number of tasks."""
    many = "agents" if "agents" in cells[0] else "tasks"
    rate, time = (
        ("operations_per_s", "update_p50_s")
        if many == "agents"
        else ("events_per_s", "ack_p50_s")
    )
    values: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for cell in cells:
        values.setdefault((cell["peer"], cell[many]), []).append(cell)
    shown = [
        (
            peer,
            number,
            _rate_and_time([c[rate] for c in found], [c[time] for c in found]),
        )
        for (peer, number), found in values.items()
    ]
    what = (
        "operations/s · p50 of `update`"
        if many == "agents"
        else "events/s · p50 ack"
    )
    return _grid(what, shown, unit=f" {many}")


def _rate_and_time(
    rates: Sequence[float | None], times: Sequence[float | None]
) -> str:
    text = f"{median([rate for rate in rates if rate is not None]):,.0f}"
    known = [time for time in times if time is not None]
    return f"{text} · {_duration(median(known))}" if known else text


def _duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.1f} s"
    if seconds < 1e-4:
        return f"{seconds * 1e6:.2g} µs"
    return f"{seconds * 1e3:.2g} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms"


def _grid(
    what: str, cells: Sequence[tuple[str, int, str]], *, unit: str = " tasks"
) -> str:
    """Return a table: ours first, then the others; a column for each number."""
    numbers = sorted({number for _, number, _ in cells})
    names = sorted(
        {name for name, _, _ in cells},
        key=lambda name: (not name.startswith(_OURS), name),
    )
    values = {(name, number): text for name, number, text in cells}
    head = [
        what,
        *(
            f"{number:,}{unit if number != 1 else unit.rstrip('s')}"
            for number in numbers
        ),
    ]
    rows = [
        [f"**{name}**" if name.startswith(_OURS) else name]
        + [values.get((name, number), "") for number in numbers]
        for name in names
    ]
    return _table(head, rows)


def _bars_table(bars: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for bar in bars:
        sign = "≤" if bar["at_most"] else "≥"
        reached = (
            "not measured" if bar["reached"] is None else f"{bar['reached']:.3g}"
        )
        rows.append(
            [bar["bar"], f"{sign} {bar['limit']:g}", reached, bar["figures"]]
        )
    head = ["measure", "target", "reached", "figures; each repetition"]
    return _table(head, rows, ["---", "---:", "---:", "---"])


def _table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    rule: Sequence[str] | None = None,
) -> str:
    rule = rule or ["---", *["---:"] * (len(head) - 1)]
    lines = [head, rule, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
