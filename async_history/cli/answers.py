"""Whether somebody can be asked before something is changed."""

import sys

from async_history import InvalidInput


def require_an_answer(done: str, *, is_dry_run: bool, is_sure: bool) -> None:
    """Refuse a command that has to ask where no one can answer.

    Args:
        done: what the command does to things, as "removed".
    """
    if not (is_dry_run or is_sure or sys.stdin.isatty()):
        raise InvalidInput(
            f"stdin is not a terminal, so nothing was asked or {done}: give --yes, or "
            f"--dry-run to see what would be {done}"
        )
