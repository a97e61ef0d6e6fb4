"""The numbered .sql of SQLite: today's tables, each statement repeatable."""

import sqlite3
from collections.abc import Iterator
from importlib import resources
from typing import Final

VERSION: Final = 3
"""The version of our side tables, noted in `async_history_state`."""


def schema_script() -> str:
    """Return every numbered file's text, in order."""
    folder = resources.files("async_history.migrations") / "sqlite"
    files = sorted(folder.iterdir(), key=lambda file: file.name)
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def schema_statements() -> Iterator[str]:
    """Yield the script's statements, for a transaction that `executescript` would commit."""
    statement = ""
    for line in schema_script().splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
