"""A page with the common navigation: the views that its caller may open."""

from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse

from async_history.web import _texts  # noqa: F401 - brings the filters of the templates
from async_history.web._access import SESSION_COOKIE
from async_history.web._problems import route_path
from async_history.web._render import render


def show(request: Request, template: str, *, status_code: int = 200, **values: Any) -> HTMLResponse:
    """Return a page. Its template also gets `view`, `path` and `is_signed_in`."""
    return render(
        request,
        template,
        status_code=status_code,
        view=request.state.view,
        path=route_path(request),
        is_signed_in=SESSION_COOKIE in request.cookies,
        **values,
    )
