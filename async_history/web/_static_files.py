"""Styles and scripts. They are read once; other files can't be requested."""

from importlib.resources import files
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

STATIC_PATH: Final = "/static/"

_TYPES: Final = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_FILES: Final = {
    file.name: file.read_bytes()
    for file in (files("async_history.web") / "_static").iterdir()
    if file.name.rpartition(".")[2] in _TYPES
}


async def _static_file(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _FILES:
        raise HTTPException(404, "there is no such file")
    return Response(_FILES[name], media_type=_TYPES[name.rpartition(".")[2]])


def static_route() -> Route:
    """Return the route of all files of `_static`, by name."""
    return Route(STATIC_PATH + "{name}", _static_file, methods=["GET"])
