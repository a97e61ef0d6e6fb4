"""Shared by all commands: escaped text, one-line errors, progress.

Results go to stdout (screen.py), errors and progress to stderr.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from async_history._core.json_line import TEXT_DIRECTION, json_line
from async_history._opening import without_secrets

_PROGRESS_EVERY_S: Final = 0.1
_PERMILLE: Final = 1_000
_ESCAPES: Final = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"},
    0x7F: "\u2421",
    **dict.fromkeys((*range(0x80, 0xA0), *TEXT_DIRECTION), "\ufffd"),
}
"""Replacements for control characters and for characters that change the text direction."""


def escape_controls(text: str) -> str:
    """Return a stored text without characters that control a terminal."""
    return text.translate(_ESCAPES)


def one_line(text: str) -> str:
    """Return a stored name, or a sentence with names, without control characters and line breaks.

    With a line break, a memory's id could show another record that does not exist.
    """
    return escape_controls(text).replace("\n", "␊")


def echo_json(value: object, default: Callable[[Any], object] | None = None) -> None:
    """Print a value as `json_line` returns it, with the same arguments."""
    typer.echo(json_line(value, default).encode())


def stderr_console() -> Console:
    """Return a console for progress and errors."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def print_error(text: str) -> None:
    """Print an error on stderr, in one line and without passwords.

    If stderr is closed or cannot be written, only the exit status shows the error.
    """
    if sys.stderr is None:
        return
    line = escape_controls(without_secrets(text.replace("\n", " ")))
    try:
        sys.stderr.write(f"async-history: {line}\n")
        sys.stderr.flush()
    except OSError:
        sys.stderr = None  # Python would flush it again at exit, and change the status


@asynccontextmanager
async def show_progress(
    total: int | None,
    done: Callable[[], int],
    unit: str,
    count: Callable[[], int] | None = None,
    *,
    is_wanted: bool = True,
) -> AsyncIterator[None]:
    """Show a progress bar on stderr, if that is a terminal, while the body runs.

    Args:
        total: the value of `done` at the end, if known.
        done: returns the progress so far.
        unit: the name of what is counted.
        count: returns the number of `unit` to show; default: `done`.
        is_wanted: False shows nothing.
    """
    shown = count or done
    console = stderr_console()
    with Progress(
        BarColumn(),
        TextColumn(f"{{task.fields[count]:,}} {unit}"),
        TimeElapsedColumn(),
        console=console,
        disable=not (is_wanted and console.is_terminal),
    ) as progress:
        bar = progress.add_task("", total=total, count=shown())

        async def update() -> None:
            while True:
                await asyncio.sleep(_PROGRESS_EVERY_S)
                progress.update(bar, completed=done(), count=shown())

        updating = asyncio.create_task(update())
        try:
            yield
        finally:
            updating.cancel()
            progress.update(bar, completed=done(), count=shown())


@asynccontextmanager
async def show_share(of: str) -> AsyncIterator[Callable[[int, int], None]]:
    """Show a progress bar in per cent; yield a function to call with `done` and `total`."""
    permille = 0

    def note(done: int, total: int) -> None:
        nonlocal permille
        permille = _PERMILLE * done // max(total, 1)

    async with show_progress(_PERMILLE, lambda: permille, f"% of {of}", lambda: permille // 10):
        yield note
        permille = _PERMILLE
