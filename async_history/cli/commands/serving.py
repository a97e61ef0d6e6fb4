"""The command `serve`."""

from typing import Annotated

import typer

from async_history.cli.errors import one_line_errors
from async_history.cli.options import Db
from async_history.cli.serve import serve_page


def serve(
    db: Db = None,
    host: Annotated[
        str, typer.Option(metavar="NAME", help="The name or address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65_535, metavar="PORT", help="The port; 0 for a free one.")
    ] = 8765,
    write: Annotated[
        bool,
        typer.Option("--write", help="Allow restore, rollback, undo and erase, each confirmed."),
    ] = False,
    token_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The token that lets in; else ASYNC_HISTORY_TOKEN."),
    ] = None,
) -> None:
    """Show a history in a browser.

    Without a token only this computer is answered. Listening elsewhere needs one: a long random
    text, such as `openssl rand -hex 32` makes. Nothing can be changed without --write. Stderr gets
    a line for each request, without what was asked for.
    """
    with one_line_errors():
        serve_page(db, host=host, port=port, token_file=token_file, write=write)
