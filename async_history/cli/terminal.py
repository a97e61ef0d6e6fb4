"""What every command shares: safe text, one line of complaint, progress.

Results go to stdout (screen.py); complaints and progress to stderr.
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from async_history._opening import without_secrets

_PROGRESS_EVERY_S: Final = 0.1
_PERMILLE: Final = 1_000
_TURNING_TEXT: Final = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_HARMLESS: Final = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"},
    0x7F: "\u2421",
    **dict.fromkeys((*range(0x80, 0xA0), *_TURNING_TEXT), "\ufffd"),
}
"""Characters that would command a terminal, or turn its text around, as pictures of themselves."""


def harmless(text: str) -> str:
    """Return a stored text as it may be shown: it cannot move, colour or clear the screen."""
    return text.translate(_HARMLESS)


def stderr_console() -> Console:
    """Return a console for progress and complaints."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def print_error(text: str) -> None:
    """Say on stderr, in one line and without passwords, what went wrong."""
    line = harmless(without_secrets(text).replace("\n", " "))
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(f"async-history: {line}\n")
        sys.stderr.flush()


@asynccontextmanager
async def shown_progress(
    total: int | None,
    done: Callable[[], int],
    unit: str,
    count: Callable[[], int] | None = None,
    *,
    is_wanted: bool = True,
) -> AsyncIterator[None]:
    """Show a bar on stderr, if that is a terminal, while the body runs.

    Args:
        total: what `done` reaches in the end, if known.
        count: the number of `unit` shown beside the bar, if that is not `done`.
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

        async def follow() -> None:
            while True:
                await asyncio.sleep(_PROGRESS_EVERY_S)
                progress.update(bar, completed=done(), count=shown())

        following = asyncio.create_task(follow())
        try:
            yield
        finally:
            following.cancel()
            progress.update(bar, completed=done(), count=shown())


@asynccontextmanager
async def shown_share(of: str) -> AsyncIterator[Callable[[int, int], None]]:
    """Show a bar of how much of something is done; call what it yields with `done` and `total`."""
    permille = 0

    def note(done: int, total: int) -> None:
        nonlocal permille
        permille = _PERMILLE * done // max(total, 1)

    async with shown_progress(_PERMILLE, lambda: permille, f"% of {of}", lambda: permille // 10):
        yield note
        permille = _PERMILLE
