"""`async-history log`: a memory's history, for a person or as JSON lines."""

import asyncio
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import typer
from rich.console import Console
from rich.text import Text

from async_history import Event, HistoryRecord
from async_history.cli import stores
from async_history.cli.difference import Line, difference
from async_history.cli.terminal import complain, harmless, line_width, stdout_console
from async_history.opening import without_secrets

_EVENT_STYLES: Final = {
    Event.ADD: "bold green",
    Event.UPDATE: "bold yellow",
    Event.DELETE: "bold red",
}
_PIECE_STYLES: Final = {"same": "", "removed": "red strike", "added": "green"}
_PIECE_MARKS: Final = {"same": ("", ""), "removed": ("[-", "-]"), "added": ("{+", "+}")}
"""What stands for colour where there is none: git's marks (`git diff --word-diff=plain`)."""
_SIGN_STYLES: Final = {" ": "", "…": "dim", "+": "green", "-": "red", "~": "yellow"}
_LEAST_WIDTH: Final = 20


def log(url: str, memory_id: str, *, as_json: bool) -> int:
    """Show a memory's history on stdout; return the exit status."""
    records = asyncio.run(_read(url, memory_id))
    if not records:
        complain(f"no history of {memory_id} in {url}")
        return 1
    if as_json:
        for record in records:
            print_json(record)
    else:
        console = stdout_console()
        title = Text(harmless(memory_id), style="bold")
        changes = "1 change" if len(records) == 1 else f"{len(records):,} changes"
        title.append(harmless(f"  {changes} in {without_secrets(url)}"), style="not bold dim")
        print_wrapped(console, title, indent="")
        print_timeline(console, records)
    return 0


async def _read(url: str, memory_id: str) -> list[HistoryRecord]:
    async with stores.opened_to_read(url) as history:
        return await history.get_history(memory_id)


def print_json(record: HistoryRecord) -> None:
    """Print a record as a JSON line, as `record` takes it."""
    typer.echo(json.dumps(record.as_dict(), ensure_ascii=False).encode())


def print_change(console: Console, record: HistoryRecord) -> None:
    """Print a record of any memory, with what it changed."""
    title = Text.assemble((harmless(record.memory_id), "bold"), "  ", headline(record))
    print_wrapped(console, title, indent="")
    print_difference(console, changes(record, None))


def print_timeline(console: Console, records: Sequence[HistoryRecord]) -> None:
    """Print a memory's records, each with what it changed."""
    text: str | None = None
    for record in records:
        console.print()
        print_wrapped(console, headline(record), indent="")
        print_difference(console, changes(record, text))
        text = record.new_memory


def print_difference(console: Console, lines: Iterable[Line]) -> None:
    """Print the lines of a difference, in colours or with git's marks."""
    has_marks = console.no_color or console.color_system is None
    for line in lines:
        head = Text(f"  {line.sign} ", style=_SIGN_STYLES[line.sign])
        print_wrapped(console, _content(line, has_marks), indent=head)


def headline(record: HistoryRecord) -> Text:
    """Return when and what a change was, and who made it."""
    time = record.occurred_at
    shown_time = time.isoformat(sep=" ", timespec="milliseconds") if time else "time unknown"
    event = harmless(str(record.event))
    style = _EVENT_STYLES.get(Event(event), "bold") if event in list(Event) else "bold"
    headline = Text.assemble((shown_time, "dim"), "  ", (f"{event:6}", style))
    actor = record.actor_id or record.role
    if actor:
        headline.append(f"  {harmless(actor)}")
        if record.actor_id and record.role:
            headline.append(harmless(f" ({record.role})"), style="dim")
    headline.rstrip()
    return headline


def changes(record: HistoryRecord, text_before: str | None) -> Iterator[Line]:
    """Yield what a record changed. `text_before` is the text of the record before it."""
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


def _content(line: Line, has_marks: bool) -> Text:
    content = Text(style="dim" if line.sign == "…" else "")
    for kind, piece in line.pieces:
        if has_marks:
            opening, closing = _PIECE_MARKS[kind] if line.sign == "~" else ("", "")
            content.append(f"{opening}{harmless(piece)}{closing}")
        else:
            content.append(harmless(piece), style=_PIECE_STYLES[kind])
    return content


def print_wrapped(console: Console, text: Text, indent: str | Text) -> None:
    """Print a line, broken between words where a screen is narrow, all under its first word."""
    width = line_width(console)
    lines = [text]
    if width is not None:
        room = max(width - len(indent), _LEAST_WIDTH)
        lines = list(text.wrap(console, room, overflow="fold")) or [text]
    for number, line in enumerate(lines):
        head = indent if number == 0 else " " * len(indent)
        console.print(Text.assemble(head, line), soft_wrap=True)
