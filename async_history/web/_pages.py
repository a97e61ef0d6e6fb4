"""The pages for people."""

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route


def page_routes() -> list[BaseRoute]:
    """Return the routes of the pages. Each finds the caller's `View` as `request.state.view`."""
    return [Route("/", _home)]


async def _home(request: Request) -> Response:
    return RedirectResponse(f"{request.scope.get('root_path', '')}/api/openapi.json", 303)
