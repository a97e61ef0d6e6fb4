"""The options that several commands have: the history, and how to print."""

from typing import Annotated

import typer

from async_history.cli import stores

Db = Annotated[
    str | None,
    typer.Option(
        "--db",
        metavar="URL",
        envvar=stores.URL_VARIABLE,
        show_default="history.db here",
        help="The history: a file, sqlite:///file.db, postgresql://host/database …",
    ),
]
AsLines = Annotated[
    bool, typer.Option("--json", help="One JSON object a line, as `record` takes them.")
]
AsReport = Annotated[bool, typer.Option("--json", help="The report as one JSON object.")]
