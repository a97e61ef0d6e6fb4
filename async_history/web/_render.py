"""The templates: compiled once, with escaping on, and with the values that every page shows."""

from importlib.resources import files
from typing import Any, Final

from jinja2 import DictLoader, Environment, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

_FOLDER: Final = files("async_history.web") / "_templates"

environment: Final = Environment(
    loader=DictLoader(
        {
            file.name: file.read_text(encoding="utf-8")
            for file in _FOLDER.iterdir()
            if file.name.endswith(".html")
        }
    ),
    autoescape=True,
    auto_reload=False,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
"""The environment of templates and filters."""


def compile_templates() -> None:
    """Compile all templates, so that the first request for each does not wait for it."""
    for name in environment.list_templates():
        environment.get_template(name)


def render(request: Request, name: str, *, status_code: int = 200, **values: Any) -> HTMLResponse:
    """Return a page.

    A template also gets `access` (the caller's, if there is one), `csrf_token` (which every form
    needs as a field of that name), and `root` (the prefix of all paths).
    """
    text = environment.get_template(name).render(
        access=request.state.access,
        csrf_token=request.state.csrf_token,
        root=request.scope.get("root_path", ""),
        **values,
    )
    return HTMLResponse(text, status_code)
