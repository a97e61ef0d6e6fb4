"""The numbered .sql files, which create the current tables; each statement is repeatable."""

import sqlite3
from collections.abc import Iterator
from importlib import resources
from typing import Final

from async_history._sqlite.index import begin_statements, drop_statements

VERSION: Final = 7
"""The version of the side tables, stored with the index."""


def _read_statements() -> Iterator[str]:
    files = (
        file
        for file in resources.files("async_history._sqlite.schema").iterdir()
        if file.name.endswith(".sql")
    )
    for file in sorted(files, key=lambda file: file.name):
        yield from statements_in(file.read_text(encoding="utf-8"))


def statements_in(script: str) -> Iterator[str]:
    """Yield the statements of a script, each of which ends with a line."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement.rstrip().removesuffix(";")
            statement = ""


_STATEMENTS: Final = tuple(_read_statements())
"""The statements of all numbered files, in order. Read at import, to keep files off the loop."""


def install_statements() -> Iterator[str]:
    """Yield the statements that create the current tables and an empty index.

    They drop an existing index of any version. They keep the log of operations, the owners and the
    records' details.
    """
    yield from create_statements()
    yield from begin_statements(VERSION)


def create_statements() -> Iterator[str]:
    """Yield the statements of `install_statements` before the one that marks the index as valid.

    Tables created or dropped after that mark belong to another version of the file.
    """
    yield from drop_statements()
    yield from _STATEMENTS
