"""`async-history serve`: the page of a history, on this computer."""

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final

import typer

from async_history import HistoryManager, InvalidInput
from async_history.cli import stores
from async_history.cli.termination import run
from async_history.cli.text_files import read_text

TOKEN_VARIABLE: Final = "ASYNC_HISTORY_TOKEN"  # noqa: S105 - its name


def serve_page(
    url: str | None,
    *,
    host: str,
    port: int,
    token_file: str | None,
    write: bool,
    origins: Sequence[str],
) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        InvalidInput: the token or an origin is not valid, the token is missing, or the server is
            not installed.
    """
    try:
        from async_history.web._server import ACCESS_LOG, serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("jinja2", "starlette", "uvicorn"):
            raise
        raise InvalidInput(
            f"{error.name} is not installed; the page needs it: pip install 'async-history[web]'"
        ) from None
    _log_to_stderr(ACCESS_LOG)
    token = _token(token_file)

    async def opened_and_served() -> None:
        async with _opened(url, write=write) as history:
            await serve(
                history,
                host=host,
                port=port,
                token=token,
                write=write,
                origins=origins,
                on_ready=_show,
            )

    run(opened_and_served())


def _opened(url: str | None, *, write: bool) -> AbstractAsyncContextManager[HistoryManager]:
    if write:
        return stores.opened(stores.to_write(url), create=False)
    return stores.open_to_read(stores.to_read(url))


def _show(url: str) -> None:
    typer.echo(f"{url} (Ctrl-C ends it)")
    sys.stdout.flush()


def _token(file: str | None) -> str | None:
    if file is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    return read_text(file).strip()


def _log_to_stderr(name: str) -> None:
    logger = logging.getLogger(name)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.handlers = [handler]
