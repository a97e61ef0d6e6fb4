"""`async-history log`: a memory's history, for a person or as JSON lines."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from async_history import Event, HistoryRecord
from async_history._core.records.rows import fields_of
from async_history._core.wording import counted
from async_history._opening import without_secrets
from async_history.cli import stores
from async_history.cli.difference import Line, difference, metadata_changes
from async_history.cli.screen import Piece, Screen
from async_history.cli.terminal import echo_json, escape_controls, one_line, print_error
from async_history.cli.termination import run

_EVENT_STYLES: Final[dict[str, str]] = {
    Event.ADD: "bold green",
    Event.UPDATE: "bold yellow",
    Event.DELETE: "bold red",
}
_PIECE_STYLES: Final = {"same": "", "removed": "red strike", "added": "green"}
_PIECE_MARKS: Final = {"same": ("", ""), "removed": ("[-", "-]"), "added": ("{+", "+}")}
"""Marks to use without colours, as in git (`git diff --word-diff=plain`)."""
_SIGN_STYLES: Final = {" ": "", "…": "dim", "+": "green", "-": "red", "~": "yellow"}


def log(url: str, memory_id: str, *, as_json: bool) -> int:
    """Show a memory's history on stdout; return the exit status."""
    records = run(_read(url, memory_id))
    if not records:
        print_error(f"no history of {memory_id} in {url}")
        return 1
    if as_json:
        for record in records:
            print_json(record)
    else:
        screen = Screen()
        where = escape_controls(f"  {counted(len(records), 'change')} in {without_secrets(url)}")
        screen.line((one_line(memory_id), "bold"), (where, "dim"))
        owner = records[0].owner
        if owner is not None:
            screen.line((_pairs(owner.as_dict()), ""), indent="of ", indent_style="dim")
        print_timeline(screen, records)
    return 0


async def _read(url: str, memory_id: str) -> list[HistoryRecord]:
    async with stores.open_to_read(url) as history:
        return await history.get_history(memory_id)


def print_json(record: HistoryRecord) -> None:
    """Print a record as a JSON line, as `record` takes it."""
    echo_json(fields_of(record))


def print_change(screen: Screen, record: HistoryRecord) -> None:
    """Print a record of any memory, with what it changed."""
    screen.line((one_line(record.memory_id), "bold"), ("  ", ""), *headline(record))
    _print_cause(screen, record)
    print_difference(screen, changes(record, None))


def print_timeline(screen: Screen, records: Sequence[HistoryRecord]) -> None:
    """Print a memory's records, each with its version number and what it changed."""
    text: str | None = None
    context: Mapping[str, Any] | None = None
    for version, record in enumerate(records, 1):
        screen.line()
        screen.line((f"v{version}  ", "bold"), *headline(record))
        _print_cause(screen, record)
        print_difference(screen, changes(record, text))
        print_difference(screen, metadata_changes(context, record.context))
        text = record.new_memory
        context = context if record.context is None else record.context


def _print_cause(screen: Screen, record: HistoryRecord) -> None:
    if record.cause is not None:
        screen.line((_pairs(record.cause), "dim"), indent="  cause ", indent_style="dim")


def _pairs(texts: Mapping[str, str]) -> str:
    return one_line("  ".join(f"{name}={text}" for name, text in texts.items()))


def print_difference(screen: Screen, lines: Iterable[Line]) -> None:
    """Print the lines of a difference, in colours or with git's marks."""
    for line in lines:
        screen.line(
            *_content(line, has_marks=not screen.has_colours),
            indent=f"  {line.sign} ",
            indent_style=_SIGN_STYLES[line.sign],
        )


def headline(record: HistoryRecord) -> list[Piece]:
    """Return the time, event and actor of a change, as pieces of a line."""
    time = record.occurred_at
    shown_time = time.isoformat(sep=" ", timespec="milliseconds") if time else "time unknown"
    event = one_line(str(record.event))
    actor = record.actor_id or record.role
    headline = [
        (shown_time, "dim"),
        ("  ", ""),
        (f"{event:6}" if actor else event, _EVENT_STYLES.get(record.event, "bold")),
    ]
    if actor:
        headline.append((f"  {one_line(actor)}", ""))
        if record.actor_id and record.role:
            headline.append((one_line(f" ({record.role})"), "dim"))
    return headline


def changes(record: HistoryRecord, text_before: str | None) -> Iterator[Line]:
    """Yield the lines that a record changed. `text_before` is the previous record's text."""
    before, after = record.old_memory, record.new_memory
    if before is None and record.event in (Event.UPDATE, Event.DELETE):
        before = text_before
    if record.event == Event.DELETE:
        after = None
    if before is None and after is None:
        yield Line("…", [("same", "no text")])
    elif before == after:
        yield Line("…", [("same", "text unchanged")])
    else:
        yield from difference(before, after)


def _content(line: Line, *, has_marks: bool) -> list[Piece]:
    if has_marks and line.sign == "~":
        return [
            (f"{_PIECE_MARKS[kind][0]}{escape_controls(piece)}{_PIECE_MARKS[kind][1]}", "")
            for kind, piece in line.pieces
        ]
    if has_marks or line.sign == "…":
        style = "dim" if line.sign == "…" else ""
        return [(escape_controls(piece), style) for _, piece in line.pieces]
    return [(escape_controls(piece), _PIECE_STYLES[kind]) for kind, piece in line.pieces]
