"""Small files given to a command: tokens, keys, checkpoints, configurations."""

from pathlib import Path

from async_history.errors import InvalidInput


def read_text(file: str | Path) -> str:
    """Return a file's text, without the mark that editors of Windows put before it.

    Raises:
        InvalidInput: it is not text in UTF-8. Its content is not shown, because it may be a key.
        OSError: it cannot be read.
    """
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidInput(f"{file} is not text in UTF-8") from None
