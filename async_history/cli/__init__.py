"""The `async-history` command: one module for each command, and `main`, its entry point."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command, and end the program with its exit status."""
    try:
        from async_history.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("click", "rich", "typer"):
            raise
        sys.stderr.write(
            f"async-history: {error.name} is not installed; the command needs it: "
            "pip install 'async-history[cli]'\n"
        )
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    app(prog_name="async-history")
