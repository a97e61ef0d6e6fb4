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
        typer.Option(metavar="FILE", help="The token for access; default: ASYNC_HISTORY_TOKEN."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="A site whose pages may read with the token; repeatable."),
    ] = None,
) -> None:
    """Show a history in a browser.

    Without a token only this computer gets answers. Listening elsewhere needs a token: a long
    random text, for example from `openssl rand -hex 32`. Nothing can be changed without --write.
    Each request is logged on stderr, without its arguments.
    """
    with one_line_errors():
        serve_page(
            db,
            host=host,
            port=port,
            token_file=token_file,
            write=write,
            origins=allow_origin or (),
        )
