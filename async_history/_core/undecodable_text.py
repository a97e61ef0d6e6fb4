"""The error of Python's sqlite3 for a stored text that is not UTF-8. Its message has the text."""

from typing import Final

UNDECODABLE: Final = "Could not decode to UTF-8"
"""The beginning of the message. The error has no code of SQLite."""
_BEFORE_TEXT: Final = " with text "


def hide_text(error: BaseException) -> None:
    """Cut the text from an error's message, and from those of its causes.

    It may be a record's, and tracebacks of our error, which logs have, show its causes.
    """
    cause: BaseException | None = error
    while cause is not None:
        message = str(cause.args[0]) if cause.args else ""
        if UNDECODABLE in message:
            cause.args = (message.partition(_BEFORE_TEXT)[0], *cause.args[1:])
        cause = cause.__cause__
