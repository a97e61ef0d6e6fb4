"""Confirmation before something is changed."""

import sys

import typer

from async_history import InvalidInput


def require_an_answer(done: str, *, is_dry_run: bool, is_sure: bool) -> None:
    """Refuse a command that must ask if there is no terminal.

    Args:
        done: what the command does, as a participle such as "removed".
    """
    is_terminal = sys.stdin is not None and sys.stdin.isatty()
    if not (is_dry_run or is_sure or is_terminal):
        raise InvalidInput(
            f"stdin is not a terminal, so nothing was asked or {done}: give --yes, or "
            f"--dry-run to see what would be {done}"
        )


def confirm(question: str) -> bool:
    """Ask on stderr, and return whether the answer is yes. Stdin need not be a terminal.

    Raises:
        InvalidInput: stdin is closed.
        typer.Abort: stdin ended.
    """
    if sys.stdin is None:
        raise InvalidInput("stdin is closed, so nothing was asked or changed: give --yes")
    return typer.confirm(question, err=True)
