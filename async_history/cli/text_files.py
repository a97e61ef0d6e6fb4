"""Reads the small files that a command is given: tokens, keys, checkpoints, configurations."""

from pathlib import Path

from async_history.errors import InvalidInput


def read_text(file: str | Path) -> str:
    """Return a file's text.

    Raises:
        InvalidInput: it is not text in UTF-8. None of it is shown: it may hold a key.
        OSError: it can't be read.
    """
    try:
        return Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InvalidInput(f"{file} is not text in UTF-8") from None
