"""The `async-history` command: one module for each command, and `main`, its entry point."""

import io
import os
import sys
from typing import Final

from async_history._startup.interruption import raise_again

__all__ = ["main"]

_STDOUT: Final = 1


def main() -> None:
    """Run the command, and exit with its status."""
    try:
        _run()
    except KeyboardInterrupt:  # between the import of the commands and the command's own handling
        raise SystemExit(130) from None


def _run() -> None:
    try:
        from async_history.cli.app import app
        from async_history.cli.terminal import print_error
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("click", "rich", "typer"):
            raise
        sys.stderr.write(
            f"async-history: {error.name} is not installed; the command needs it: "
            "pip install 'async-history[cli]'\n"
        )
        raise SystemExit(1) from None
    raise_again()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # ? for characters that the encoding lacks
    try:
        app(prog_name="async-history")
    except OSError as error:  # of help and the version; commands report their own
        os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)  # or flushing fails again at the end
        print_error(f"stdout: {error.strerror}")
        raise SystemExit(1) from None
