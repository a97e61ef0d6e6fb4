"""The answer to an error: problem details for programs, a page for people."""

from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from async_history.errors import HistoryError
from async_history.web._problems import problem_of, problem_response, wants_page
from async_history.web._render import render

SIGN_IN_PATH: Final = "/sign-in"


def error_response(request: Request, error: HTTPException | HistoryError) -> Response:
    """Return what an error is answered with.

    A browser without a token is sent to the form to sign in.
    """
    problem = problem_of(error)
    headers = getattr(error, "headers", None)
    if not wants_page(request):
        return problem_response(problem, headers)
    is_token_missing = problem["status"] == 401 and "www-authenticate" in {
        name.lower() for name in headers or ()
    }
    if is_token_missing and request.method == "GET":
        return RedirectResponse(request.scope.get("root_path", "") + SIGN_IN_PATH, 303)
    return render(request, "error.html", problem=problem, status_code=problem["status"])
